"""SASRec against a torch module written from the description of the official code, not from that code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.models.cf.sequential import logits

ITEMS, DIM, LENGTH = 40, 12, 10


class TorchBlock(torch.nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention_norm = torch.nn.LayerNorm(dim, eps=1e-8)
        self.attention = torch.nn.MultiheadAttention(dim, heads)
        self.feed_forward_norm = torch.nn.LayerNorm(dim, eps=1e-8)
        self.conv1 = torch.nn.Conv1d(dim, dim, kernel_size=1)
        self.conv2 = torch.nn.Conv1d(dim, dim, kernel_size=1)

    def forward(self, x, pad):
        time = x.shape[1]
        later = torch.triu(torch.ones(time, time, dtype=torch.bool), 1)
        keys, query = x.transpose(0, 1), self.attention_norm(x).transpose(0, 1)
        attended, _ = self.attention(query, keys, keys, attn_mask=later)
        x = self.feed_forward_norm((query + attended).transpose(0, 1))
        x = x + self.conv2(torch.relu(self.conv1(x.transpose(1, 2)))).transpose(1, 2)
        return x * ~pad.unsqueeze(-1)


class TorchSASRec(torch.nn.Module):
    def __init__(self, items: int, dim: int, blocks: int, heads: int, length: int):
        super().__init__()
        self.items = torch.nn.Embedding(items + 1, dim, padding_idx=0)
        self.positions = torch.nn.Embedding(length, dim)
        self.blocks = torch.nn.ModuleList(TorchBlock(dim, heads) for _ in range(blocks))
        self.final_norm = torch.nn.LayerNorm(dim, eps=1e-8)

    def forward(self, items):
        pad = items == 0
        x = self.items(items) * self.items.embedding_dim**0.5 + self.positions(torch.arange(items.shape[1]))
        x = x * ~pad.unsqueeze(-1)
        for block in self.blocks:
            x = block(x, pad)
        return self.final_norm(x)


def to_flax(module: TorchSASRec, value) -> dict:
    """The Flax tree of ``value(parameter)`` over the torch module's parameters."""

    def norm(layer):
        return {"scale": value(layer.weight), "bias": value(layer.bias)}

    def dense(layer):
        return {"kernel": value(layer.weight).squeeze().T, "bias": value(layer.bias)}

    blocks = [
        {
            "attention_norm": norm(block.attention_norm),
            "attention": {
                "in_proj_kernel": value(block.attention.in_proj_weight).T,
                "in_proj_bias": value(block.attention.in_proj_bias),
                "out_proj": dense(block.attention.out_proj),
            },
            "feed_forward_norm": norm(block.feed_forward_norm),
            "feed_forward": {"conv1": dense(block.conv1), "conv2": dense(block.conv2)},
        }
        for block in module.blocks
    ]
    return {
        "item_embedding": value(module.items.weight),
        "position_embedding": value(module.positions.weight),
        "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks),
        "final_norm": norm(module.final_norm),
    }


def torch_model(heads: int) -> TorchSASRec:
    torch.manual_seed(0)
    module = TorchSASRec(ITEMS, DIM, 2, heads, LENGTH)
    for parameter in module.parameters():
        # Every parameter away from 0 and 1, so that a forgotten bias or scale shows.
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def left_padded(lengths, width=LENGTH, items=ITEMS, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[width - length :] = rng.integers(1, items + 1, length)
    return rows


@pytest.mark.parametrize("heads", [1, 3])
def test_forward_and_gradients_match_torch(heads):
    module = torch_model(heads)
    inputs, targets = left_padded([1, 4, 10, 7]), left_padded([1, 4, 10, 7], seed=1)
    negatives = left_padded([1, 4, 10, 7], seed=2)
    params = to_flax(module, lambda p: p.detach().numpy())
    model = SASRec(SASRecConfig(ITEMS, DIM, 2, heads, LENGTH))

    expected = module(torch.tensor(inputs))
    hidden = model.apply({"params": params}, jnp.asarray(inputs))
    # Float32 rounding over two blocks, on values of order 1; measured below 2e-6.
    np.testing.assert_allclose(hidden, expected.detach().numpy(), atol=1e-5)

    real = torch.tensor(inputs != 0)
    bce = torch.nn.BCEWithLogitsLoss()
    for items, label in ((targets, torch.ones), (negatives, torch.zeros)):
        scores = (expected * module.items(torch.tensor(items))).sum(-1)[real]
        bce(scores, label(scores.shape)).backward(retain_graph=True)

    def loss(params):
        hidden = model.apply({"params": params}, jnp.asarray(inputs))
        losses = jax.nn.softplus(-logits(params, hidden, targets)) + jax.nn.softplus(logits(params, hidden, negatives))
        return jnp.sum(jnp.where(inputs != 0, losses, 0.0)) / int(np.count_nonzero(inputs))

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    reference = to_flax(module, lambda p: p.grad.numpy())
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(reference), strict=True):
        assert np.abs(theirs).max() > 1e-3, f"{path}: a zero gradient proves nothing"
        # Sums of some 30 positions of order 1 in another order; measured below 1e-5.
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=str(path))


