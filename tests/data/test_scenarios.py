"""Who is trained on and who is asked: nobody asked about as a stranger was met in training."""

import dataclasses

import numpy as np
import pytest

from allmrec_jax.data import scenarios
from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import ColdUsers, load_dataset, write_dataset
from allmrec_jax.data.scenarios import cold_users, cross_domain, few_shot, overall
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import user_vectors
from allmrec_jax.evaluation.questions import Questions

USERS, ITEMS = 120, 45


def write(path, cold=0):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, USERS)
    kept = ColdUsers(
        np.concatenate([rng.permutation(ITEMS)[:3] + 1 for _ in range(cold)] or [np.zeros(0, int)]).astype(np.int32),
        3 * np.arange(cold + 1),
        [f"cold{user}" for user in range(cold)],
    )
    return write_dataset(
        path,
        name="Tiny",
        items=np.concatenate([rng.permutation(ITEMS)[:length] + 1 for length in lengths]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"Title {item}" for item in range(1, ITEMS + 1)],
        descriptions=[f"about {item}" for item in range(1, ITEMS + 1)],
        users_raw=[f"user{user}" for user in range(USERS)],
        cold_users=kept,
    )


def by_name(dataset):
    return {name: dataset.sequence(user).tolist() for user, name in enumerate(dataset.users_raw)}


def test_few_shot_trains_on_a_nested_sample_and_asks_about_all(tmp_path):
    dataset = write(tmp_path / "data")
    small, large = few_shot(dataset, 8), few_shot(dataset, 20)
    assert small.asked is dataset and not small.known
    assert small.trained.num_users == 8 and small.trained.num_items == ITEMS
    assert small.trained.titles == dataset.titles and small.trained.descriptions == dataset.descriptions
    everyone, few, more = by_name(dataset), by_name(small.trained), by_name(large.trained)
    assert all(everyone[name] == sequence for name, sequence in few.items()) and set(few) < set(more)
    assert min(map(len, few.values())) >= 3
    assert small.trained.hash != dataset.hash
    assert few_shot(dataset, 8, seed=1).trained.hash != small.trained.hash
    # Written once: the same directory is read again.
    stamp = (small.trained.path / "manifest.json").stat().st_mtime_ns
    assert few_shot(load_dataset(dataset.path), 8).trained.hash == small.trained.hash
    assert (small.trained.path / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="1000 users are to be trained on, but only"):
        few_shot(dataset, 1000)


def test_a_scenario_of_replaced_data_is_made_again(tmp_path):
    before = few_shot(write(tmp_path / "data"), 8).trained
    after = few_shot(write(tmp_path / "data", cold=3), 8).trained
    assert before.manifest["derived_from"] != after.manifest["derived_from"]


def test_cold_users_are_those_kept_apart(tmp_path):
    dataset = write(tmp_path / "data", cold=25)
    (where,) = cold_users(dataset)
    assert where.trained is dataset and not where.known and where.history is None
    assert dict(where.about) == {"scenario": "cold users", "simulated": False, "users": 25, "history": 2}
    assert all(each.about["simulated"] for each in cold_users(dataset, simulate=True))
    np.testing.assert_array_equal(where.asked.items, dataset.cold_users.items)
    asked = load_candidates(where.asked)
    np.testing.assert_array_equal(np.sort(asked.target), np.sort(dataset.cold_users.items[2::3]))
    histories = Questions(where.asked, asked, where.known).histories
    assert ((histories > 0).sum(axis=1) == 2).all()


def test_simulated_cold_users_are_in_no_training(tmp_path):
    dataset = write(tmp_path / "data", cold=2)
    where, *shorter = cold_users(dataset)
    eligible = len(dataset.users_with("test"))
    assert where.about["simulated"] and where.asked.num_users == eligible // 5
    everyone, trained, asked = by_name(dataset), by_name(where.trained), by_name(where.asked)
    assert not set(trained) & set(asked) and set(trained) | set(asked) == set(everyone)
    assert all(everyone[name] == sequence for name, sequence in trained.items())
    assert all(everyone[name][-3:] == sequence for name, sequence in asked.items())
    assert where.trained.train_count.sum() < dataset.train_count.sum()
    # The same questions, with histories cut to two items, one and none.
    candidates = load_candidates(where.asked)
    for each, length in zip([where, *shorter], (2, 1, 0), strict=True):
        assert each.trained.hash == where.trained.hash and each.asked.hash == where.asked.hash
        assert each.history == each.about["history"] == length and not each.known
        histories = Questions(each.asked, candidates, each.known, each.history).histories
        assert histories.min() >= 0
        assert ((histories > 0).sum(axis=1) == length).all()
        full = Questions(each.asked, candidates, each.known).histories
        np.testing.assert_array_equal(histories[histories > 0], full[:, full.shape[1] - length :].ravel())


def test_another_domain_has_no_item_of_the_first(tmp_path):
    dataset = write(tmp_path / "data")
    with pytest.raises(UserError, match="have 45 items in common"):
        cross_domain(dataset, dataset)
    target = dataclasses.replace(dataset, path=tmp_path / "other", name="Other")
    target.__dict__["items_raw"] = ["", *(f"other{item}" for item in range(ITEMS))]
    where = cross_domain(dataset, target)
    assert where.trained is dataset and where.asked is target and where.transferred and not where.known
    assert where.about["asked_on"]["name"] == "Other"


def test_too_small_data_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(scenarios, "ENOUGH", 50)
    with pytest.raises(UserError, match="too few to simulate any"):
        cold_users(write(tmp_path / "data", cold=3))


def test_strangers_are_told_by_their_histories_alone(tmp_path):
    dataset = write(tmp_path / "data")

    class Told:
        dim, seen = 2, []

        def at(self, cut):
            return self

        def user_vectors(self, users, items):
            self.seen.append(users)
            return np.zeros((len(items), 2))

    model = Told()
    asked = load_candidates(dataset)
    user_vectors(model, Questions(dataset, asked, known=overall(dataset).known))
    assert all(users is not None and set(users) <= set(asked.users) for users in model.seen)
    del model.seen[:]
    user_vectors(model, Questions(dataset, asked, known=few_shot(dataset, 8).known))
    assert model.seen and all(users is None for users in model.seen)
