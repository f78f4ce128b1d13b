"""The product's draws, handed to the official code in place of its own.

Its samplers and its choice of candidates run as they are; only the generators that they ask answer what the product
drew. A negative that they reject makes them ask again, so that every draw after it is another's.

Shapes: B batch, T time, K candidates.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np

from allmrec_jax.parity import cases
from allmrec_jax.parity.reference import RefusedError


@contextlib.contextmanager
def _integers(values: Iterator[int]) -> Iterator[None]:
    """``np.random.randint`` answers with ``values``."""

    def randint(low: int, high: int) -> int:
        value = next(values, None)
        if value is None or not low <= value < high:
            raise RefusedError(f"the official code asks for a number of {low} to {high - 1}; it is given {value}")
        return value

    with mock.patch("numpy.random.randint", randint):
        yield


class _FullError(Exception):
    """A batch is there."""


class _Queue:
    """Takes one batch."""

    def put(self, batch: Any) -> None:
        self.batch = [np.asarray(part) for part in batch]
        raise _FullError


def sampled(
    sample_function: Callable[..., None], arguments: Sequence[Any], users: np.ndarray, negatives: np.ndarray
) -> cases.Sequences:
    """A batch of the official sampler of the CF model, which draws a user and then its negatives, the last one first.

    Raises:
        RefusedError: it rejects a user or a negative.
    """
    queue = _Queue()
    values = ([user, *(item for item in row[::-1] if item)] for user, row in zip(users, negatives, strict=True))
    waiting = (int(value) for value in itertools.chain.from_iterable(values))
    with _integers(waiting), mock.patch("numpy.random.seed"), contextlib.suppress(_FullError):
        sample_function(*arguments, queue, 0)
    if next(waiting, None) is not None:
        raise RefusedError("the official sampler draws fewer numbers")
    return cases.Sequences(*queue.batch)


def listed(data: Any, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
    """A batch of the official data set of the stages, which draws negatives for every position.

    Only the last position's are read: for the others any that it accepts are given.

    Raises:
        RefusedError: it rejects a negative.
    """
    rows = []
    for user, negative in zip(users, negatives, strict=True):
        met = set(data.user_train[user])
        free = next(item for item in range(1, data.num_item + 1) if item not in met)
        positions = min(len(data.user_train[user]) - 1, data.max_len)
        values = [int(negative) or free, *[free] * (positions - 1)]
        with _integers(iter(values)):
            rows.append(data[int(user) - 1])
    return cases.Sequences(*(np.stack(column) for column in zip(*rows, strict=True)))


@contextlib.contextmanager
def candidates(batch: cases.Sequences, shown: np.ndarray | None, items: int) -> Iterator[None]:
    """The official choice of candidates draws 50 negatives, keeps the first 19 and shuffles them with the target.

    Raises:
        RefusedError: there are none, or it rejects one.
    """
    if shown is None:
        raise RefusedError("no candidates were drawn")
    values: list[int] = []
    orders = []
    for sequence, positives, row in zip(batch.items, batch.positives, shown.tolist(), strict=True):
        target = int(positives[-1])
        ordered = [target, *(item for item in row if item != target)]
        orders.append(np.asarray([ordered.index(item) for item in row]))
        taken = {*sequence.tolist(), *ordered[1:]}
        others = [item for item in range(1, items + 1) if item not in taken]
        values += [*ordered[1:], *others[: 50 - len(ordered) + 1]]
    waiting = iter(orders)
    with (
        _integers(iter(values)),
        mock.patch.object(random, "shuffle", lambda items: None),
        mock.patch("numpy.random.permutation", lambda count: next(waiting)),
    ):
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators that the official code draws candidates from, where nothing was drawn for it."""
    random.seed(seed)
    np.random.seed(seed)
    yield
