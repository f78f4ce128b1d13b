"""CF training: what is sampled, what is learnt, and that an interruption changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import ArrayCF, load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRec, SASRecConfig, SASRecSettings
from allmrec_jax.training import cf
from allmrec_jax.training.cf_validation import make_validation
from allmrec_jax.training.state import TrainState

SETTINGS = SASRecSettings(
    dim=16, blocks=1, max_length=12, dropout=0.1, learning_rate=1e-2, batch_size=32, epochs=12, buckets=2,
    evaluate_every=2, patience=0, validation_negatives=20,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_dataset(path, sequences, items):
    return write_dataset(
        path,
        name="planted",
        items=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"item {item}" for item in range(1, items + 1)],
        descriptions=[""] * items,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """300 users who walk through 60 items in steps of one, two or three, from a popular beginning."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(300):
        steps = rng.choice([1, 2, 3], size=rng.integers(4, 12), p=[0.7, 0.2, 0.1])
        sequences.append((rng.integers(0, 20) + np.cumsum(steps)) % 60 + 1)
    sequences += [np.array([5]), np.array([7, 8])]
    return make_dataset(tmp_path_factory.mktemp("planted"), sequences, 60)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return cf.train_cf(dataset, SETTINGS, 0, tmp_path_factory.mktemp("checkpoints"), quiet=True)


def test_training_data_holds_training_items_only(dataset):
    data = cf.load_train_data(dataset, SETTINGS)
    assert len(data.buckets) == 2
    seen = []
    for bucket in data.buckets:
        for row, _, start, end in zip(*map(np.asarray, bucket), strict=True):
            taken = np.asarray(data.free_below)[start:end]
            items = set((taken + 1 + np.arange(len(taken))).tolist())
            assert items >= set(row[row > 0].tolist())
            seen.append((tuple(row[row > 0].tolist()), frozenset(items)))
    users = [user for user in range(dataset.num_users) if len(dataset.train_sequence(user)) >= 2]
    expected = [dataset.train_sequence(user) for user in users]
    assert len(users) == 301, "the user with one item has nothing to predict"
    assert sorted(seen) == sorted((tuple(items.tolist()[-13:]), frozenset(items.tolist())) for items in expected)


def test_an_epoch_meets_each_user_once(dataset):
    data = cf.load_train_data(dataset, SETTINGS)
    steps = cf.steps_per_epoch(data, SETTINGS, dataset.num_users)
    assert steps == 10  # ⌈301 / 32⌉
    total = 0
    for index, bucket in enumerate(data.buckets):
        users = len(bucket.tokens)
        rows = np.asarray(cf.batch_rows(jax.random.key(index), users, 301, steps, SETTINGS))
        assert sorted(rows[rows < users].tolist()) == list(range(users))
        assert not np.array_equal(np.sort(rows.ravel()), rows.ravel())
        total += rows.shape[1]
    assert total <= 34, "a batch has its 32 users, and at most one empty row for each bucket"


def test_official_draws_with_replacement(dataset):
    official = CF_PRESETS["sasrec"]["official"]
    data = cf.load_train_data(dataset, official)
    assert [bucket.tokens.shape for bucket in data.buckets] == [(301, 51)]
    assert cf.steps_per_epoch(data, official, dataset.num_users) == 302 // 128
    assert cf.steps_per_epoch(data, official, 100) == 1  # fewer users than a batch
    rows = np.asarray(cf.batch_rows(jax.random.key(0), 301, 301, 2, official))
    assert rows.shape == (2, 128) and rows.max() < 301
    assert len(np.unique(rows)) < rows.size


@pytest.mark.parametrize(("loss", "width"), [("bce", 4), ("bce", 7), ("softmax", 4)])
def test_loss_matches_torch_at_every_width(loss, width):
    config = SASRecConfig(9, 8, 1, 1, 7, dropout=0.0)
    params = SASRec(config).init_params(jax.random.key(0))
    model = SASRec(config)
    # A user who has all items but the sixth, so that every negative is the sixth.
    items = np.array([1, 2, 3, 4, 5, 7, 8, 9])
    taken = jnp.asarray(items - 1 - np.arange(8), jnp.int32)
    tokens = np.zeros((2, width + 1), np.int32)
    tokens[0, -4:], tokens[1, -2:] = [3, 9, 1, 4], [7, 8]
    bucket = cf.Bucket(jnp.asarray(tokens), jnp.array([0, 0]), jnp.array([0, 0]), jnp.array([8, 8]))
    with jax.numpy_dtype_promotion("strict"):
        bucket_loss = jax.jit(cf.bucket_loss, static_argnums=(0, 1))
        total, count = bucket_loss(model, loss, params, bucket, taken, jax.random.key(1))

    inputs = np.zeros((2, 7), np.int32)
    inputs[0, -3:], inputs[1, -1:] = [3, 9, 1], [7]
    hidden = torch.tensor(np.asarray(model.apply({"params": params}, jnp.asarray(inputs)))[inputs > 0])
    table = torch.tensor(np.asarray(params["item_embedding"]))
    positives = torch.tensor([9, 1, 4, 8])
    if loss == "bce":
        bce = torch.nn.BCEWithLogitsLoss()
        scores = (hidden * table[positives]).sum(-1)
        expected = bce(scores, torch.ones(4)) + bce(hidden @ table[6], torch.zeros(4))
    else:
        expected = torch.nn.functional.cross_entropy(hidden @ table[1:].T, positives - 1)
    assert count == 4
    np.testing.assert_allclose(total / count, expected.item(), rtol=1e-5)  # float32 rounding of four terms


