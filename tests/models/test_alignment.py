"""The four losses and their gradients against a PyTorch writing of the official code's description."""

import jax
import numpy as np
import pytest
import torch

from allmrec_jax.models.alignment import Alignment, alignment_losses

D, W, L, M, B = 5, 7, 4, 6, 3
# float32 on both sides, sums of a few dozen terms.
TOLERANCE = 1e-6


def arrays():
    rng = np.random.default_rng(0)
    items, texts, users = (rng.normal(size=shape).astype(np.float32) for shape in ((M, D), (M, W), (B, D)))
    return items, texts, users, np.array([0, 1, 2]), np.array([3, 4, 1])


def torch_losses(params, items, texts, users, positives, negatives, negatives_too, mean_logits, detach_texts):
    """Two-layer MLPs (Linear, sigmoid, Linear), nn.MSELoss and nn.BCEWithLogitsLoss on each batch of rows."""
    layers = {}
    for name, layer in params.items():
        layers[name] = torch.nn.Linear(*layer["kernel"].shape)
        with torch.no_grad():
            layers[name].weight.copy_(torch.tensor(np.asarray(layer["kernel"]).T))
            layers[name].bias.copy_(torch.tensor(np.asarray(layer["bias"])))
    items = torch.tensor(items)
    texts = torch.tensor(texts, requires_grad=True)
    users = torch.tensor(users)
    mse, bce = torch.nn.MSELoss(), torch.nn.BCEWithLogitsLoss()
    match = item_recon = text_recon = 0
    logits = []
    for rows, counts in ((positives, True), (negatives, negatives_too)):
        e = torch.sigmoid(layers["item_encoder"](items[rows]))
        q = torch.sigmoid(layers["text_encoder"](texts[rows]))
        decoded = layers["item_decoder"](e)
        product = users * decoded
        logits.append(product.mean(1) if mean_logits else product.sum(1))
        if counts:
            match = match + mse(e, q)
            item_recon = item_recon + mse(decoded, items[rows])
            target = texts[rows].data if detach_texts else texts[rows]
            text_recon = text_recon + mse(layers["text_decoder"](q), target)
    rec = bce(logits[0], torch.ones(len(users))) + bce(logits[1], torch.zeros(len(users)))
    losses = {"match": match, "item_recon": item_recon, "text_recon": text_recon, "rec": rec}
    (match + 0.5 * item_recon + 0.2 * text_recon + rec).backward()
    return {name: float(loss) for name, loss in losses.items()}, layers, texts.grad


@pytest.mark.parametrize("negatives_too", [False, True])
@pytest.mark.parametrize("mean_logits", [False, True])
@pytest.mark.parametrize("detach_texts", [False, True])
def test_losses_and_gradients_equal_torch(negatives_too, mean_logits, detach_texts):
    items, texts, users, positives, negatives = arrays()
    choices = {"negatives_too": negatives_too, "mean_logits": mean_logits, "detach_texts": detach_texts}
    model = Alignment(D, W, L)
    params = model.init(jax.random.key(0), items, texts)["params"]

    def total(params, texts):
        outputs = model.apply({"params": params}, items, texts)
        losses = alignment_losses(outputs, items, texts, users, positives, negatives, np.ones(B, np.float32), **choices)
        return losses["match"] + 0.5 * losses["item_recon"] + 0.2 * losses["text_recon"] + losses["rec"], losses

    (_, losses), (gradient, text_gradient) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, texts)
    expected, layers, expected_text_gradient = torch_losses(
        params, items, texts, users, positives, negatives, negatives_too, mean_logits, detach_texts
    )
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=TOLERANCE, err_msg=name)
    for name, layer in layers.items():
        np.testing.assert_allclose(gradient[name]["kernel"], layer.weight.grad.T, atol=TOLERANCE, err_msg=name)
        np.testing.assert_allclose(gradient[name]["bias"], layer.bias.grad, atol=TOLERANCE, err_msg=name)
    np.testing.assert_allclose(text_gradient, expected_text_gradient, atol=TOLERANCE)


def test_a_row_of_weight_zero_counts_for_nothing():
    items, texts, users, positives, negatives = arrays()
    model = Alignment(D, W, L)
    outputs = model.apply(model.init(jax.random.key(0), items, texts), items, texts)
    choices = {"negatives_too": True, "mean_logits": False, "detach_texts": True}

    def losses(rows, weights):
        return alignment_losses(
            outputs, items, texts, users[rows], positives[rows], negatives[rows], np.float32(weights), **choices
        )

    whole, padded = losses([0, 1], [1, 1]), losses([0, 1, 2], [1, 1, 0])
    for name, value in whole.items():
        np.testing.assert_allclose(padded[name], value, rtol=TOLERANCE, err_msg=name)
    assert not np.isclose(losses([0, 1, 2], [1, 1, 1])["match"], whole["match"])


def test_parameters_start_as_torch_starts_them():
    model = Alignment(50, 768, 128)
    params = model.init(jax.random.key(0), np.zeros((1, 50), np.float32), np.zeros((1, 768), np.float32))["params"]
    for name, width in (("item_encoder", 50), ("item_decoder", 128), ("text_encoder", 768), ("text_decoder", 128)):
        for leaf in ("kernel", "bias"):
            values = np.abs(params[name][leaf])
            # Of at least 50 uniform draws the largest comes within a tenth of the bound (but for 1 case in 200).
            assert 0.9 * width**-0.5 < values.max() <= width**-0.5
    counts = jax.tree.map(np.size, params)
    assert sum(jax.tree.leaves(counts)) == (50 + 1) * 128 + (128 + 1) * 50 + (768 + 1) * 128 + (128 + 1) * 768
