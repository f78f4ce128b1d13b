"""Batches of stage 2: samples, the candidates shown with them, and the prompts that they are told in.

Shapes: B batch, T time, K candidates, P item slots of a prompt, D user vector.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.negatives import title_groups, training_negatives
from allmrec_jax.models.cf.protocol import CF_HISTORY, CFModel, require_live
from allmrec_jax.prompts import STYLES, PromptBatch, PromptTables, build_prompts
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.training.stage2_settings import Stage2Settings

ITEM_TOKENS = 3
"""Of an item in a history beside its title: quote, slot and comma."""


class PromptSamples(NamedTuple):
    """Samples with their candidates.

    Attributes:
        users: [B] user indices.
        histories: [B, T] items before the target, left-padded with 0.
        targets: [B] items.
        candidates: [B, K] items, the target among them.
    """

    users: Int[np.ndarray, "B"]
    histories: Int[np.ndarray, "B T"]
    targets: Int[np.ndarray, "B"]
    candidates: Int[np.ndarray, "B K"]


class Stage2Batch(NamedTuple):
    """A training batch; a pytree."""

    prompts: PromptBatch
    users: Float[Array, "B D"] | None


def pad_batch(batch: Stage2Batch, parts: int = 1) -> Stage2Batch:
    """A batch whose parts split evenly over the mesh in use: repeated rows without answer tokens are added."""
    count = len(batch.prompts.ids)
    rows = sharding.padded_rows(count, parts=parts)
    if len(rows) == count:
        return batch
    batch = jax.tree.map(lambda x: np.asarray(x)[rows % count], batch)
    mask = batch.prompts.target_mask * (rows < count)[:, None]
    return batch._replace(prompts=batch.prompts._replace(target_mask=mask.astype(np.float32)))


class Stage2Sampler:
    """Training batches: batch i depends on the seed and i only.

    Args:
        dataset: whose training sequences give the samples.
        cf: the frozen CF model; ``None`` where no prompt holds a user's vector.
        tables: of the language model and the data set's titles.
        settings: of the run.
        seed: of order, negatives, display order and CF dropout.

    Raises:
        UserError: there is nothing to train on, or the settings need a live CF model and this one is not.
    """

    def __init__(
        self, dataset: Dataset, cf: CFModel | None, tables: PromptTables, settings: Stage2Settings, seed: int
    ) -> None:
        self.dataset, self.tables, self.settings, self.seed = dataset, tables, settings, seed
        self.cf = None if cf is None else cf.at("train")
        if cf is not None:
            require_live(cf, settings.positions, settings.cf_train_mode)
        self.title_ids = title_groups(dataset.titles)
        self.users, self.places = dataset.training_targets(settings.positions)
        self.shapes: set[tuple[int, int]] = set()
        self.dropped = 0
        self.tokens_read = self.tokens_processed = 0
        self._title_tokens = np.diff(tables.titles.offsets)
        self._title_tokens[0] = 0
        self._widest_answer = int(self._title_tokens.max()) + len(tables.end)

    def __len__(self) -> int:
        return len(self.users)

    def draw(self, index: int, size: int, purpose: str = "stage2") -> PromptSamples:
        """Samples ``index * size`` and on, with candidates. Epochs follow each other without a gap."""
        dataset, settings = self.dataset, self.settings
        epochs, places = np.divmod(np.arange(index * size, (index + 1) * size), len(self))
        chosen = np.asarray([self._order(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])
        users, places = self.users[chosen], self.places[chosen]
        targets = dataset.items[dataset.offsets[users] + places]
        histories = dataset.items_before(users, places, max(CF_HISTORY, settings.history_length))

        rng = numpy_rng(self.seed, f"{purpose}/candidates", index)
        known = dataset.train_lengths[users]
        trained = dataset.items_before(users, known, int(known.max()))
        negatives = training_negatives(rng, trained, targets, self.title_ids, settings.candidates - 1)
        candidates = rng.permuted(np.concatenate([targets[:, None], negatives], axis=1), axis=1)
        return PromptSamples(users, histories, targets, candidates)

    def user_vectors(self, question: PromptSamples, key: jax.Array | None = None) -> Float[Array, "B D"]:
        """The CF model's user vectors before the targets; ``key`` leaves its dropout on."""
        if self.cf is None:
            raise ValueError("user vectors need a CF model")
        return self.cf.user_vectors(question.users, question.histories, key=key)

    def __call__(self, index: int) -> Stage2Batch:
        """Batch ``index``, 0-based, always full."""
        settings = self.settings
        question = self._sorted(index) if settings.sort_batches else self.draw(index, settings.batch_size)
        prompts = build_prompts(
            self.tables,
            STYLES[settings.style],
            question.histories[:, -settings.history_length :],
            question.candidates,
            question.targets,
            soft=True,
            user_slot=settings.user_vector,
            item_slots=settings.item_vectors != "none",
            answer_width=self._widest_answer,
        )
        self.shapes.add((prompts.ids.shape[1], prompts.targets.shape[1]))
        self.dropped += int(prompts.dropped.sum())
        self.tokens_read += int(prompts.lengths.sum())
        self.tokens_processed += prompts.ids.size
        vectors = None
        if settings.user_vector:
            key = jax_key(self.seed, "stage2/cf-dropout", index) if settings.cf_train_mode else None
            vectors = self.user_vectors(question, key)
        return pad_batch(
            Stage2Batch(prompts._replace(items=self.rows(prompts.items, index)), vectors), settings.accumulation
        )

    def _sorted(self, index: int) -> PromptSamples:
        """Batch ``index`` where batches in a row share out the samples drawn for all of them: neighbours in the titles'
        tokens come together, and the batches come in random order."""
        settings, size = self.settings, self.settings.batch_size
        group, place = divmod(index, settings.sort_batches)
        drawn, order = self._group(group)
        place = numpy_rng(self.seed, "stage2/sorted-batches", group).permutation(settings.sort_batches)[place]
        chosen = order[place * size : (place + 1) * size]
        return PromptSamples(*(field[chosen] for field in drawn))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a sampler lives as long as its run
    def _group(self, group: int) -> tuple[PromptSamples, Int[np.ndarray, "N"]]:
        """The samples of the batches of a group, and their order by the tokens that differ between prompts."""
        settings = self.settings
        drawn = self.draw(group, settings.sort_batches * settings.batch_size)
        histories = drawn.histories[:, -settings.history_length :]
        shown = np.concatenate([histories, drawn.candidates, drawn.targets[:, None]], axis=1)
        tokens = self._title_tokens[shown].sum(axis=1) + ITEM_TOKENS * np.count_nonzero(histories, axis=1)
        return drawn, np.argsort(tokens, kind="stable")

    def rows(self, items: Int[np.ndarray, "B P"], index: int, purpose: str = "stage2") -> Int[np.ndarray, "B P"]:
        """Rows of :attr:`Frozen.latents` for items; a share of them are those of the text latents."""
        if not self.settings.text_share:
            return items
        by_text = numpy_rng(self.seed, f"{purpose}/text-share", index).random(items.shape) < self.settings.text_share
        return np.where(by_text, items + len(self.dataset.titles), items).astype(np.int32)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a sampler lives as long as its run
    def _order(self, epoch: int) -> Int[np.ndarray, "N"]:
        return numpy_rng(self.seed, "stage2/order", epoch).permutation(len(self))