def test_epoch_donates_its_state_and_nothing_else(dataset):
    config = SASRecConfig(60, 16, 1, 1, 12, 0.1)
    params = SASRec(config).init_params(jax.random.key(0))
    state = TrainState(params, cf.make_optimizer(SETTINGS).init(params))
    data = cf.load_train_data(dataset, SETTINGS)
    cf.train_epoch(SASRec(config), SETTINGS, 10, state, data, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(data))


def test_it_learns_what_popularity_cannot(dataset, run):
    model = load_cf(run, dataset)
    users = dataset.users_with("test")
    histories, targets = dataset.history(users, "test", 12)
    rng = np.random.default_rng(1)
    negatives = [
        rng.choice(np.setdiff1d(np.arange(1, 61), dataset.sequence(user)), 19, replace=False) for user in users
    ]
    candidates = np.concatenate([targets[:, None], negatives], axis=1)

    def hits(scores):
        return np.all(scores[:, :1] > scores[:, 1:], axis=1).astype(float)

    difference = hits(np.asarray(model.score(users, histories, candidates))) - hits(dataset.train_count[candidates])
    error = difference.std() / np.sqrt(len(users))
    assert difference.mean() > 3 * error
    assert difference.mean() > 0.2


def test_export_is_the_chosen_epoch_at_every_cut(dataset, run):
    model = load_cf(run, dataset)
    best = json.loads((run / "best").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["valid/ndcg@10"] for line in lines if "valid/ndcg@10" in line}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    assert best["step"] == max(scores, key=scores.__getitem__) == json.loads((run / "DONE").read_text())["epoch"]
    arrays = load_cf(run / "export", dataset)
    assert isinstance(arrays, ArrayCF)
    np.testing.assert_array_equal(arrays.item_vectors(), model.item_vectors())
    for cut in ("train", "valid", "test"):
        users = dataset.users_with(cut)
        histories, _ = dataset.history(users, cut, 12)
        # Other widths of the same rows: rounding only.
        np.testing.assert_allclose(
            arrays.at(cut).user_vectors(users, histories), model.user_vectors(users, histories), atol=1e-5
        )
    evaluate = make_validation(SASRec(model.config), dataset, SETTINGS.validation, 0)
    found = evaluate(model.params)
    assert found == pytest.approx(best["metrics"], abs=1e-6)


