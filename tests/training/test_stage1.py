"""Stage 1: its batches, its step, resuming, and what it exports."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.data.dataset import item_texts, write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.text_encoder import SentenceEncoder, TextEncoder, TextEncoderConfig, init_params, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, save_sentence_encoder
from allmrec_jax.training import stage1_batches
from allmrec_jax.training.stage1 import Stage1Model, make_optimizer, make_step, train_stage1
from allmrec_jax.training.stage1_batches import Catalogue, Stage1Sampler
from allmrec_jax.training.stage1_export import load_stage1
from allmrec_jax.training.stage1_settings import PRESETS, Stage1Settings
from allmrec_jax.training.state import CountedState

USERS, ITEMS, DIM = 30, 80, 6
SETTINGS = Stage1Settings(
    epochs=3, batch_size=8, learning_rate=3e-3, encoder_learning_rate=1e-3, latent_dim=10, text_max_tokens=16
)


def make_encoder(dropout=0.1):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789:,.TDN"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + letter for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = TextEncoderConfig(
        vocab_size=len(words),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    return SentenceEncoder(TextEncoder(config), params, tokenizer, {}, 32)


@pytest.fixture(autouse=True)
def promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set, precomputed CF vectors and a tiny sentence encoder on disk."""
    path = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, USERS)
    sequences = [rng.permutation(ITEMS)[:n] + 1 for n in lengths]
    dataset = write_dataset(
        path / "data",
        name="tiny",
        items=np.concatenate(sequences),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"item {i}" for i in range(ITEMS)],
        descriptions=["long words here" if i % 2 else "" for i in range(ITEMS)],
    )
    (path / "cf").mkdir()
    np.save(path / "cf" / "items.npy", rng.normal(size=(ITEMS + 1, DIM)).astype(np.float32))
    for cut in ("train", "valid", "test"):
        np.save(path / "cf" / f"users_{cut}.npy", rng.normal(size=(USERS, DIM)).astype(np.float32))
    save_sentence_encoder(path / "encoder", make_encoder())
    return path, dataset


def make_sampler(world, settings=SETTINGS):
    path, dataset = world
    encoder = load_sentence_encoder(path / "encoder")
    cf = load_cf(path / "cf", dataset)
    tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
    return Stage1Sampler(dataset, cf, Catalogue(cf.item_vectors(), tokens, None), settings, seed=0), cf


def test_an_epoch_holds_every_user_once_with_vectors_and_an_unmet_negative(world):
    _, dataset = world
    sampler, cf = make_sampler(world)
    vectors, users = cf.item_vectors(), cf.at("train").users["train"]
    seen = []
    for index in range(sampler.steps_per_epoch):
        batch = jax.tree.map(lambda x: x[0], sampler(index))
        for row in np.flatnonzero(batch.weights):
            user = int(np.flatnonzero((users == batch.users[row]).all(1))[0])
            seen.append(user)
            np.testing.assert_array_equal(batch.items[batch.positives[row]], vectors[dataset.train_sequence(user)[-1]])
            negative = int(np.flatnonzero((vectors == batch.items[batch.negatives[row]]).all(1))[0])
            assert negative not in dataset.train_sequence(user) and negative > 0
    assert sorted(seen) == [u for u in range(USERS) if len(dataset.train_sequence(u)) >= 2]
    again, other = sampler(0), sampler(sampler.steps_per_epoch)
    np.testing.assert_array_equal(again.users, make_sampler(world)[0](0).users)
    assert not np.array_equal(again.users, other.users)


def test_distinct_items_stand_in_a_batch_once_with_their_own_tokens(world):
    _, dataset = world
    sampler, cf = make_sampler(world)
    batch = jax.tree.map(lambda x: x[0], sampler(0))
    used = np.unique(np.concatenate([batch.positives, batch.negatives]))
    assert len(np.unique(batch.items[used], axis=0)) == len(used)
    for row in batch.positives:
        item = int(np.flatnonzero((cf.item_vectors() == batch.items[row]).all(1))[0])
        text = item_texts(dataset, "paper")[item]
        expected = tokenize_texts(make_encoder(), [text], 16).ids[0]
        np.testing.assert_array_equal(batch.ids[row][: batch.lengths[row]], expected)


