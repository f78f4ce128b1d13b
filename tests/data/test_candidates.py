import contextlib
import dataclasses
import errno

import numpy as np
import pytest

from allmrec_jax.data import candidates
from allmrec_jax.data.candidates import (
    candidates_path,
    load_candidates,
    make_candidates,
)
from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.data.negatives import title_groups
from allmrec_jax.errors import UserError

USERS, ITEMS = 60, 40


def dataset_of(path, sequences: list[list[int]], titles: list[str]) -> Dataset:
    return write_dataset(
        path,
        name="toy",
        items=np.concatenate([np.array(sequence, np.int32) for sequence in sequences]),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=titles,
        descriptions=["d"] * len(titles),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Items 1..5 share a title but for case and white space; user 0 has used 19 of the 40 items."""
    rng = np.random.default_rng(0)
    sequences = [list(rng.permutation(ITEMS)[: rng.integers(2, 9)] + 1) for _ in range(USERS)]
    sequences[0] = list(range(1, 20))
    titles = ["The Same", "the same", "The  Same", "THE SAME ", "The\tSame"] + [f"T{i}" for i in range(6, ITEMS + 1)]
    return dataset_of(tmp_path_factory.mktemp("data") / "toy", sequences, titles)


@pytest.mark.parametrize("cut", ["valid", "test"])
def test_sets_follow_the_rules(dataset, cut):
    made = make_candidates(dataset, cut=cut)
    kinds = title_groups(dataset.titles)
    assert sorted(made.users) == list(dataset.users_with(cut))
    for user, target, shown in zip(made.users, made.target, made.candidates, strict=True):
        assert target == dataset.sequence(user)[-1 if cut == "test" else -2]
        negatives = set(shown.tolist()) - {target}
        assert len(negatives) == 19
        assert not negatives & set(dataset.sequence(user).tolist())
        assert len(set(kinds[shown])) == 20
        assert min(shown) >= 1
    assert np.array_equal(made.candidates[np.arange(len(made.users)), made.target_column], made.target)


def test_titles_that_differ_in_case_or_white_space_only_are_one(dataset):
    kinds = title_groups(dataset.titles)
    assert len(set(kinds[1:6])) == 1
    assert len(set(kinds)) == 1 + 1 + ITEMS - 5  # padding, the shared title, the others


def test_the_target_has_no_favourite_place(dataset):
    columns = np.concatenate([make_candidates(dataset, seed=seed).target_column for seed in range(40)])
    counts = np.bincount(columns, minlength=20)
    # chi-square with 19 degrees of freedom: its 99.9% point is 43.8; the seeds are fixed
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 43.8


def test_negatives_are_uniform(tmp_path):
    dataset = dataset_of(tmp_path / "d", [[1, 2, 3]], [f"T{i}" for i in range(1, 61)])
    counts = np.zeros(61)
    for seed in range(800):
        counts[make_candidates(dataset, seed=seed).candidates[0]] += 1
    assert counts[3] == 800 and counts[1] == counts[2] == 0
    drawn, expected = counts[4:], 800 * 19 / 57
    # draws without replacement vary less than the multinomial: the 99.9% chi-square point of 56 d.f. (94.5) is generous
    assert ((drawn - expected) ** 2 / expected).sum() < 94.5


def test_seed_decides_and_smaller_samples_begin_larger_ones(dataset):
    first, again, other = (make_candidates(dataset, seed=seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    some = make_candidates(dataset, max_users=10)
    assert np.array_equal(some.users, first.users[:10])
    assert some.sha256 != first.sha256


def test_the_draws_that_results_were_made_with(dataset, monkeypatch):
    # Recorded, of several chunks: other draws would compare new results with earlier ones on other questions.
    monkeypatch.setattr(candidates, "CHUNK", 25)
    made = make_candidates(dataset, seed=3)
    assert made.users[:5].tolist() == [39, 27, 29, 1, 26]
    assert made.sha256.startswith("6573e32253120a68")


def test_the_hash_is_of_all_that_decides_a_result(dataset):
    made = make_candidates(dataset)
    others = {"scenario": "x", "cut": "valid", "seed": 1} | {
        name: np.roll(getattr(made, name), 1, axis=-1) for name in ("users", "target", "candidates")
    }
    changed = [dataclasses.replace(made, **{name: value}) for name, value in others.items()]
    assert len({one.sha256 for one in [made, *changed]}) == 7


def test_file_is_written_once_and_reused(dataset):
    written = load_candidates(dataset, seed=3)
    path = candidates_path(dataset, "overall", "test", 3)
    assert path == dataset.path / "candidates" / "overall-3.npz"
    content = path.read_bytes()
    read = load_candidates(dataset, seed=3)
    assert read.sha256 == written.sha256 == make_candidates(dataset, seed=3).sha256
    assert path.read_bytes() == content
    assert load_candidates(dataset, seed=3, max_users=7).sha256 == written.head(7).sha256
    assert (read.cut, read.seed, read.scenario) == ("test", 3, "overall")


def test_damaged_or_foreign_file_is_refused(dataset, tmp_path):
    load_candidates(dataset, seed=4)
    path = candidates_path(dataset, "overall", "test", 4)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="overall-4"):
        load_candidates(dataset, seed=4)
    with np.load(candidates_path(dataset, "overall", "test", 3)) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "data_hash": np.array("feed")})
    with pytest.raises(UserError, match="drawn for data feed"):
        load_candidates(dataset, seed=4)
    np.savez(path, **{**arrays, "candidates": arrays["candidates"][:, ::-1]})
    with pytest.raises(UserError, match="SHA-256"):
        load_candidates(dataset, seed=4)


def test_numbers_of_another_type_or_shape_are_refused_though_their_hash_is_the_same(dataset):
    load_candidates(dataset, seed=9)
    path = candidates_path(dataset, "overall", "test", 9)
    with np.load(path) as file:
        arrays = dict(file)
    wide = arrays["candidates"].astype(np.int64) + (1 << 32)  # the same 32 bits, other items
    for changed in ({"candidates": wide}, {"users": arrays["users"][None]}, {"target": arrays["target"][:, None]}):
        np.savez(path, **{**arrays, **changed})
        with pytest.raises(UserError, match="SHA-256"):
            load_candidates(dataset, seed=9)


def test_too_few_items_is_a_user_error(tmp_path):
    dataset = dataset_of(tmp_path / "few", [[1, 2, 3]], [f"T{i}" for i in range(1, 22)])
    with pytest.raises(UserError, match=r"user 0 leaves 19 items .* 20 are needed"):
        make_candidates(dataset)
    enough = dataset_of(tmp_path / "enough", [[1, 2, 3]], [f"T{i}" for i in range(1, 23)])
    assert set(make_candidates(enough).candidates[0]) == set(range(3, 23))


def test_unknown_scenario_is_a_user_error(dataset):
    with pytest.raises(UserError, match="unknown scenario"):
        make_candidates(dataset, scenario="cold-users")


def test_a_data_set_that_cannot_be_written_to_is_drawn_for_each_time(dataset, monkeypatch, caplog):
    kept = make_candidates(dataset, seed=5)

    def refuse(code):
        @contextlib.contextmanager
        def refusing(path):
            raise UserError(f"cannot write {path}") from OSError(code, "refused")
            yield

        monkeypatch.setattr(candidates, "atomic_path", refusing)

    for code in (errno.EROFS, errno.EACCES):
        refuse(code)
        assert load_candidates(dataset, seed=5).sha256 == kept.sha256
    assert "read-only" in caplog.text and not candidates_path(dataset, "overall", "test", 5).exists()
    refuse(errno.ENOSPC)
    with pytest.raises(UserError, match="cannot write"):
        load_candidates(dataset, seed=5)


def test_items_without_titles_are_named_as_the_cause(tmp_path):
    data = dataset_of(tmp_path / "toy", [[1, 2, 3]] * 4, ["No Title"] * 30)
    with pytest.raises(UserError, match=r"30 of the 30 items have no title.*metadata that has titles"):
        make_candidates(data)
    half = dataset_of(tmp_path / "half", [[1, 2, 3]] * 4, ["No Title"] * 12 + [f"T{i}" for i in range(18)])
    with pytest.raises(UserError, match=r"; prepare a larger data set$"):
        make_candidates(half)


def test_what_a_kill_left_of_writing_them_goes(dataset):
    load_candidates(dataset, seed=7)
    path = candidates_path(dataset, "overall", "test", 7)
    holder = path.with_name(f".{path.name}.abcdefgh.tmp")
    holder.mkdir()
    (holder / "lock").touch()
    load_candidates(dataset, seed=7)
    assert not holder.exists()