def test_layer_norm_epsilon_matches_torch():
    module = torch_model(1)
    with torch.no_grad():
        # Inputs of variance 1e-7, where another epsilon than 1e-8 shows.
        module.items.weight *= 3e-4
        module.positions.weight *= 3e-4
    inputs = left_padded([10, 4])
    params = to_flax(module, lambda p: p.detach().numpy())
    hidden = SASRec(SASRecConfig(ITEMS, DIM, 2, 1, LENGTH)).apply({"params": params}, jnp.asarray(inputs))
    # Rounding of the tiny inputs, blown up by the norm to order 1; measured below 1e-5.
    np.testing.assert_allclose(hidden, module(torch.tensor(inputs)).detach().numpy(), atol=1e-4)


def test_initial_statistics():
    params = SASRec(SASRecConfig(2000)).init_params(jax.random.key(0))
    block = params["blocks"]

    def close(array, std):
        # Standard error of a sample's deviation is std/√(2n); five of them.
        assert abs(np.std(array) - std) < 5 * std / np.sqrt(2 * array.size)
        assert np.abs(array).max() > 3 * std, "normal, not truncated at two deviations"

    close(params["item_embedding"], np.sqrt(2 / 2051))
    close(params["position_embedding"], np.sqrt(2 / 100))
    close(block["attention"]["in_proj_kernel"], 0.1)
    close(block["attention"]["out_proj"]["kernel"], np.sqrt(2 / 100))
    close(block["feed_forward"]["conv1"]["kernel"], np.sqrt(2 / 100))
    close(block["feed_forward"]["conv2"]["kernel"], np.sqrt(2 / 100))
    assert np.any(params["item_embedding"][0] != 0), "the padding row is drawn like the others"
    for bias in (block["attention"]["in_proj_bias"], block["attention"]["out_proj"]["bias"]):
        assert not np.any(bias)
    for conv in ("conv1", "conv2"):
        bias = block["feed_forward"][conv]["bias"]
        assert 0.9 / np.sqrt(50) < np.abs(bias).max() <= 1 / np.sqrt(50)
    assert not np.array_equal(block["feed_forward"]["conv1"]["kernel"][0], block["feed_forward"]["conv1"]["kernel"][1])


def test_parameter_count():
    params = SASRec(SASRecConfig(1000)).init_params(jax.random.key(0))
    norm, attention, feed_forward = 2 * 50, (50 * 150 + 150) + (50 * 50 + 50), 2 * (50 * 50 + 50)
    expected = 1001 * 50 + 50 * 50 + 2 * (2 * norm + attention + feed_forward) + norm
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.fixture(scope="module")
def planted():
    """Random parameters with biases away from zero, or pads would not weigh in."""
    module = torch_model(1)
    return SASRecConfig(ITEMS, DIM, 2, 1, LENGTH), to_flax(module, lambda p: jnp.asarray(p.detach().numpy()))