def test_all_positions_are_samples_with_the_history_before_them(world, monkeypatch):
    _, dataset = world
    sampler, _ = make_sampler(world)
    monkeypatch.setattr(sampler.cf.__class__, "live", True)
    everywhere = Stage1Sampler(
        dataset, sampler.cf, sampler.catalogue, dataclasses.replace(SETTINGS, positions="all"), seed=0
    )
    expected = {
        (user, tuple(sequence[:place]), sequence[place])
        for user in range(USERS)
        for sequence in [dataset.train_sequence(user).tolist()]
        for place in range(1, len(sequence))
    }
    histories = dataset.items_before(everywhere.users, everywhere.places, stage1_batches.CF_HISTORY)
    targets = dataset.items[dataset.offsets[everywhere.users] + everywhere.places]
    found = [
        (user, tuple(history[history > 0].tolist()), target)
        for user, history, target in zip(everywhere.users, histories, targets, strict=True)
    ]
    assert len(found) == len(expected) and set(found) == expected


def start(model, settings):
    width = np.zeros((1, DIM), np.float32), np.zeros((1, model.encoder.dim), np.float32)
    params = {
        "alignment": model.alignment.init(jax.random.key(1), *width)["params"],
        "encoder": jax.tree.map(jnp.asarray, model.encoder.params),
    }
    optimizer = make_optimizer(settings, 10)
    return optimizer, CountedState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def test_accumulation_in_parts_is_the_whole_batch(world):
    states, metrics = [], []
    for accumulation in (1, 4):
        settings = dataclasses.replace(SETTINGS, accumulation=accumulation, batch_size=16)
        sampler, _ = make_sampler(world, settings)
        model = Stage1Model(Alignment(DIM, 12, 10), make_encoder(dropout=0.0), settings)
        optimizer, state = start(model, settings)
        # The last batch of the epoch: some samples have weight 0, unevenly over the parts.
        batch = sampler(sampler.steps_per_epoch - 1)
        assert 0 < batch.weights.sum() < 16
        state, values = make_step(model, optimizer, 0)(state, batch)
        states.append(state)
        metrics.append(values)
    for name in metrics[0]:
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-5, err_msg=name)
    # Adam divides by the gradient's size, so that sums in another order show in small gradients: compare the moments.
    for one, four in zip(jax.tree.leaves(states[0].opt_state), jax.tree.leaves(states[1].opt_state), strict=True):
        np.testing.assert_allclose(one, four, atol=1e-6)


def test_the_step_weighs_the_four_losses_and_compiles_once(world):
    settings = dataclasses.replace(SETTINGS, match_weight=2.0, alpha=3.0, beta=5.0, rec_weight=7.0)
    sampler, _ = make_sampler(world, settings)
    model = Stage1Model(Alignment(DIM, 12, 10), make_encoder(), settings)
    optimizer, state = start(model, settings)
    with jax.numpy_dtype_promotion("strict"):
        model.losses(state.params, jax.tree.map(lambda x: x[0], sampler(0)), jax.random.key(0))
    step = make_step(model, optimizer, 0)
    before = jax.device_get(state.params)
    for index in (0, 0):
        state, metrics = step(state, sampler(index))
    weighed = 2 * metrics["match"] + 3 * metrics["item_recon"] + 5 * metrics["text_recon"] + 7 * metrics["rec"]
    np.testing.assert_allclose(metrics["loss"], weighed, rtol=1e-5)
    assert step._cache_size() == 1
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    # Zero token types and biases of unused pieces aside, everything learns: look at one leaf of each part.
    assert moved["alignment"]["item_encoder"]["kernel"] and moved["alignment"]["text_decoder"]["bias"]
    assert moved["encoder"]["layer_0"]["q"]["kernel"]


