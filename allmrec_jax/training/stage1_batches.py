"""Batches of stage 1: samples of users, and the CF vectors and texts of the items that they name.

Shapes: B users, M distinct items, T tokens, A parts of a batch, D CF width, W text width, N items.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.negatives import UniformNegatives
from allmrec_jax.models.cf.protocol import CF_HISTORY, CFModel, require_live
from allmrec_jax.models.text_encoder import TokenTable
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.training.stage1_settings import Stage1Settings


class Stage1Batch(NamedTuple):
    """A batch, or the part of one that is computed at a time; in a :class:`Stage1Sampler`'s batch with a leading A.

    ``ids`` and ``lengths`` are the tokens of the distinct items, or ``ids`` is ``None`` and ``texts`` holds their
    vectors, where the encoder is frozen.
    """

    items: Float[Any, "M D"]
    ids: Int[Any, "M T"] | None
    lengths: Int[Any, " M"] | None
    texts: Float[Any, "M W"] | None
    users: Float[Any, "B D"]
    positives: Int[Any, " B"]
    negatives: Int[Any, " B"]
    weights: Float[Any, " B"]


class Catalogue(NamedTuple):
    """What is known of each item: the CF vector, and tokens or, for a frozen encoder, the sentence vector."""

    items: Float[np.ndarray, "N+1 D"]
    tokens: TokenTable
    texts: Float[np.ndarray, "N+1 W"] | None

    def part(
        self, users: np.ndarray, positives: np.ndarray, negatives: np.ndarray, weights: np.ndarray, length: int
    ) -> Stage1Batch:
        """The arrays of some samples; M grows in steps of half the number of samples, for few compiled shapes, and
        the mesh in use divides it.

        Args:
            positives: item of each sample.
            negatives: another one.
            length: of the tokens, enough for all of these items.
        """
        distinct, rows = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
        grain = len(sharding.padded_rows(max(len(positives) // 2, 1), sharding.AXES))
        distinct = np.pad(distinct, (0, -len(distinct) % grain))
        ids, lengths = self.tokens.take(distinct, length) if self.texts is None else (None, None)
        return Stage1Batch(
            items=self.items[distinct],
            ids=ids,
            lengths=lengths,
            texts=None if self.texts is None else self.texts[distinct],
            users=users,
            positives=rows[: len(positives)].astype(np.int32),
            negatives=rows[len(positives) :].astype(np.int32),
            weights=weights.astype(np.float32),
        )


class Stage1Sampler:
    """Training batches: batch i depends on the seed and i only.

    Raises:
        UserError: there is nothing to train on, or the settings need a live CF model and this one is not.
    """

    def __init__(
        self, dataset: Dataset, cf: CFModel, catalogue: Catalogue, settings: Stage1Settings, seed: int
    ) -> None:
        require_live(cf, settings.positions, settings.cf_train_mode)
        self.dataset, self.cf, self.catalogue = dataset, cf.at("train"), catalogue
        self.settings, self.seed = settings, seed
        self.users, self.places = dataset.training_targets(settings.positions)
        self.negatives = UniformNegatives(dataset, dataset.train_lengths)
        self.steps_per_epoch = math.ceil(len(self.users) / settings.batch_size)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, index: int) -> Stage1Batch:
        """Batch ``index``, 0-based, in A parts; the last one of an epoch is filled up with samples of weight 0."""
        settings, size = self.settings, self.settings.batch_size
        epoch, place = divmod(index, self.steps_per_epoch)
        chosen = self._order(epoch)[place * size : (place + 1) * size]
        weights = np.arange(size) < len(chosen)
        chosen = np.resize(chosen, size)
        users, places = self.users[chosen], self.places[chosen]
        histories = self.dataset.items_before(users, places, CF_HISTORY)
        key = jax_key(self.seed, "stage1/cf-dropout", index) if settings.cf_train_mode else None
        vectors = np.asarray(self.cf.user_vectors(users, histories, key=key))
        positives = self.dataset.items[self.dataset.offsets[users] + places]
        negatives = self.negatives.draw(numpy_rng(self.seed, "stage1/negatives", index), users)

        length = self.catalogue.tokens.bucket(np.concatenate([positives, negatives]))
        # From `size` on these are repeats, which fill up what the mesh in use divides.
        numbers = sharding.padded_rows(size, sharding.AXES, settings.accumulation)
        weights = weights[numbers % size] & (numbers < size)
        vectors, positives, negatives = (array[numbers % size] for array in (vectors, positives, negatives))
        rows = np.split(np.arange(len(numbers)), settings.accumulation)
        batch = _stack([self.catalogue.part(vectors[r], positives[r], negatives[r], weights[r], length) for r in rows])
        self.shapes.add((*batch.items.shape, length))
        return batch

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a sampler lives as long as its run
    def _order(self, epoch: int) -> Int[np.ndarray, "samples"]:
        if not self.settings.shuffle:
            return np.arange(len(self.users))
        return numpy_rng(self.seed, "stage1/order", epoch).permutation(len(self.users))


def _stack(parts: Sequence[Stage1Batch]) -> Stage1Batch:
    """Parts under each other; those with fewer distinct items are padded with rows that nothing refers to."""
    rows = max(len(part.items) for part in parts)

    def padded(name: str, arrays: Sequence[np.ndarray | None]) -> Any:
        present = [array for array in arrays if array is not None]
        if not present:
            return None
        if name in ("items", "ids", "lengths", "texts"):
            present = [np.resize(array, (rows, *array.shape[1:])) for array in present]
        return np.stack(present)

    return Stage1Batch(**{name: padded(name, [getattr(part, name) for part in parts]) for name in Stage1Batch._fields})
