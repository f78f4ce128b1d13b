"""The product's draws in place of the official code's own, with samplers that ask as that does."""

import random

import numpy as np
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.parity import cases, official_defaults, official_draws
from allmrec_jax.parity.reference import RefusedError

MET = {1: [1, 2, 3], 2: [4, 5]}


def free(met):
    item = np.random.randint(1, 10)
    while item in met:
        item = np.random.randint(1, 10)
    return item


def sampler(size, queue, seed):
    """A user and then a negative for each item but the first, the last one first."""
    np.random.seed(seed)
    while True:
        rows = []
        for _ in range(size):
            user = np.random.randint(1, 3)
            negatives = np.zeros(4, np.int32)
            for place in range(3, 4 - len(MET[user]), -1):
                negatives[place] = free(MET[user])
            rows.append((user, np.arange(4), np.arange(4), negatives))
        queue.put(zip(*rows, strict=True))


def test_a_sampler_draws_what_it_is_given():
    negatives = np.asarray([[0, 0, 0, 9], [0, 0, 8, 7]])
    batch = official_draws.sampled(sampler, (2,), np.asarray([2, 1]), negatives)
    assert batch.users.tolist() == [2, 1] and batch.negatives.tolist() == negatives.tolist()


@pytest.mark.parametrize("negatives", [[[0, 0, 0, 4]], [[0, 0, 6, 7]], [[0, 0, 0, 10]]])
def test_a_sampler_refuses_what_it_would_not_draw(negatives):
    with pytest.raises(RefusedError):
        official_draws.sampled(sampler, (1,), np.asarray([2]), np.asarray(negatives))


class Data:
    user_train, num_item, max_len = MET, 9, 4

    def __getitem__(self, index):
        met = MET[index + 1]
        negatives = np.zeros(4, np.int32)
        for place in range(3, 4 - len(met), -1):
            negatives[place] = free(met)
        return index + 1, np.arange(4), np.arange(4), negatives


def test_the_stages_data_takes_the_last_negative():
    batch = official_draws.listed(Data(), np.asarray([1, 2]), np.asarray([7, 0]))
    assert batch.negatives[:, -1].tolist() == [7, 1], "0 is any that the user has not met"
    with pytest.raises(RefusedError):
        official_draws.listed(Data(), np.asarray([2]), np.asarray([5]))


def test_candidates_come_in_the_order_shown():
    shown = np.asarray([[30, 12, 5, 41]])
    items = np.asarray([[0, 1, 2]])
    batch = cases.Sequences(np.asarray([1]), items, np.asarray([[1, 2, 5]]), items)
    with official_draws.candidates(batch, shown, 60):
        drawn = []
        while len(drawn) < 50:
            item = np.random.randint(1, 61)
            assert item not in (1, 2) and item not in drawn
            drawn.append(item)
        random.shuffle(drawn)
        order = np.random.permutation(4)
    assert np.asarray([5, *drawn[:3]])[order].tolist() == shown[0].tolist()


def test_defaults_are_read_and_missing_ones_named(tmp_path):
    (tmp_path / "main.py").write_text("parser.add_argument('--lr', default=0.001)\nx = 3\n")
    program = official_defaults._Program(tmp_path / "main.py")
    assert program.option("lr") == 0.001 and program.variable("x") == 3
    with pytest.raises(UserError, match="has no option --batch_size: not the official repository"):
        program.option("batch_size")
    files = dict.fromkeys(("pretraining", "arguments", "training", "model"), "main.py")
    with pytest.raises(UserError, match="not the official repository"):
        official_defaults.read(tmp_path, files)
