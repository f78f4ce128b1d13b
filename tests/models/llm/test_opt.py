"""OPT against Hugging Face's torch implementation, on tiny random shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from allmrec_jax.models.llm.attention import init_cache
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPT, PUBLISHED, OPTConfig
from allmrec_jax.pretrained.llm import load_checkpoint

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
"""Both sides compute in float32 with sums in another order; differences measured were below 5e-6 on values around 1."""

SHAPES = {
    "pre-norm": OPTConfig(61, 32, 3, 4, 64, 40, 32),
    "one-head": OPTConfig(61, 24, 2, 1, 40, 40, 24),
    "350m": OPTConfig(61, 32, 2, 2, 64, 40, 16, do_layer_norm_before=False),
    "pre-norm projected": OPTConfig(61, 32, 2, 2, 64, 40, 48),
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """(torch model, our module, parameters as our loader reads them from what Hugging Face saved)."""
    config = SHAPES[request.param]
    torch.manual_seed(0)
    hf = transformers.OPTForCausalLM(transformers.OPTConfig(**config.to_dict(), dropout=0.0)).eval()
    with torch.no_grad():  # norms and biases start at 1 and 0, which would hide a mix-up
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp("opt") / "hf"
    hf.save_pretrained(path)
    loaded, params = load_checkpoint(path)
    assert loaded == config
    return hf, OPT(config), params


def ids_of(config, shape, seed=0):
    return np.random.default_rng(seed).integers(3, config.vocab_size, shape)


def our_logits(model, params, ids, positions, mask=None):
    variables = {"params": params}
    hidden, _ = model.apply(variables, model.apply(variables, ids, method="embed"), positions, mask)
    return model.apply(variables, hidden, method="logits")


def their_logits(hf, ids, mask):
    with torch.no_grad():
        return hf(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()


def test_logits_at_every_position(pair):
    hf, model, params = pair
    ids = ids_of(model.config, (3, 11))
    ours = our_logits(model, params, ids, np.broadcast_to(np.arange(11), (3, 11)))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, their_logits(hf, ids, np.ones_like(ids)), **TOLERANCE)


def test_right_padding_needs_no_mask(pair):
    hf, model, params = pair
    ids = ids_of(model.config, (3, 11))
    real = np.arange(11) < np.array([[11], [4], [7]])
    ours = our_logits(model, params, ids, np.broadcast_to(np.arange(11), (3, 11)))
    np.testing.assert_allclose(np.asarray(ours)[real], their_logits(hf, ids, real * 1)[real], **TOLERANCE)


def test_left_padding_by_positions_and_mask(pair):
    hf, model, params = pair
    ids = ids_of(model.config, (3, 11))
    real = np.arange(11) >= np.array([[0], [6], [3]])
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    # a pad attends itself only, so that no row of the softmax is empty
    mask = (np.tril(np.ones((11, 11), bool)) & real[:, None, :]) | np.eye(11, dtype=bool)
    ours = our_logits(model, params, ids, positions, mask)
    np.testing.assert_allclose(np.asarray(ours)[real], their_logits(hf, ids, real * 1)[real], **TOLERANCE)


def test_cached_prefill_and_decoding_equal_the_full_forward(pair):
    _, model, params = pair
    variables = {"params": params}
    batch, prompt, total, columns = 2, 6, 10, 13  # three columns of the cache stay empty
    ids = ids_of(model.config, (batch, total))
    positions = np.broadcast_to(np.arange(total), (batch, total))
    full = our_logits(model, params, ids, positions)

    @jax.jit
    def extend(cache, tokens, positions, start):
        mask = jnp.arange(columns)[None, None] <= positions[..., None]
        embeds = model.apply(variables, tokens, method="embed")
        hidden, cache = model.apply(variables, embeds, positions, mask, cache, start)
        return model.apply(variables, hidden, method="logits"), cache

    cache = init_cache(model.config, batch, columns)
    logits, cache = extend(cache, ids[:, :prompt], positions[:, :prompt], 0)
    np.testing.assert_allclose(logits, full[:, :prompt], **TOLERANCE)
    for t in range(prompt, total):
        logits, cache = extend(cache, ids[:, t : t + 1], positions[:, t : t + 1], t)
        np.testing.assert_allclose(logits[:, 0], full[:, t], **TOLERANCE)
    assert not np.asarray(cache.k[:, :, :, total:]).any()


def test_gradients_with_respect_to_input_embeddings(pair):
    hf, model, params = pair
    ids = ids_of(model.config, (2, 9))
    embeds = np.random.default_rng(1).normal(size=(2, 9, model.config.word_embed_proj_dim)).astype(np.float32)
    positions = np.broadcast_to(np.arange(9), (2, 9))

    def loss(embeds):
        hidden, _ = model.apply({"params": params}, embeds, positions)
        logits = model.apply({"params": params}, hidden[:, :-1], method="logits")
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1).mean()

    value, gradient = jax.value_and_grad(loss)(embeds)
    theirs = torch.tensor(embeds, requires_grad=True)
    logits = hf(inputs_embeds=theirs).logits[:, :-1]
    torch_loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.tensor(ids[:, 1:]).ravel()
    )
    torch_loss.backward()
    np.testing.assert_allclose(value, torch_loss.item(), rtol=1e-5)
    # gradients are around 1e-2 here
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_rematerialised_layers_compute_the_same():
    config = SHAPES["pre-norm"]
    params = init_params(config, jax.random.key(0))
    ids, positions = ids_of(config, (2, 8)), np.broadcast_to(np.arange(8), (2, 8))

    def gradient(model):
        return jax.grad(lambda p: our_logits(model, p, ids, positions).std())(params)

    plain, remat = gradient(OPT(config)), gradient(OPT(config, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, remat)


def test_no_position_sees_a_later_one():
    config = SHAPES["pre-norm"]
    params = init_params(config, jax.random.key(0))
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 32)), jnp.float32)

    def at(embeds, t):
        hidden, _ = OPT(config).apply({"params": params}, embeds, jnp.arange(8)[None])
        return (hidden[0, t] ** 2).sum() + hidden[0, t, 0]

    for t in range(8):
        influence = np.abs(jax.grad(at)(embeds, t)).sum(axis=(0, 2)) > 0
        assert influence.tolist() == [s <= t for s in range(8)]


def published_parameters(config):
    """The size of an OPT as arithmetic, from the architecture alone."""
    d, f, e = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    attention = 4 * (d * d + d)
    feed_forward = d * f + f + f * d + d
    norms = 2 * 2 * d
    layers = config.num_hidden_layers * (attention + feed_forward + norms)
    embeddings = config.vocab_size * e + (2048 + 2) * d
    final_norm = 2 * d if config.do_layer_norm_before else 0
    projections = 2 * d * e if e != d else 0
    return embeddings + layers + final_norm + projections


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """Names say the size (to 6%: 125m to 66b are the paper's rounded counts); the module's arrays add up to it."""
    config = PUBLISHED[name]
    count = published_parameters(config)
    label = name.removeprefix("facebook/opt-")
    named = float(label[:-1]) * {"m": 1e6, "b": 1e9}[label[-1]]
    assert count == pytest.approx(named, rel=0.06)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes)) == count


def test_published_125m_has_the_count_of_the_hub():
    assert published_parameters(PUBLISHED["facebook/opt-125m"]) == 125_239_296
    assert published_parameters(PUBLISHED["facebook/opt-6.7b"]) == 6_658_473_984
