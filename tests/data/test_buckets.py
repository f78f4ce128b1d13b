"""Histories in few shapes."""

import itertools

import numpy as np
import pytest

from allmrec_jax.data import buckets


@pytest.mark.parametrize("count", [2, 3])
def test_widths_waste_the_least(count):
    lengths = np.random.default_rng(count).integers(1, 12, 50)

    def cells(widths):
        return sum(min(width for width in widths if width >= length) for length in lengths)

    top = int(lengths.max())
    choices = [(*lower, top) for n in range(count) for lower in itertools.combinations(range(1, top), n)]
    widths = buckets.choose_widths(lengths, count, 20)
    assert len(widths) <= count and widths[-1] == top
    assert cells(widths) == min(map(cells, choices))
    assert buckets.choose_widths(lengths, 1, 20) == [20]


@pytest.mark.parametrize(
    ("users", "most"), [(7, 1), (buckets.EVALUATION_ROWS, 1), (buckets.EVALUATION_ROWS + 1, 3), (1500, 3)]
)
def test_batches_hold_each_user_once_in_few_shapes(users, most):
    rng = np.random.default_rng(0)
    histories = rng.integers(1, 99, (users, 20)) * (np.arange(20) >= rng.integers(0, 21, users)[:, None])
    met, shapes = [], set()
    for rows, part in buckets.bucketed(histories):
        shapes.add(part.shape)
        met += rows.tolist()
        width = part.shape[1]
        np.testing.assert_array_equal(part[: len(rows)], histories[rows, 20 - width :])
        assert not histories[rows, : 20 - width].any()
    assert sorted(met) == list(range(users)) and len(shapes) <= most
