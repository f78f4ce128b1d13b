"""What every system is told of the users it is asked about."""

import numpy as np
import pytest

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.evaluation.questions import Questions

ITEMS = 270


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A user of 240 items and two of few."""
    sequences = [np.arange(1, 241), np.array([7, 8, 9, 10]), np.array([4, 5, 6])]
    return write_dataset(
        tmp_path_factory.mktemp("data") / "toy",
        name="toy",
        items=np.concatenate(sequences).astype(np.int32),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"T{item}" for item in range(1, ITEMS + 1)],
        descriptions=[""] * ITEMS,
    )


@pytest.fixture(scope="module")
def asked(dataset):
    return load_candidates(dataset)


def by_user(questions):
    return {
        int(user): row[np.flatnonzero(row)[0] :].tolist() if row.any() else []
        for user, row in zip(questions.candidates.users, questions.histories, strict=True)
    }


def test_histories_are_what_came_before_the_target(dataset, asked):
    told = Questions(dataset, asked)
    assert told.histories.shape == (3, 200) and told.histories.min() == 0
    assert by_user(told) == {0: list(range(40, 240)), 1: [7, 8, 9], 2: [4, 5]}


@pytest.mark.parametrize("length", [0, 1, 2, 3, 199, 200, 500])
def test_a_length_keeps_the_last_items(dataset, asked, length):
    whole, cut = by_user(Questions(dataset, asked)), Questions(dataset, asked, length=length)
    assert cut.histories.min() == 0
    assert by_user(cut) == {user: items[max(len(items) - length, 0) :] for user, items in whole.items()}


def test_users_are_known_unless_said_otherwise(dataset, asked):
    rows = np.array([2, 0])
    np.testing.assert_array_equal(Questions(dataset, asked).indices(rows), asked.users[rows])
    assert Questions(dataset, asked, known=False).indices(rows) is None


def test_ranks_among_all_items_leave_out_what_was_met(dataset, asked):
    row = np.flatnonzero(asked.users == 1)
    scores = np.zeros((1, ITEMS + 1))
    scores[0, [7, 8, 9]], scores[0, 10], scores[0, [20, 21]] = 9.0, 5.0, 7.0
    assert Questions(dataset, asked).catalogue_ranks(scores, row).tolist() == [3]
