"""RECFORMER: what it reads, its losses, and that it learns in three runs."""

import dataclasses
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import planted_texts
import pytest

from allmrec_jax.baselines import recformer
from allmrec_jax.baselines.recformer import (
    RecformerSampler,
    RecformerSettings,
    finetuning_loss,
    mask_tokens,
    most_masked,
    pretraining_loss,
    train_recformer,
)
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import load_export
from allmrec_jax.models.longformer import MaskedTokenHead
from allmrec_jax.models.recformer import NAME, PAD, START, VALUE, ItemTokens, RecformerConfig, tokenize_items
from allmrec_jax.pretrained.longformer import as_recformer, nano_longformer

SIZES = dataclasses.replace(
    recformer.TINY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=80,
)  # fmt: skip
SETTINGS = RecformerSettings(
    start="scratch", attention_window=8, max_items=9, attribute_tokens=5, max_tokens=32, temperature=0.1,
    batch_size=50, learning_rate=3e-3, pretrain_epochs=3, epochs=1, evaluate_every=1, patience=2,
    validation_negatives=20, validation_users=100,
)  # fmt: skip


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def small():
    """The planted words' tokenizer and a Longformer of one layer, in place of those from scratch."""

    def made(config, seed):
        nano = nano_longformer(SIZES, seed)
        tokenizer = planted_texts.tokenizer()
        config = dataclasses.replace(nano.config, vocab_size=tokenizer.get_vocab_size())
        words = nano.params["encoder"]["word_embeddings"]["embedding"][: config.vocab_size]
        encoder = {**nano.params["encoder"], "word_embeddings": {"embedding": words}}
        head = {**nano.params["head"], "bias": nano.params["head"]["bias"][: config.vocab_size]}
        params = {"encoder": encoder, "head": head}
        return dataclasses.replace(nano, config=config, params=params, tokenizer=tokenizer, start=2, mask=4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recformer, "nano_longformer", made)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_texts.make_dataset(tmp_path_factory.mktemp("planted"))


def start(dataset):
    made = as_recformer(recformer.nano_longformer(SIZES, 0), 8, 9, seed=0)
    config = RecformerConfig(made.config, made.start, 0.1, 32)
    return made, config, tokenize_items(made.tokenizer, {"title": dataset.titles}, 5)


def test_histories_are_read_latest_first_with_types_and_places():
    tokens = ItemTokens(
        np.array([[0, 0, 0], [5, 6, 7], [8, 9, 0]]), np.array([[0, 0, 0], [NAME, VALUE, VALUE], [NAME, VALUE, 0]]),
        np.array([0, 3, 2], np.int32),
    )  # fmt: skip
    config = RecformerConfig(dataclasses.replace(SIZES, item_positions=3, pad_token_id=1), start=2, max_tokens=6)
    made = tokens.inputs(config, [np.array([1, 2]), np.array([2]), np.array([1, 1, 2])])
    assert made.ids.tolist() == [[2, 8, 9, 5, 6, 7], [2, 8, 9, 1, 1, 1], [2, 8, 9, 5, 6, 7]]
    assert made.types.tolist()[0] == [START, NAME, VALUE, NAME, VALUE, VALUE]
    assert made.types.tolist()[1] == [START, NAME, VALUE, PAD, PAD, PAD]
    assert made.places.tolist() == [[0, 1, 1, 2, 2, 2], [0, 1, 1, 0, 0, 0], [0, 1, 1, 2, 2, 2]]


def test_attributes_are_names_and_values_cut_together():
    tokenizer = planted_texts.tokenizer()
    made = tokenize_items(tokenizer, {"title": ["", "group1 item3"], "item2": ["", ""]}, 2)
    words = [tokenizer.id_to_token(token) for token in made.ids[1][: made.lengths[1]]]
    assert words == ["title", "group1"] and made.types[1].tolist() == [NAME, VALUE]
    assert made.lengths.tolist() == [0, 2]


def test_losses_match_numpy(planted):
    made, config, tokens = start(planted)
    params = jax.tree.map(jnp.asarray, made.params)
    sampler = RecformerSampler(planted, config, tokens, dataclasses.replace(SETTINGS, batch_size=7), 0, "test")
    batch = sampler(sampler.steps_per_epoch - 1)
    count = int(batch.weights.sum())
    assert 0 < count < 7, "the last batch is filled up"
    encode = jax.jit(partial(recformer.encode, config))

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    users, items = (unit(np.asarray(encode(params["encoder"], part))) for part in (batch.histories, batch.items))
    expected = []
    for user in range(count):
        others = [i for i in range(count) if i == user or batch.targets[i] != batch.targets[user]]
        scores = users[user] @ items[others].T / 0.1
        expected.append(np.logaddexp.reduce(scores) - users[user] @ items[user] / 0.1)
    found, _ = jax.jit(partial(pretraining_loss, config, made.mask, SETTINGS))(params, batch, None)
    # Float32 through another program.
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)

    table = np.random.default_rng(0).normal(size=(planted.num_items + 1, 32)).astype(np.float32)
    scores = users @ unit(table)[1:].T / 0.1
    each = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(7), batch.targets - 1]
    found, _ = jax.jit(partial(finetuning_loss, config))(params, table, batch, None)
    assert float(found) == pytest.approx(each[:count].mean(), rel=1e-4)


