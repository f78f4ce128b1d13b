"""What every system of an evaluation is asked: the same users, histories and candidates.

Shapes: B batch, T time, N items, U users.
"""

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from allmrec_jax.data.candidates import Candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.metrics import catalogue_ranks

HISTORY = 200
"""Items of history at most that a CF model is shown; it takes what it can read of them."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """What every system is asked: the same users, histories and candidates.

    Attributes:
        dataset: the data set.
        candidates: whose target to find, and among which items.
        known: whether its users are those of the training data; strangers are known by their histories alone.
        length: items of history that systems are told of each user, the last ones; ``None`` is all.
    """

    dataset: Dataset
    candidates: Candidates
    known: bool = True
    length: int | None = None

    def indices(self, rows: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"] | None:
        """What a CF model is told of who the users of some rows are."""
        return self.candidates.users[rows] if self.known else None

    @cached_property
    def histories(self) -> Int[np.ndarray, "U T"]:
        """What each user did before the target, left-padded with 0."""
        width = min(HISTORY, int(self.dataset.lengths.max()))
        histories = self.dataset.history(self.candidates.users, self.candidates.cut, width)[0]
        if self.length is not None:
            histories[:, : max(width - self.length, 0)] = 0
        return histories

    def catalogue_ranks(self, scores: Float[np.ndarray, "B N+1"], rows: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """Ranks of the targets of some ``rows`` by their scores of every item; all items met are left out."""
        users = self.candidates.users[rows]
        met, _ = self.dataset.history(users, self.candidates.cut, int(self.dataset.lengths[users].max()))
        return catalogue_ranks(scores, met, self.candidates.target[rows])
