"""CTRL: its similarity and loss against torch, its texts, and that it learns."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted_texts
import pytest
import torch

from allmrec_jax.baselines import ctrl
from allmrec_jax.baselines.ctrl import ContrastSampler, CTRLSettings, history_text, train_ctrl
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.ctrl import CTRL, Aligner, contrastive_loss, similarities
from allmrec_jax.models.cf.protocol import load_export
from allmrec_jax.models.cf.sasrec import SASRec, SASRecConfig
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

SETTINGS = CTRLSettings(
    dim=16, blocks=1, max_length=5, dropout=0.0, learning_rate=1e-2, batch_size=64, epochs=6, buckets=1,
    evaluate_every=3, patience=0, validation_negatives=20, contrast_epochs=2, contrast_batch_size=50,
    encoder_learning_rate=1e-3, history_titles=4, text_max_tokens=40,
)  # fmt: skip


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return planted_texts.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_texts.make_dataset(tmp_path_factory.mktemp("planted"))


def test_alignment_matches_torch():
    rng = np.random.default_rng(0)
    vectors, texts = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(5, 9)).astype(np.float32)
    aligner = Aligner(6, 3)
    params = jax.jit(aligner.init)(jax.random.key(0), vectors, texts)["params"]
    ours = jax.jit(aligner.apply)({"params": params}, vectors, texts)

    def dense(x, name):
        layer = params[name]
        return x @ torch.tensor(np.asarray(layer["kernel"])) + torch.tensor(np.asarray(layer["bias"]))

    sides = {}
    for side, x in (("cf", vectors), ("text", texts)):
        projected = dense(torch.tensor(x), f"{side}_projection")
        sides[side] = [dense(projected, f"{side}_{m}") for m in range(3)]
    pairs = torch.stack([torch.stack([a @ b.T for b in sides["text"]]) for a in sides["cf"]])
    by_cf, by_text = pairs.amax(1).sum(0), pairs.amax(0).sum(0)
    # Float32 rounding of sums of six products of order 1.
    for found, expected in zip(similarities(*ours), (by_cf, by_text), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    labels, others = torch.arange(4), ~torch.eye(4, dtype=torch.bool)
    bce = torch.nn.BCEWithLogitsLoss()
    expected = {"infonce": 0.0, "bce": 0.0}
    for scores in (by_cf[:4, :4], by_text[:4, :4].T):
        expected["infonce"] += torch.nn.functional.cross_entropy(scores / 0.5, labels) / 2
        likes, dislikes = bce(scores.diag(), torch.ones(4)), bce(scores[others], torch.zeros(12))
        expected["bce"] += (likes + dislikes) / 2
    weights = jnp.array([1.0, 1, 1, 1, 0])  # the fifth pair is no pair
    for kind, value in expected.items():
        both = jax.value_and_grad(lambda cf, kind=kind: contrastive_loss(cf, ours[1], weights, kind, 0.5))
        found, slope = jax.jit(both)(ours[0])
        assert float(found) == pytest.approx(float(value), rel=1e-5)
        assert np.isfinite(slope).all() and not np.any(slope[:, 4])


def test_it_is_sasrec_and_one_dense_layer():
    config = SASRecConfig(9, 8, 1, 1, 5)
    params = CTRL(config).init_params(jax.random.key(0))
    items = jnp.array([[0, 0, 3, 9, 1]])
    before = jax.jit(SASRec(config).apply)({"params": {k: v for k, v in params.items() if k != "final"}}, items)
    np.testing.assert_array_equal(jax.jit(partial(CTRL(config).apply, final=False))({"params": params}, items), before)
    expected = np.asarray(before) @ np.asarray(params["final"]["kernel"]) + np.asarray(params["final"]["bias"])
    np.testing.assert_allclose(jax.jit(CTRL(config).apply)({"params": params}, items), expected, atol=1e-5)


def test_texts_tell_the_training_history_and_nothing_else(planted, encoder_path):
    encoder = load_sentence_encoder(encoder_path)
    sampler = ContrastSampler(planted, encoder, SETTINGS.pretraining, 0)
    batch = sampler(0)
    allowed = {
        tuple(planted.train_sequence(user)[:n][-SETTINGS.max_length :])
        for user in range(planted.num_users)
        for n in range(1, 10)
    }
    for items, ids, length in zip(batch.items, batch.ids, batch.lengths, strict=True):
        history = items[items > 0]
        assert tuple(history.tolist()) in allowed
        text = history_text([planted.titles[item] for item in history[-4:]])
        assert encoder.tokenizer.encode(text).ids[:40] == ids[:length].tolist()
    np.testing.assert_array_equal(batch.items, ContrastSampler(planted, encoder, SETTINGS.pretraining, 0)(0).items)
    last = sampler(sampler.steps_per_epoch - 1)
    assert last.weights.sum() == planted.num_users - 50 * (sampler.steps_per_epoch - 1)


@pytest.fixture(scope="module")
def pretrained(planted, encoder_path, tmp_path_factory):
    """The finished pre-training that :func:`train_ctrl` takes up."""
    encoder, model = load_sentence_encoder(encoder_path), SETTINGS.module(planted.num_users, planted.num_items)
    out = tmp_path_factory.mktemp("pretrained")
    with jax.numpy_dtype_promotion("standard"):
        return ctrl.pretrain(planted, encoder, model, SETTINGS.pretraining, 0, out, resume=False, quiet=True)


def test_pretraining_lowers_its_loss(pretrained):
    losses = [json.loads(line)["loss"] for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_it_beats_popularity_from_pretrained_parameters(planted, encoder_path, pretrained, monkeypatch):
    started = []
    fit = ctrl.fit_cf
    monkeypatch.setattr(ctrl, "fit_cf", lambda run, model, kind, params, *rest: (
        started.append(jax.device_get(params)), fit(run, model, kind, params, *rest))[1])  # fmt: skip
    before = pretrained
    run = train_ctrl(planted, encoder_path, SETTINGS, 0, before.parents[2], quiet=True)
    gain, error = planted_texts.excess(planted, load_export(run / "export", "x"))
    assert gain > 3 * error

    assert [*before.parent.iterdir()] == [before], "the pre-training at hand was taken"
    fresh = SETTINGS.module(1, planted.num_items).init_params(jax.random.key(0))
    moved = np.asarray(started[0]["blocks"]["attention"]["in_proj_bias"])
    assert np.any(moved != np.asarray(fresh["blocks"]["attention"]["in_proj_bias"])), "zero at first, then trained"


def test_it_finds_nothing_in_shuffled_interactions(encoder_path, tmp_path):
    shuffled = planted_texts.make_dataset(tmp_path / "data", shuffled=True)
    run = train_ctrl(shuffled, encoder_path, SETTINGS, 0, tmp_path, quiet=True)
    gain, error = planted_texts.excess(shuffled, load_export(run / "export", "x"))
    assert abs(gain) < 2 * error


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"contrast_epochs": 0}, {"history_titles": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="CTRL"):
        _ = dataclasses.replace(SETTINGS, **wrong).pretraining
