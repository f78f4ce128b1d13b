"""MoRec: its item vectors and loss, its batches, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted_texts
import pytest
import torch

from allmrec_jax.baselines import morec
from allmrec_jax.baselines.morec import Head, MoRecBatch, MoRecSampler, MoRecSettings, batch_loss, train_morec
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import load_cf, load_export
from allmrec_jax.models.cf.sasrec import SASRec
from allmrec_jax.models.text_encoder import encode_texts, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

SETTINGS = MoRecSettings(
    dim=16, blocks=1, max_length=5, dropout=0.1, learning_rate=1e-2, encoder_learning_rate=1e-3, batch_size=40,
    epochs=6, loss="in-batch", text_max_tokens=8, evaluate_every=2, validation_negatives=20,
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


def start(encoder, settings=SETTINGS):
    params = SASRec(settings.sasrec(1)).init_params(jax.random.key(0))
    head = Head(settings.dim).init(jax.random.key(1), jnp.zeros((1, encoder.dim)))["params"]
    sasrec = {name: leaf for name, leaf in params.items() if name != "item_embedding"}
    return {"sasrec": sasrec, "head": head, "encoder": jax.tree.map(jnp.asarray, encoder.params)}


def test_item_vectors_match_torch(encoder_path):
    encoder = load_sentence_encoder(encoder_path)
    params = start(encoder)
    tokens = tokenize_texts(encoder, ["", "group1 item3", "group0 item12"])
    table = morec.catalogue_params(encoder, SETTINGS, params, tokens)["item_embedding"]
    texts = torch.tensor(encode_texts(encoder, ["group1 item3", "group0 item12"]))
    dense = {name: torch.tensor(np.asarray(leaf)) for name, leaf in params["head"]["dense"].items()}
    expected = torch.nn.functional.gelu(texts @ dense["kernel"] + dense["bias"])
    # Float32 rounding of one dense layer.
    np.testing.assert_allclose(table[1:], expected, atol=1e-5)
    assert not np.any(table[0])


@pytest.mark.parametrize("loss", ["bce", "in-batch"])
def test_loss_is_sasrecs_over_the_encoded_items(planted, encoder_path, loss):
    settings = dataclasses.replace(SETTINGS, loss=loss, batch_size=5)
    encoder = load_sentence_encoder(encoder_path)
    tokens = tokenize_texts(encoder, planted.titles, 8)
    params, batch = start(encoder, settings), MoRecSampler(planted, tokens, settings, 0)(3)
    loss_and_gradient = jax.jit(jax.value_and_grad(lambda p: batch_loss(encoder, settings, p, batch, None)))
    found, gradient = loss_and_gradient(params)

    # The same batch in the catalogue's numbers, through a SASRec with the whole table.
    table = morec.catalogue_params(encoder, settings, params, tokens)
    number = {tuple(row): item for item, row in enumerate(tokens.ids.tolist())}
    items = np.array([0, *(number[tuple(row[: tokens.ids.shape[1]])] for row in batch.ids.tolist())])
    inputs, positives, negatives = (items[part] for part in (batch.inputs, batch.positives, batch.negatives))
    model = SASRec(settings.sasrec(planted.num_items))
    hidden = np.asarray(model.apply({"params": table}, jnp.asarray(inputs)), np.float64)
    vectors, losses = np.asarray(table["item_embedding"], np.float64), []
    present = sorted(set(items[1 : 1 + np.isfinite(batch.log_share).sum()].tolist()))
    share = np.log(np.maximum(planted.train_count, 1) / planted.train_count.sum())
    for user, time in zip(*np.nonzero(inputs), strict=True):
        state, target = hidden[user, time], positives[user, time]
        if loss == "bce":
            negative = negatives[user, time]
            assert negative not in inputs[user] and negative > 0
            losses.append(np.logaddexp(0, -state @ vectors[target]) + np.logaddexp(0, state @ vectors[negative]))
        else:
            own = {*inputs[user].tolist(), *positives[user].tolist()} - {target}
            scores = {item: state @ vectors[item] - share[item] for item in present if item not in own}
            losses.append(np.logaddexp.reduce(list(scores.values())) - scores[target])
    # Float32 in the program, other batches of texts.
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["head"]))
    assert np.abs(gradient["encoder"]["layer_0"]["q"]["kernel"]).max() > 0, "trained end to end"


def test_each_distinct_item_is_encoded_once(planted, encoder_path):
    tokens = tokenize_texts(load_sentence_encoder(encoder_path), planted.titles, 8)
    sampler = MoRecSampler(planted, tokens, dataclasses.replace(SETTINGS, loss="bce"), 0)
    batch = sampler(0)
    real = np.isfinite(batch.log_share)
    used = np.unique(np.concatenate([part[part > 0] for part in (batch.inputs, batch.positives, batch.negatives)]))
    assert used.tolist() == list(range(1, real.sum() + 1))
    assert len(np.unique(batch.ids[real], axis=0)) == real.sum()
    again = MoRecSampler(planted, tokens, dataclasses.replace(SETTINGS, loss="bce"), 0)(0)
    for ours, theirs in zip(batch, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(batch, MoRecBatch)


def test_it_beats_popularity_and_its_export_is_a_cf_model(planted, encoder_path, tmp_path):
    run = train_morec(planted, encoder_path, SETTINGS, 0, tmp_path, quiet=True)
    model = load_export(run / "export", "x")
    gain, error = planted_texts.excess(planted, model)
    assert gain > 3 * error
    np.testing.assert_array_equal(load_cf(run / "export", planted).item_vectors(), model.item_vectors())
    assert load_sentence_encoder(run / "export" / "sentence_encoder").dim == 12


def test_it_finds_nothing_in_shuffled_interactions(encoder_path, tmp_path):
    shuffled = planted_texts.make_dataset(tmp_path / "data", shuffled=True)
    run = train_morec(shuffled, encoder_path, SETTINGS, 0, tmp_path, quiet=True)
    gain, error = planted_texts.excess(shuffled, load_export(run / "export", "x"))
    assert abs(gain) < 2 * error


def test_data_without_titles_is_refused_before_anything_is_read(planted, tmp_path):
    bare = dataclasses.replace(planted, titles=["", *["No Title"] * planted.num_items])
    with pytest.raises(UserError, match="MoRec reads titles"):
        train_morec(bare, tmp_path / "nowhere", SETTINGS, 0, tmp_path)