def test_resume_ends_where_the_unbroken_run_does(dataset, run, tmp_path, monkeypatch):
    whole_epoch, started = cf.train_epoch, []

    def broken(*args):
        if len(started) == 7:
            raise KeyboardInterrupt
        started.append(args)
        return whole_epoch(*args)

    monkeypatch.setattr(cf, "train_epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        cf.train_cf(dataset, SETTINGS, 0, tmp_path, quiet=True)
    monkeypatch.setattr(cf, "train_epoch", whole_epoch)
    resumed = cf.train_cf(dataset, SETTINGS, 0, tmp_path, resume=True, quiet=True)
    assert resumed.name == run.name
    for file in ("export/params.safetensors", "export/users_test.npy", "best", "metrics.jsonl"):
        assert (resumed / file).read_bytes() == (run / file).read_bytes(), file


def test_a_finished_run_is_used_as_it_is(dataset, run, monkeypatch):
    monkeypatch.setattr(cf, "train_epoch", None)
    assert cf.train_cf(dataset, SETTINGS, 0, run.parents[2], quiet=True) == run


def test_best_or_last_epoch_is_exported(dataset, tmp_path, monkeypatch):
    whole_epoch = cf.train_epoch
    # The settings that differ decide nothing inside an epoch: no need to compile again.
    monkeypatch.setattr(cf, "train_epoch", lambda model, settings, *args: whole_epoch(model, SETTINGS, *args))
    falling = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(cf, "make_validation", lambda *_: lambda state: {"ndcg@10": next(falling)})

    def train(**changes):
        return cf.train_cf(dataset, dataclasses.replace(SETTINGS, **changes), 0, tmp_path, quiet=True)

    best = train(epochs=9, patience=1)
    last = train(epochs=2, choose="last")
    assert json.loads((best / "DONE").read_text())["epoch"] == json.loads((last / "DONE").read_text())["epoch"] == 2
    assert len((best / "metrics.jsonl").read_text().splitlines()) == 4, "one evaluation without improvement ends it"
    assert not (last / "best").exists()
    file = "export/params.safetensors"
    assert (best / file).read_bytes() == (last / file).read_bytes()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"buckets": 0}, {"evaluate_every": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(SETTINGS, **wrong)


@pytest.mark.parametrize(
    ("sequences", "items", "message"),
    [
        ([[1, 2, 3], [2, 3, 1]], 5, "two training items"),
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1, 2]], 5, "user 1 has met all 5 items"),
        ([[1, 2], [2, 3]], 5, "--choose last"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, sequences, items, message):
    tiny = make_dataset(tmp_path / "data", [np.array(row) for row in sequences], items)
    with pytest.raises(UserError, match=message):
        cf.train_cf(tiny, SETTINGS, 0, tmp_path / "checkpoints", quiet=True)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_batches_come_from_all_users(preset):
    settings = dataclasses.replace(CF_PRESETS["sasrec"][preset], batch_size=32)
    users, steps = 300, -(-300 // 32)
    rows = [np.asarray(cf.batch_rows(jax.random.key(seed), users, users, steps, settings)) for seed in range(20)]
    drawn = np.bincount(np.concatenate([each.ravel() for each in rows]), minlength=users)[:users]
    if preset == "paper":
        assert (drawn == 20).all()  # each user once in each of the 20 epochs
    else:
        # 20 x 320 draws among 300: each user 21 times, give or take 4.6; 5 deviations leave out one in a million.
        assert drawn.min() > 0 and drawn.max() < 21.3 + 5 * 4.6


def test_each_step_of_an_epoch_draws_its_own_negatives_and_dropout(dataset, monkeypatch):
    """The keys that the steps of an epoch hand to the loss, recorded: one for each step and bucket, none twice."""
    keys = []

    def recorded(model, loss, params, bucket, taken, key):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        # A loss that depends on the parameters, so that there is a gradient.
        return jnp.sum(params["item_embedding"]) * 0.0 + 1.0, jnp.ones(())

    monkeypatch.setattr(cf, "bucket_loss", recorded)
    settings = dataclasses.replace(SETTINGS, learning_rate=1.7e-3)  # a program of its own: no other test's is reused
    data = cf.load_train_data(dataset, settings)
    model = settings.module(dataset.num_users, dataset.num_items)
    params = model.init_params(jax.random.key(0))
    steps = cf.steps_per_epoch(data, settings, dataset.num_users)
    for epoch in range(2):
        state = TrainState(jax.tree.map(jnp.copy, params), cf.make_optimizer(settings).init(params))
        jax.block_until_ready(cf.train_epoch(model, settings, steps, state, data, jax.random.key(epoch)))
    jax.effects_barrier()
    assert len(keys) == 2 * steps * len(data.buckets) and len(set(keys)) == len(keys)


def test_negatives_and_dropout_follow_the_key(dataset):
    data = cf.load_train_data(dataset, SETTINGS)
    bucket = data.buckets[-1]
    model = SETTINGS.module(dataset.num_users, dataset.num_items)
    params = model.init_params(jax.random.key(0))
    for loss in ("bce", "softmax"):  # negatives and dropout, dropout alone
        values = [
            float(cf.bucket_loss(model, loss, params, bucket, data.free_below, jax.random.key(k))[0]) for k in (0, 0, 1)
        ]
        assert values[0] == values[1] != values[2]


def test_the_draws_that_runs_were_made_with(dataset):
    # Recorded: with others a run would be another one at the same identity.
    rows = cf.batch_rows(jax.random.key(3), 7, 10, 3, SETTINGS)
    assert rows.tolist() == [[0, 7, 1], [5, 4, 3], [6, 2, 7]]
    official = dataclasses.replace(SETTINGS, sampling="with-replacement", batch_size=4)
    assert cf.batch_rows(jax.random.key(3), 7, 10, 2, official).tolist() == [[3, 6, 4], [6, 3, 2]]
