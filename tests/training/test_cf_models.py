"""Every CF model learns what is planted, finds nothing where nothing is, and loads as what was trained."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from allmrec_jax import settings as settings_module
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.gru4rec import GRU4RecSettings
from allmrec_jax.models.cf.ncf import NCFSettings
from allmrec_jax.models.cf.nextitnet import NextItNetSettings
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRecSettings
from allmrec_jax.training import cf

COMMON: dict[str, Any] = dict(
    dim=16, max_length=6, learning_rate=1e-2, batch_size=64, epochs=12, buckets=1, evaluate_every=4, patience=0,
    validation_negatives=20,
)  # fmt: skip
MODELS = {
    "sasrec": SASRecSettings(blocks=1, dropout=0.4, **COMMON),
    "nextitnet": NextItNetSettings(repeats=1, dilations="1", **COMMON),
    "gru4rec": GRU4RecSettings(hidden=24, dropout=0.1, **COMMON),
    "ncf": NCFSettings(hidden=16, **COMMON),
}
GROUPS, SIZE = 4, 20


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_dataset(path, shuffled):
    """400 users, each of whom walks through the 20 items of one of four groups, mostly one step at a time.

    Groups differ in users, so that popularity is known well and no ranking by it is a matter of luck.

    Shuffled, each interaction's item is drawn anew from all of them: only popularity is left. (Dealt out without
    replacement, an item met often in training would be met less often in the test.)
    """
    rng = np.random.default_rng(0)
    sequences = []
    for group in rng.choice(GROUPS, 400, p=[0.45, 0.3, 0.15, 0.1]):
        steps = rng.choice([1, 2, 3], size=rng.integers(9, 13), p=[0.8, 0.15, 0.05])
        sequences.append((rng.integers(0, 6) + np.cumsum(steps)) % SIZE + 1 + SIZE * group)
    items = np.concatenate(sequences)
    return write_dataset(
        path,
        name="groups",
        items=rng.choice(items, len(items)) if shuffled else items,
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"item {item}" for item in range(1, GROUPS * SIZE + 1)],
        descriptions=[""] * GROUPS * SIZE,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("planted"), shuffled=False)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("shuffled"), shuffled=True)


def excess(dataset, run):
    """Hit@1 over popularity's, among the test item and 19 others, none of them met before, and its standard error."""
    model, users = load_cf(run, dataset), dataset.users_with("test")
    # A target that repeats would be known by having been met: no negative has.
    users = np.array([user for user in users if dataset.sequence(user)[-1] not in dataset.sequence(user)[:-1]])
    histories, targets = dataset.history(users, "test", 6)
    rng = np.random.default_rng(1)
    everything = np.arange(1, dataset.num_items + 1)
    negatives = [rng.choice(np.setdiff1d(everything, dataset.sequence(user)), 19, replace=False) for user in users]
    candidates = np.concatenate([targets[:, None], negatives], axis=1)

    def hits(scores):
        return np.all(scores[:, :1] > scores[:, 1:], axis=1).astype(float)

    # Popularity's ties are broken at random, as a model's never arise.
    popularity = dataset.train_count[candidates] + rng.random(candidates.shape)
    difference = hits(np.asarray(model.score(users, histories, candidates))) - hits(popularity)
    return difference.mean(), difference.std() / np.sqrt(len(users))


@pytest.mark.parametrize("name", list(MODELS))
def test_it_beats_popularity_where_something_is_planted(name, planted, tmp_path):
    run = cf.train_cf(planted, MODELS[name], 0, tmp_path, quiet=True)
    gain, error = excess(planted, run)
    assert gain > 3 * error
    assert load_cf(run, planted).dim == (32 if name == "ncf" else 16)


@pytest.mark.parametrize("name", list(MODELS))
def test_it_finds_nothing_in_shuffled_interactions(name, shuffled, tmp_path):
    gain, error = excess(shuffled, cf.train_cf(shuffled, MODELS[name], 0, tmp_path, quiet=True))
    assert abs(gain) < 2 * error


@pytest.mark.parametrize("name", ["gru4rec", "ncf"])
def test_full_softmax_trains(name, planted, tmp_path):
    settings = dataclasses.replace(MODELS[name], loss="softmax", epochs=6, evaluate_every=6)
    gain, error = excess(planted, cf.train_cf(planted, settings, 0, tmp_path, quiet=True))
    assert gain > 3 * error


def test_ncf_trains_on_every_training_item_of_every_user(planted):
    settings = dataclasses.replace(MODELS["ncf"], max_length=50)
    data = cf.load_train_data(planted, settings)
    pairs = [
        (user, item)
        for bucket in data.buckets
        for user, row in zip(np.asarray(bucket.users), np.asarray(bucket.tokens), strict=True)
        for item in row[row > 0]
    ]
    expected = [(user, item) for user in range(planted.num_users) for item in planted.train_sequence(user)]
    assert sorted(pairs) == sorted(expected)


def test_identities_of_sasrec_runs_are_what_they_were():
    """Runs of format version 2 are found again: no setting of theirs was renamed, added or dropped."""
    identity = {
        name: settings_module.identity("cf", preset, 0, "data", {})[:12]
        for name, preset in CF_PRESETS["sasrec"].items()
    }
    assert identity == {"paper": "371ef2a188ae", "official": "99e9e06b79d5", "small": "e125dda89d60"}


@pytest.mark.parametrize("name", list(CF_PRESETS))
def test_presets_have_what_the_paper_says(name):
    paper = CF_PRESETS[name]["paper"]
    assert (paper.model, paper.dim, paper.batch_size, paper.loss) == (name, 50, 128, "bce")


def test_a_setting_of_another_model_is_refused():
    with pytest.raises(UserError, match=r"unknown setting 'heads'.*hidden"):
        settings_module.resolve(CF_PRESETS["gru4rec"], "paper", {"heads": 2})
    with pytest.raises(UserError, match="unknown preset 'official'; known: paper, small"):
        settings_module.resolve(CF_PRESETS["ncf"], "official")
