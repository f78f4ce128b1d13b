"""MoRec, CTRL and RECFORMER on a mesh: every axis splits their batches, and their steps are those of one device."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted_texts
import pytest

from allmrec_jax import sharding
from allmrec_jax.baselines import ctrl, morec, recformer
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.models.cf.ctrl import Aligner
from allmrec_jax.models.cf.sasrec import SASRec
from allmrec_jax.models.longformer import LongformerConfig
from allmrec_jax.models.recformer import RecformerConfig, item_table, tokenize_items
from allmrec_jax.models.text_encoder import SentenceEncoder, tokenize_texts
from allmrec_jax.pretrained.longformer import as_recformer, nano_longformer
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder
from allmrec_jax.sharding import use_mesh
from allmrec_jax.training.state import CountedState

MESH = "data=2,tensor=2"
"""Four devices, which divide none of the batches."""


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted_texts.make_dataset(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    path: Path = planted_texts.save_encoder(tmp_path_factory.mktemp("encoder"))
    return load_sentence_encoder(path)


def assert_same_step(step: Any, state: Any, batch_at: Any) -> None:
    """One step with dropout, on one device and on the mesh: the loss and Adam's first moment, that is, the gradient.

    Float32 sums in another order; a gradient that is zero but for rounding (the keys' biases) is 1e-8 at most.
    """
    found = []
    for mesh in (None, MESH):
        with use_mesh(mesh):
            placed = sharding.place(jax.tree.map(jnp.array, state))
            batch = sharding.place_batch(batch_at(), sharding.AXES)
            assert all(len(leaf) % 4 == 0 for leaf in jax.tree.leaves(batch)) or mesh is None
            after, metrics = sharding.on_mesh(step())(placed, batch)
            found.append((jax.device_get(metrics["loss"]), jax.device_get(after.opt_state)))
    (loss, moments), (other_loss, other_moments) = found
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (moments, other_moments)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=max(1e-5 * np.abs(one).max(), 1e-9))


def test_morec(planted: Dataset, encoder: SentenceEncoder) -> None:
    settings = morec.MoRecSettings(dim=8, blocks=1, max_length=6, dropout=0.2, batch_size=13, loss="in-batch")
    sasrec = {
        k: v for k, v in SASRec(settings.sasrec(1)).init_params(jax.random.key(0)).items() if k != "item_embedding"
    }
    head = morec.Head(settings.dim).init(jax.random.key(1), jnp.zeros((1, encoder.dim)))["params"]
    params = {"sasrec": sasrec, "head": head, "encoder": encoder.params}
    state = CountedState(params, morec.make_optimizer(settings).init(params), jnp.zeros((), jnp.int32))
    tokens = tokenize_texts(encoder, planted.titles, 8)
    assert_same_step(
        lambda: morec.make_step(encoder, settings, 0),
        state,
        lambda: morec.MoRecSampler(planted, tokens, settings, 0)(1),
    )


def test_ctrl(planted: Dataset, encoder: SentenceEncoder) -> None:
    settings = ctrl.ContrastSettings(dim=8, blocks=1, max_length=6, dropout=0.2, batch_size=13, history_titles=3)
    model = ctrl.CTRLSettings(dim=8, blocks=1, max_length=6, dropout=0.2).module(planted.num_users, planted.num_items)
    shapes = (jnp.zeros((1, settings.dim)), jnp.zeros((1, encoder.dim)))
    aligner = Aligner(settings.dim, settings.subspaces).init(jax.random.key(1), *shapes)["params"]
    params = {"cf": model.init_params(jax.random.key(0)), "aligner": aligner, "encoder": encoder.params}
    optimizer, _ = ctrl.make_step(encoder, model, settings, 0)
    state = CountedState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    assert_same_step(
        lambda: ctrl.make_step(encoder, model, settings, 0)[1],
        state,
        lambda: sharding.fill_up(ctrl.ContrastSampler(planted, encoder, settings, 0)(1)),
    )


def test_recformer(planted: Dataset) -> None:
    sizes = LongformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=80
    )
    settings = recformer.RecformerSettings(
        start="scratch", attention_window=8, max_items=5, max_tokens=24, batch_size=13
    )
    made = as_recformer(nano_longformer(sizes, 0), 8, 5, seed=0)
    config = RecformerConfig(made.config, made.start, 0.1, 24)
    tokens = tokenize_items(made.tokenizer, {"title": planted.titles}, 5)

    def loss(params: Any, table: Any, batch: Any, key: jax.Array) -> Any:
        return recformer.pretraining_loss(config, made.mask, settings, params, batch, key)

    optimizer = optax.adam(settings.learning_rate)
    state = recformer.RecformerState(made.params, jnp.zeros(()), optimizer.init(made.params), jnp.zeros((), jnp.int32))
    sampler = recformer.RecformerSampler(planted, config, tokens, settings, 0, "pretrain")
    assert_same_step(
        lambda: recformer.make_step(loss, optimizer, 0, "pretrain"), state, lambda: sharding.fill_up(sampler(1))
    )
    with use_mesh(MESH):
        table = item_table(config, made.params["encoder"], tokens)
    wanted = item_table(config, made.params["encoder"], tokens)
    np.testing.assert_allclose(table, wanted, rtol=1e-4, atol=1e-5)  # float32, sums in another order