def test_masked_tokens_are_restored_from_all_their_states(planted):
    made, config, tokens = start(planted)
    params, key = jax.tree.map(jnp.asarray, made.params), jax.random.key(3)
    settings = dataclasses.replace(SETTINGS, batch_size=7, mask_share=0.4)
    batch = RecformerSampler(planted, config, tokens, settings, 0, "test")(0)
    _, found = jax.jit(partial(pretraining_loss, config, made.mask, settings))(params, batch, key)

    masks, dropout = jax.random.split(key, 4)[2:]
    ids, chosen = mask_tokens(config, made.mask, settings.mask_share, jnp.asarray(batch.histories.ids), masks)
    states = jax.jit(partial(recformer.states, config))(params["encoder"], batch.histories._replace(ids=ids), dropout)
    words = params["encoder"]["word_embeddings"]["embedding"]
    logits = MaskedTokenHead(config.longformer).apply({"params": params["head"]}, states, words)
    rows, columns = np.nonzero(np.asarray(chosen) * batch.weights[:, None])
    assert len(rows) > 5
    logits = np.asarray(logits)[rows, columns].astype(np.float64)
    each = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(rows)), batch.histories.ids[rows, columns]]
    # Float32 through another program.
    assert float(found["restored"]) == pytest.approx(each.mean(), rel=1e-4)


def test_masked_tokens_are_a_share_of_the_real_ones():
    config = RecformerConfig(dataclasses.replace(SIZES, vocab_size=50, pad_token_id=1), start=2)
    ids = jnp.array([[2, *range(5, 45), 1, 1]] * 400)
    masked, chosen = jax.jit(partial(mask_tokens, config, 4, 0.15))(ids, jax.random.key(0))
    chosen = np.asarray(chosen) > 0
    assert not chosen[:, [0, -1, -2]].any()
    # Five standard errors of 16,000 draws.
    assert abs(chosen[:, 1:-2].mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 16000)
    np.testing.assert_array_equal(np.asarray(masked)[~chosen], np.asarray(ids)[~chosen])
    assert abs((np.asarray(masked)[chosen] == 4).mean() - 0.8) < 0.06
    assert chosen.sum(axis=1).max() <= most_masked(43, 0.15) < 43


@pytest.fixture(scope="module")
def pretrained(small, planted, tmp_path_factory):
    """Where training stopped between its first run, the pre-training, and its second."""
    out = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(recformer, "_finetune", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_recformer(planted, "absent", SETTINGS, 0, out, quiet=True)
    return out


def test_it_beats_popularity_in_three_runs(planted, pretrained, monkeypatch):
    monkeypatch.setattr(recformer, "_pretrain", None)  # done, and not to be done again
    run = train_recformer(planted, "absent", SETTINGS, 0, pretrained, resume=True, quiet=True)
    model = load_export(run / "export", "x")
    gain, error = planted_texts.excess(planted, model)
    assert gain > 3 * error

    assert run.parent.name == "recformer-tiny"
    first = next((pretrained / "texts" / "recformer-tiny-stage1").iterdir())
    before = recformer.load_arrays(first / "export" / "items.safetensors")["table"]
    np.testing.assert_array_equal(model.item_vectors(), before)  # frozen in the second stage


def test_it_finds_nothing_in_shuffled_interactions(tmp_path):
    shuffled = planted_texts.make_dataset(tmp_path / "data", shuffled=True)
    run = train_recformer(shuffled, "absent", SETTINGS, 0, tmp_path, quiet=True)
    gain, error = planted_texts.excess(shuffled, load_export(run / "export", "x"))
    assert abs(gain) < 2 * error
    assert train_recformer(shuffled, "absent", SETTINGS, 0, tmp_path, quiet=True) == run


def test_more_tokens_than_the_longformer_reads_are_refused(planted, tmp_path):
    settings = dataclasses.replace(SETTINGS, max_tokens=512)
    with pytest.raises(UserError, match="max_tokens 512, but this Longformer reads 79"):
        train_recformer(planted, "absent", settings, 0, tmp_path, quiet=True)
