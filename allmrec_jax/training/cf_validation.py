"""Validation of CF models in training: the validation item among negatives that the user has never met.

Shapes: B batch, T time, K candidates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.buckets import EVALUATION_ROWS, bucketed
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.negatives import draw_distinct_free_items
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.architecture import Trainable, ValidationSettings
from allmrec_jax.rng import numpy_rng


class ValidationBatch(NamedTuple):
    """Users of one width; empty rows have weight 0."""

    histories: Int[Array, "B T"]
    users: Int[Array, "B"]
    candidates: Int[Array, "B K"]
    """The validation item first."""
    weight: Float[Array, "B"]


def load_validation(dataset: Dataset, settings: ValidationSettings, seed: int) -> list[ValidationBatch]:
    """A seeded sample of users, each with the validation item and items that the user has never met.

    Raises:
        UserError: no user has a validation item.
    """
    rng = numpy_rng(seed, "cf-validation")
    users = dataset.users_with("valid")
    if not len(users):
        raise UserError(f"{dataset.path}: no user has three items, so there is no validation item; use --choose last")
    if len(users) > settings.users:
        users = np.sort(rng.choice(users, settings.users, replace=False))
    met = [np.unique(dataset.sequence(user)) for user in users]
    count = min(settings.negatives, dataset.num_items - max(len(items) for items in met))
    if count < 1:
        raise UserError(f"{dataset.path}: a user has met every item: no negative is left for validation")
    histories, targets = dataset.history(users, "valid", settings.max_length)
    candidates = np.empty((len(users), 1 + count), np.int32)
    candidates[:, 0] = targets
    for row, items in zip(candidates, met, strict=True):
        row[1:] = draw_distinct_free_items(rng, items, dataset.num_items, count)

    batches = []
    for chosen, part in bucketed(histories):
        rows = np.resize(chosen, EVALUATION_ROWS)
        weight = np.arange(EVALUATION_ROWS) < len(chosen)
        batches.append(
            ValidationBatch(*map(jnp.asarray, (part, users[rows], candidates[rows], weight.astype(np.float32))))
        )
    return batches


@partial(jax.jit, static_argnums=0)
def _validate(model: Trainable, params: Any, batch: ValidationBatch) -> dict[str, Float[Array, ""]]:
    users = model.states(params, batch.users, batch.histories, None)[:, -1:]
    scores = model.scores(params, users, batch.candidates, None)
    return candidate_metrics(scores, batch.weight)


def candidate_metrics(scores: Float[Array, "B K"], weight: Float[Array, "B"]) -> dict[str, Float[Array, ""]]:
    """Weighted sums over users of Hit@1, Hit@10 and NDCG@10 of the first candidate among all."""
    # A negative that ties with the target counts as before it, so that constant scores earn nothing.
    rank = jnp.sum(scores[:, 1:] >= scores[:, :1], axis=1)
    gain = 1 / jnp.log2(rank.astype(jnp.float32) + 2)
    metrics = {"hit@1": jnp.where(rank < 1, 1.0, 0.0), "hit@10": jnp.where(rank < 10, 1.0, 0.0)}
    metrics["ndcg@10"] = jnp.where(rank < 10, gain, 0.0)
    return {name: jnp.sum(value * weight) for name, value in metrics.items()}


def make_validation(
    model: Trainable, dataset: Dataset, settings: ValidationSettings, seed: int
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters to Hit@1, Hit@10 and NDCG@10 among the validation item and its negatives."""
    batches = [sharding.place(batch) for batch in load_validation(dataset, settings, seed)]
    users = sum(float(batch.weight.sum()) for batch in batches)

    def evaluate(params: Any) -> dict[str, float]:
        parts = jax.device_get([_validate(model, params, batch) for batch in batches])
        return {name: float(sum(part[name] for part in parts)) / users for name in parts[0]}

    return evaluate
