"""Longformer against transformers' LongformerModel on random weights, read from a directory as from the hub."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted_texts
import pytest
import torch
import transformers

from allmrec_jax.errors import UserError
from allmrec_jax.models.longformer import Longformer, LongformerConfig, MaskedTokenHead, window_attention
from allmrec_jax.pretrained.longformer import as_recformer, load_longformer, nano_longformer

SIZES = dict(
    vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=70, type_vocab_size=2, attention_window=8, layer_norm_eps=1e-5, pad_token_id=1,
    hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**{**SIZES, "attention_window": [8, 8]}))
    for parameter in model.parameters():
        # Every parameter away from 0 and 1, so that a forgotten bias or scale shows.
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def path(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("longformer")
    reference.save_pretrained(path)
    made = planted_texts.tokenizer()
    made.add_special_tokens(["<s>", "<mask>"])
    made.save(str(path / "tokenizer.json"))
    return path


def batch():
    """Rows of 1, 9, 21 and 40 tokens: less than a window, several blocks, and none of them whole."""
    rng, lengths = np.random.default_rng(0), [1, 9, 21, 40]
    ids = np.ones((4, 40), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [0, *rng.integers(2, 30, length - 1)]
    return ids, rng.integers(0, 2, ids.shape).astype(np.int32)


def test_states_and_token_logits_match_transformers(reference, path):
    loaded = load_longformer(path)
    ids, types = batch()
    first = np.zeros_like(ids)
    first[:, 0] = 1
    asked = {"input_ids": ids, "token_type_ids": types, "attention_mask": ids != 1, "global_attention_mask": first}
    with torch.no_grad():
        tensors = {name: torch.tensor(array).long() for name, array in asked.items()}
        hidden = reference.longformer(**tensors).last_hidden_state
        expected = reference.lm_head(hidden).numpy()
    states = jax.jit(Longformer(loaded.config).apply)({"params": loaded.params["encoder"]}, ids, types)
    real = ids != 1
    # Float32 over two layers, on states of order 1.
    np.testing.assert_allclose(np.asarray(states)[real], hidden.numpy()[real], atol=1e-4)
    only = jax.jit(partial(Longformer(loaded.config).apply, first_only=True))
    alone = only({"params": loaded.params["encoder"]}, ids, types)
    np.testing.assert_allclose(alone, hidden.numpy()[:, :1], atol=1e-4)
    words = loaded.params["encoder"]["word_embeddings"]["embedding"]
    found = jax.jit(MaskedTokenHead(loaded.config).apply)({"params": loaded.params["head"]}, states, words)
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-3)


def test_gradients_match_transformers(reference, path):
    loaded = load_longformer(path)
    ids, types = batch()
    first = np.zeros_like(ids)
    first[:, 0] = 1
    asked = {"input_ids": ids, "token_type_ids": types, "attention_mask": ids != 1, "global_attention_mask": first}
    tensors = {name: torch.tensor(array).long() for name, array in asked.items()}
    reference.zero_grad()
    hidden = reference.longformer(**tensors).last_hidden_state
    hidden[torch.tensor(ids != 1)].square().sum().backward()

    def loss(params):
        states = Longformer(loaded.config).apply({"params": params}, ids, types)
        return jnp.sum(jnp.where((ids != 1)[..., None], states, 0.0) ** 2)

    ours = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, loaded.params["encoder"]))
    layer = reference.longformer.encoder.layer[0].attention.self
    for name, theirs in (("q", layer.query), ("k", layer.key), ("v_global", layer.value_global)):
        expected = theirs.weight.grad.numpy().T
        assert np.abs(expected).max() > 1e-2
        # Sums over some 70 tokens, relative to the largest.
        np.testing.assert_allclose(ours["layer_0"][name]["kernel"], expected, atol=1e-4 * np.abs(expected).max())


def test_windows_are_those_of_a_dense_mask():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 19, 2, 4)).astype(np.float32)
    mask = np.arange(19)[None] < np.array([[19], [11]])
    found = jax.jit(partial(window_attention, half=3))(q, k, v, jnp.asarray(mask))
    near = abs(np.arange(19)[:, None] - np.arange(19)[None]) <= 3
    allowed = (near | (np.arange(19) == 0)[None])[None] & mask[:, None]
    scores = np.where(allowed[:, None], np.einsum("bqhe,bkhe->bhqk", q, k), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhe->bqhe", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize(("short", "long"), [(128, 512)])
def test_cost_grows_with_the_length_only(short, long):
    """Multiplications counted by the compiler: four times the tokens are four times the work, not sixteen."""

    def flops(time):
        shape = jax.ShapeDtypeStruct((1, time, 2, 8), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, time), bool)
        compiled = jax.jit(lambda q, k, v, m: window_attention(q, k, v, m, 16)).lower(shape, shape, shape, mask)
        return compiled.compile().cost_analysis()["flops"]

    assert flops(long) / flops(short) < 1.1 * long / short


def test_recformer_keeps_the_weights_and_adds_embeddings(path):
    loaded = load_longformer(path)
    made = as_recformer(loaded, 4, 50, seed=3)
    assert (made.config.attention_window, made.config.type_vocab_size, made.config.item_positions) == (4, 4, 51)
    encoder = made.params["encoder"]
    assert encoder["token_type_embeddings"]["embedding"].shape == (4, 24)
    assert encoder["item_position_embeddings"]["embedding"].shape == (51, 24)
    assert encoder["layer_0"] is loaded.params["encoder"]["layer_0"]


def test_nano_longformer_has_the_embedded_tokenizer():
    config = LongformerConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    made = nano_longformer(config, seed=0)
    assert made.config.vocab_size == made.tokenizer.get_vocab_size() == 2844
    assert made.tokenizer.id_to_token(made.start) == "[CLS]" and made.config.pad_token_id == 0


def test_wrong_directories_are_named(path, tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        load_longformer(tmp_path / "nowhere")
    for name, text, message in [
        ("config.json", "{", r"config\.json: .*not JSON"),
        ("config.json", json.dumps({"model_type": "bert"}), "not 'longformer'"),
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer"),
        ("model.safetensors", "nothing", r"model\.safetensors: not a whole"),
    ]:
        copy = tmp_path / "copy"
        shutil.copytree(path, copy, dirs_exist_ok=True)
        (copy / name).write_text(text)
        with pytest.raises(UserError, match=message):
            load_longformer(copy)
    shutil.copytree(path, tmp_path / "other")
    config = json.loads((path / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(UserError, match=r"has shape .* asks for"):
        load_longformer(tmp_path / "other")
