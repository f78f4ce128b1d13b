"""Negatives: items that a user has not met. Every training and evaluation draws them here.

Three ways, by what they are for:

* :class:`UniformNegatives` draws one item at a time on the host, by rejection.
* :func:`draw_free_items` draws on the device, and :func:`draw_distinct_free_items` on the host, without rejection: both
  draw a rank among the items that are free and find the item of that rank.
* :func:`draw_distinct_titles` draws whole sets for prompts, in which no two items show the same title.

Shapes: B batch, T time, K negatives, N items (1..N; 0 is padding), X excluded pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError


class UniformNegatives:
    """Uniform draws among the items that are not among a user's first so many.

    Args:
        dataset: whose users and items these are.
        lengths: how many of each user's items count as met, [U].

    Raises:
        UserError: a user has met every item.
    """

    def __init__(self, dataset: Dataset, lengths: Int[np.ndarray, "U"]) -> None:
        self.num_items = dataset.num_items
        owners = np.repeat(np.arange(dataset.num_users), dataset.lengths)
        inside = np.arange(len(owners)) - dataset.offsets[owners] < lengths[owners]
        self.keys = np.unique(owners[inside] * (self.num_items + 1) + dataset.items[inside])
        distinct = np.bincount(self.keys // (self.num_items + 1), minlength=1)
        if distinct.max() >= self.num_items:
            raise UserError(f"{dataset.path}: user {distinct.argmax()} has all items; none is left as a negative")

    def draw(self, rng: np.random.Generator, users: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """One negative for each of ``users``, which may repeat."""
        items = rng.integers(1, self.num_items + 1, len(users))
        while len(again := np.flatnonzero(_contains(self.keys, users * (self.num_items + 1) + items))):
            items[again] = rng.integers(1, self.num_items + 1, len(again))
        return items


def draw_free_items(
    key: jax.Array, below: Int[Array, "total"], start: Int[Array, "B"], end: Int[Array, "B"], num_items: int, time: int
) -> Int[Array, "B T"]:
    """Uniform draws, with repetition, among the items that each user is free of, on the device and without rejection.

    The free item of rank r (from 0) is r + 1 + (met items before it), and that count is found by bisection.

    Args:
        key: of the draw.
        below: user by user, for each of their items, distinct and ascending, how many items below it are free.
        start: where each user's part of ``below`` begins …
        end: … and where it ends.
        num_items: N.
        time: T, how many to draw for each user.
    """
    free = num_items - (end - start)
    rank = jax.random.randint(key, (len(start), time), 0, free[:, None])
    low, high = (jnp.broadcast_to(bound[:, None], rank.shape) for bound in (start, end))
    for _ in range(num_items.bit_length()):
        middle = (low + high) // 2
        before = (low < high) & (below[jnp.minimum(middle, len(below) - 1)] <= rank)
        low, high = jnp.where(before, middle + 1, low), jnp.where(before | (low >= high), high, middle)
    return rank + 1 + low - start[:, None]


def draw_distinct_free_items(
    rng: np.random.Generator, met: Int[np.ndarray, "M"], num_items: int, count: int
) -> Int[np.ndarray, "K"]:
    """``count`` different items that a user is free of; ``met`` are the user's, distinct and ascending."""
    rank = rng.choice(num_items - len(met), count, replace=False)
    return rank + 1 + np.searchsorted(met - 1 - np.arange(len(met)), rank, side="right")


def title_groups(titles: list[str]) -> Int[np.ndarray, "N+1"]:
    """A number per item, equal for items whose titles differ in case or white space only."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(" ".join(title.casefold().split()), len(numbers)) for title in titles])


def training_negatives(
    rng: np.random.Generator,
    histories: Int[np.ndarray, "B T"],
    targets: Int[np.ndarray, "B"],
    title_ids: Int[np.ndarray, "N+1"],
    count: int,
) -> Int[np.ndarray, "B K"]:
    """Uniform negatives for stage 2: distinct titles, none of the training history, none under the target's title.

    Args:
        rng: of the draw.
        histories: the *training* items of each row, padded with 0. Validation and test items must not be excluded, for
            leaving them out would mark them.
        targets: the item to find in each row.
        title_ids: from :func:`title_groups`.
        count: K, negatives of each row.

    Raises:
        UserError: fewer than ``count`` items are left for a row.
    """
    batch, time = histories.shape
    try:
        return draw_distinct_titles(
            rng, np.repeat(np.arange(batch), time), histories.ravel(), targets, title_ids, count
        )
    except TooFewItems as few:
        raise UserError(
            f"a training user leaves {few.usable} items with distinct titles as negatives, {count} are needed; "
            "prepare a larger data set"
        ) from None


class TooFewItems(Exception):
    """A row of :func:`draw_distinct_titles` leaves only ``usable`` items."""

    def __init__(self, row: int, usable: int):
        super().__init__(f"row {row} leaves {usable} items")
        self.row, self.usable = row, usable


def draw_distinct_titles(
    rng: np.random.Generator,
    excluded_rows: Int[np.ndarray, "X"],
    excluded_items: Int[np.ndarray, "X"],
    targets: Int[np.ndarray, "B"],
    title_ids: Int[np.ndarray, "N+1"],
    count: int,
) -> Int[np.ndarray, "B K"]:
    """Items drawn one after the other, uniformly among those still allowed (by rejection, so no loop over users).

    Args:
        rng: of the draw.
        excluded_rows: with ``excluded_items`` the pairs of row and item that may not be drawn.
        excluded_items: see there.
        targets: of each row: no item under the target's title is drawn.
        title_ids: from :func:`title_groups`: no two items of a row share a title.
        count: K, items of each row.

    Raises:
        TooFewItems: fewer than ``count`` items are left for a row.
    """
    num_items = len(title_ids) - 1
    excluded = np.unique(excluded_rows.astype(np.int64) * (num_items + 1) + excluded_items)
    drawn = rng.integers(1, num_items + 1, size=(len(targets), 2 * count + 16))
    allowed = ~_contains(excluded, np.arange(len(targets))[:, None] * (num_items + 1) + drawn)
    allowed &= title_ids[drawn] != title_ids[targets][:, None]
    allowed &= _first_of_its_kind(np.where(allowed, title_ids[drawn], -1))
    enough = allowed.sum(axis=1) >= count
    first = np.argsort(~allowed, axis=1, kind="stable")[:, :count]
    negatives = np.take_along_axis(drawn, first, axis=1)
    for row in np.flatnonzero(~enough):  # a small catalogue or a long history: permute what this row may have
        left = np.setdiff1d(np.arange(1, num_items + 1), excluded_items[excluded_rows == row])
        left = rng.permutation(left[title_ids[left] != title_ids[targets[row]]])
        left = left[_first_of_its_kind(title_ids[left][None])[0]]
        if len(left) < count:
            raise TooFewItems(int(row), len(left))
        negatives[row] = left[:count]
    return negatives


def _contains(sorted_keys: np.ndarray, keys: np.ndarray) -> Bool[np.ndarray, "..."]:
    if not len(sorted_keys):
        return np.zeros(keys.shape, bool)
    return sorted_keys[np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)] == keys


def _first_of_its_kind(kinds: Int[np.ndarray, "B M"]) -> Bool[np.ndarray, "B M"]:
    """True where no earlier column of the row holds the same number."""
    order = np.argsort(kinds, axis=1, kind="stable")
    ordered = np.take_along_axis(kinds, order, axis=1)
    new = np.ones(kinds.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first