def test_no_position_sees_a_later_one(planted):
    _, params = planted
    inputs = jnp.asarray(left_padded([LENGTH]))
    table = params["item_embedding"]

    def hidden(steps):
        # A separate vector for each step, so that the gradient tells steps apart.
        spread = jnp.concatenate([jnp.zeros((1, DIM)), steps])
        rows = jnp.arange(1, LENGTH + 1)[None]
        model = SASRec(SASRecConfig(LENGTH, DIM, 2, 1, LENGTH))
        return model.apply({"params": {**params, "item_embedding": spread}}, rows)[0]

    jacobian = np.abs(jax.jacobian(hidden)(jnp.asarray(table)[inputs[0]])).sum((1, 3))
    assert np.all(jacobian[np.triu_indices(LENGTH, 1)] == 0)
    assert np.all(jacobian[np.tril_indices(LENGTH)] > 0)


@pytest.mark.parametrize("width", [3, 6, 9])
def test_shorter_inputs_give_the_same_numbers(planted, width):
    config, params = planted
    model = SASRec(config)
    inputs = left_padded([1, width, width - 1])
    real = inputs[:, -width:] != 0
    full = model.apply({"params": params}, jnp.asarray(inputs))[:, -width:]
    short = model.apply({"params": params}, jnp.asarray(inputs[:, -width:]))
    # One sum in place of several equal terms: rounding only.
    np.testing.assert_allclose(np.asarray(short)[real], np.asarray(full)[real], atol=1e-5)
    unpadded = SASRec(SASRecConfig(ITEMS, DIM, 2, 1, width))
    moved = {**params, "position_embedding": params["position_embedding"][-width:]}
    without = unpadded.apply({"params": moved}, jnp.asarray(inputs[:, -width:]))
    assert np.abs(np.asarray(without) - np.asarray(short))[real].max() > 1e-3, "pads must weigh in"


def test_dropout_has_the_same_distribution_at_every_width(planted):
    _, params = planted
    attention = params["blocks"]["attention"]
    # Large value biases, so that what is dropped of the pads decides the output.
    louder = {**attention, "in_proj_bias": attention["in_proj_bias"] * 6}
    params = {**params, "blocks": {**params["blocks"], "attention": louder}}
    model = SASRec(SASRecConfig(ITEMS, DIM, 2, 1, LENGTH, dropout=0.3))
    inputs, draws = left_padded([2]), 4000

    @jax.jit
    def draw(rows, key):
        return model.apply({"params": params}, rows, deterministic=False, rngs={"dropout": key})

    def sample(width):
        rows = jnp.broadcast_to(jnp.asarray(inputs[:, -width:]), (draws, width))
        out = np.asarray(draw(rows, jax.random.key(width))[:, -1], np.float64)
        return np.concatenate([out, out**2], axis=1)

    short, full = sample(2), sample(LENGTH)
    error = np.sqrt((short.var(0) + full.var(0)) / draws)
    # Means and second moments of each component, four and a half standard errors (24 comparisons).
    assert np.all(np.abs(short.mean(0) - full.mean(0)) < 4.5 * error)
    assert np.all(error < 0.1)


def test_cf_model_cuts_long_histories_and_draws_with_a_key(planted):
    _, params = planted
    cf = SASRecCF(SASRecConfig(ITEMS, DIM, 2, 1, LENGTH, dropout=0.5), params)
    long = left_padded([LENGTH + 4], width=LENGTH + 4)
    np.testing.assert_array_equal(cf.user_vectors(None, long), cf.user_vectors(None, long[:, -LENGTH:]))
    one, two = (cf.user_vectors(None, long, key=jax.random.key(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two)
    candidates = np.array([[3, 1, 7]])
    expected = np.asarray(cf.user_vectors(None, long)) @ cf.item_vectors()[candidates[0]].T
    # Another order of the same dot product.
    np.testing.assert_allclose(cf.score(None, long, candidates), expected, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"dropout": 1.0}, {"dropout": -0.1}, {"blocks": 0}, {"num_items": 0}, {"max_length": 0}]
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(UserError):
        SASRecConfig(**{"num_items": 10, "dim": 50} | wrong)


@pytest.mark.parametrize("width", [0, LENGTH + 1])
def test_histories_of_no_column_or_too_many_are_refused(planted, width):
    config, params = planted
    with pytest.raises(ValueError, match=rf"{width} columns; SASRec takes 1 to {LENGTH}"):
        SASRec(config).apply({"params": params}, jnp.zeros((2, width), jnp.int32), deterministic=True)
