"""Negatives: uniform over what a user has not met, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.data.negatives import (
    UniformNegatives,
    draw_distinct_free_items,
    draw_free_items,
    title_groups,
    training_negatives,
)
from allmrec_jax.errors import UserError

ITEMS = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Items 1 to 5 share a title but for case and white space; user 0 has met 19 of the 40 items."""
    rng = np.random.default_rng(0)
    sequences = [list(range(1, 20)), *(list(rng.permutation(ITEMS)[: rng.integers(2, 9)] + 1) for _ in range(59))]
    titles = ["The Same", "the same", "The  Same", "THE SAME ", "The\tSame", *(f"T{i}" for i in range(6, ITEMS + 1))]
    return write_dataset(
        tmp_path_factory.mktemp("data") / "toy",
        name="toy",
        items=np.concatenate([np.array(sequence, np.int32) for sequence in sequences]),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=titles,
        descriptions=["d"] * ITEMS,
    )


def uniform_over(counts: np.ndarray, free: list[int], draws: int) -> None:
    """Whether ``counts`` [N+1] of draws fall on ``free`` items alone, and evenly."""
    assert counts.sum() == counts[free].sum() == draws, "nothing met, no padding"
    # Five standard deviations of a multinomial count.
    assert np.abs(counts[free] - draws / len(free)).max() < 5 * np.sqrt(draws / len(free))


def test_one_negative_for_each_row(dataset: Dataset) -> None:
    negatives = UniformNegatives(dataset, dataset.train_lengths)
    drawn = negatives.draw(np.random.default_rng(0), np.zeros(20_000, np.int64))
    # Of the 19 items the last two are for validation and test, and may be drawn.
    uniform_over(np.bincount(drawn, minlength=ITEMS + 1), list(range(18, ITEMS + 1)), 20_000)


def test_a_user_who_has_met_everything_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    few = write_dataset(
        tmp_path_factory.mktemp("few"),
        name="few",
        items=np.array([1, 1, 2, 2, 1], np.int32),
        offsets=np.array([0, 2, 5]),
        titles=["A", "B"],
        descriptions=["", ""],
    )
    with pytest.raises(UserError, match="user 1 has all items"):
        UniformNegatives(few, few.lengths)
    many = write_dataset(
        tmp_path_factory.mktemp("many"),
        name="many",
        items=np.array([1, 2, 1, 2] * 10 + [1, 2, 3, 4], np.int32),
        offsets=np.array([*range(0, 41, 2), 44]),
        titles=["A", "B", "C", "D"],
        descriptions=[""] * 4,
    )
    with pytest.raises(UserError, match="user 20 has all items"):
        UniformNegatives(many, many.lengths)


def test_on_the_device() -> None:
    met = [[1, 2, 9], [5], [10]]
    below = np.concatenate([np.array(items) - 1 - np.arange(len(items)) for items in met])
    start, end = jnp.array([0, 3, 4]), jnp.array([3, 4, 5])
    drawn = np.asarray(draw_free_items(jax.random.key(0), jnp.asarray(below), start, end, 10, 20_000))
    for items, row in zip(met, drawn, strict=True):
        uniform_over(np.bincount(row, minlength=11), sorted(set(range(1, 11)) - set(items)), 20_000)


def test_distinct_ones() -> None:
    met = np.array([1, 2, 9])
    rng = np.random.default_rng(0)
    sets = [draw_distinct_free_items(rng, met, 10, 3) for _ in range(5000)]
    assert all(len(set(drawn.tolist())) == 3 for drawn in sets)
    uniform_over(np.bincount(np.concatenate(sets), minlength=11), [3, 4, 5, 6, 7, 8, 10], 15_000)


def test_training_negatives_may_be_validation_and_test_items(dataset):
    """Only the training history and the target are excluded: the two later items must turn up."""
    users = [user for user in dataset.users_with("train") if len(dataset.sequence(user)) >= 4]
    histories, targets = dataset.history(users, "train", 20)
    kinds = title_groups(dataset.titles)
    seen = [set() for _ in users]
    for step in range(60):
        negatives = training_negatives(np.random.default_rng(step), histories, targets, kinds, 19)
        for row, drawn in enumerate(negatives):
            assert len(set(kinds[drawn])) == 19
            assert not set(drawn.tolist()) & {*histories[row].tolist(), int(targets[row])}
            assert kinds[targets[row]] not in kinds[drawn]
            seen[row] |= set(drawn.tolist())
    later = [set(dataset.sequence(user)[-2:].tolist()) for user in users]
    drawable = [
        {item for item in items if kinds[item] != kinds[target]} for items, target in zip(later, targets, strict=True)
    ]
    assert all(items <= drawn for items, drawn in zip(drawable, seen, strict=True))


def test_training_negatives_too_few_items():
    with pytest.raises(UserError, match="leaves 18 items"):
        training_negatives(np.random.default_rng(0), np.array([[0, 1]]), np.array([2]), np.arange(21), 19)