def test_training_exports_latents_that_load_and_equal_the_encoders(world, tmp_path):
    path, dataset = world
    run = train_stage1(dataset, path / "cf", path / "encoder", SETTINGS, 0, tmp_path, quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["valid/loss"] < lines[0]["valid/loss"]

    export = load_stage1(run)
    texts = item_texts(dataset, "paper")
    # The same numbers in another batch: sums in another order.
    np.testing.assert_allclose(export.encode_texts(texts[1:]), export.text[1:], atol=1e-5)
    assert not export.joint[0].any() and not export.text[0].any()
    np.testing.assert_array_equal(export.trained, dataset.train_count > 0)
    assert not export.trained.all()
    mixed = export.item_latents("joint")
    np.testing.assert_array_equal(mixed[export.trained], export.joint[export.trained])
    np.testing.assert_array_equal(mixed[~export.trained], export.text[~export.trained])
    np.testing.assert_array_equal(export.item_latents("text"), export.text)
    assert fingerprint(export.encoder) != fingerprint(load_sentence_encoder(path / "encoder"))
    assert train_stage1(dataset, path / "cf", path / "encoder", SETTINGS, 0, tmp_path, quiet=True) == run


@pytest.mark.parametrize("changes", [{}, {"freeze_encoder": True, "choose": "best"}])
def test_an_interrupted_run_resumes_bit_for_bit(world, tmp_path, monkeypatch, changes):
    path, dataset = world
    settings = dataclasses.replace(SETTINGS, **changes)
    arguments = (dataset, path / "cf", path / "encoder", settings, 0)
    whole = load_stage1(train_stage1(*arguments, tmp_path / "whole", quiet=True))

    batch_at = Stage1Sampler.__call__

    def interrupted(self, index):
        if index == 2 * self.steps_per_epoch - 1:
            raise KeyboardInterrupt
        return batch_at(self, index)

    monkeypatch.setattr(stage1_batches.Stage1Sampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_stage1(*arguments, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(stage1_batches.Stage1Sampler, "__call__", batch_at)
    resumed = load_stage1(train_stage1(*arguments, tmp_path / "cut", resume=True, quiet=True))
    np.testing.assert_array_equal(resumed.joint, whole.joint)
    np.testing.assert_array_equal(resumed.text, whole.text)
    same = fingerprint(whole.encoder) == fingerprint(load_sentence_encoder(path / "encoder"))
    assert same == settings.freeze_encoder


def test_settings_that_do_not_fit_are_named(world, tmp_path):
    path, dataset = world

    def train(**changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        train_stage1(dataset, path / "cf", path / "encoder", settings, 0, tmp_path, quiet=True)

    with pytest.raises(UserError, match="positions all needs a live CF model"):
        train(positions="all")
    with pytest.raises(UserError, match="cf_train_mode needs a live CF model"):
        train(cf_train_mode=True)
    with pytest.raises(UserError, match="accumulation 3 does not divide the batch size 8"):
        train(accumulation=3)


def test_a_damaged_or_foreign_run_is_named(world, tmp_path):
    path, dataset = world
    settings = dataclasses.replace(SETTINGS, epochs=1)
    run = train_stage1(dataset, path / "cf", path / "encoder", settings, 0, tmp_path, quiet=True)
    (run / "export" / "items_text.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"items_text\.npy: damaged"):
        load_stage1(run)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"kind": "cf"}))
    with pytest.raises(UserError, match="is a cf run; a stage1 run is needed"):
        load_stage1(run)


class LiveCF:
    """A stand-in for a live CF model: a user is the last item of the history and its length, noise with a key."""

    live, num_items, dim, identity = True, ITEMS, 2, "live"

    def at(self, cut):
        return self

    def item_vectors(self):
        return np.arange(2 * (ITEMS + 1), dtype=np.float32).reshape(ITEMS + 1, 2)

    def user_vectors(self, users, items, *, key=None):
        told = np.stack([items[:, -1], np.count_nonzero(items, axis=1)], axis=1).astype(np.float32)
        return told if key is None else told + np.asarray(jax.random.uniform(key, told.shape, minval=0.1, maxval=0.4))


def live_sampler(world, **changes):
    path, dataset = world
    settings = dataclasses.replace(SETTINGS, **changes)
    tokens = tokenize_texts(load_sentence_encoder(path / "encoder"), item_texts(dataset, "paper"), 16)
    cf = LiveCF()
    return Stage1Sampler(dataset, cf, Catalogue(cf.item_vectors(), tokens, None), settings, seed=0)


def samples_of(sampler, index):
    """User vector, positive and negative item of each sample of a batch that counts."""
    batch = jax.tree.map(lambda x: x[0], sampler(index))
    real = batch.weights > 0
    item = (batch.items[:, 0] / 2).astype(int)
    return batch.users[real], item[batch.positives[real]], item[batch.negatives[real]]


@pytest.mark.parametrize("positions", ["last", "all"])
def test_users_are_known_by_what_they_did_before_the_target(world, positions):
    _, dataset = world
    sampler = live_sampler(world, positions=positions)
    before = {
        (int(sequence[place - 1]), place, int(sequence[place]))
        for user in range(USERS)
        for sequence in [dataset.train_sequence(user)]
        for place in (range(1, len(sequence)) if positions == "all" else range(len(sequence) - 1, len(sequence)))
        if place >= 1
    }
    seen = set()
    for index in range(sampler.steps_per_epoch):
        users, positives, _ = samples_of(sampler, index)
        seen |= {(int(last), int(count), int(item)) for (last, count), item in zip(users, positives, strict=True)}
    assert seen == before


def test_the_cf_models_dropout_is_on_in_train_mode_only_and_anew_in_each_batch(world):
    plain, live = live_sampler(world, shuffle=False), live_sampler(world, shuffle=False, cf_train_mode=True)
    epoch = plain.steps_per_epoch
    noise = [samples_of(live, index)[0] - samples_of(plain, index)[0] for index in (0, 0, epoch)]
    assert (noise[0] >= 0.1).all()  # what the stand-in adds at least where it is given a key
    np.testing.assert_array_equal(noise[0], noise[1])
    assert (noise[0] != noise[2]).all()


def test_negatives_are_drawn_anew_in_each_batch(world):
    sampler = live_sampler(world, shuffle=False)
    first, again, later = (samples_of(sampler, index) for index in (0, 0, sampler.steps_per_epoch))
    np.testing.assert_array_equal(first[1], later[1])  # the same samples, an epoch later
    np.testing.assert_array_equal(first[2], again[2])
    assert np.mean(first[2] == later[2]) < 0.5  # of 80 items next to none is drawn twice


def test_encoder_and_autoencoders_have_their_own_rates_and_schedule():
    params = {"alignment": {"w": jnp.ones(3)}, "encoder": {"w": jnp.ones(3)}}
    for schedule, late in (("constant", 1.0), ("cosine", 0.5)):
        settings = dataclasses.replace(SETTINGS, learning_rate=3e-3, encoder_learning_rate=1e-4, schedule=schedule)
        optimizer = make_optimizer(settings, total_steps=10)
        state, rates = optimizer.init(params), []
        for _ in range(6):
            # Of a constant gradient of 1, Adam's step is its rate but for epsilon.
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            rates.append((-float(updates["alignment"]["w"][0]), -float(updates["encoder"]["w"][0])))
        np.testing.assert_allclose(rates[0], (3e-3, 1e-4), rtol=1e-4)
        np.testing.assert_allclose(rates[5], (3e-3 * late, 1e-4 * late), rtol=1e-4)  # half of the cosine's way


def test_presets_are_the_papers_and_the_official_codes():
    """The paper's section 4.1; defaults and constants of ghdtjr/A-LLMRec's main.py and models/a_llmrec_model.py."""
    paper, official = (dataclasses.asdict(PRESETS[name]) for name in ("paper", "official"))
    both = {
        "epochs": 10, "batch_size": 32, "learning_rate": 1e-4, "encoder_learning_rate": 1e-4, "beta2": 0.98,
        "schedule": "constant", "alpha": 0.5, "match_weight": 1.0, "rec_weight": 1.0, "latent_dim": 128,
        "positions": "last", "freeze_encoder": False, "choose": "last", "text_max_tokens": 512, "dtype": "float32",
    }  # fmt: skip
    code = {
        "beta": 0.2, "negatives_too": True, "mean_logits": True, "detach_texts": True, "cf_train_mode": True,
        "shuffle": False, "text_style": "official",
    }  # fmt: skip
    article = {
        "beta": 0.5, "negatives_too": False, "mean_logits": False, "detach_texts": False, "cf_train_mode": False,
        "shuffle": True, "text_style": "paper",
    }  # fmt: skip
    assert {name: paper[name] for name in both | article} == both | article
    assert {name: official[name] for name in both | code} == both | code


def test_the_draws_that_runs_were_made_with(world):
    # Recorded: with others a run would be another one at the same identity.
    sampler, cf = make_sampler(world)
    vectors, users = cf.item_vectors(), cf.at("train").users["train"]
    batch = jax.tree.map(lambda x: x[0], sampler(7))
    known = [int(np.flatnonzero((users == row).all(1))[0]) for row in batch.users]
    negatives = [int(np.flatnonzero((vectors == row).all(1))[0]) for row in batch.items[batch.negatives]]
    assert known == [13, 22, 5, 13, 22, 5, 13, 22]
    assert negatives == [49, 54, 26, 18, 15, 2, 51, 52]
