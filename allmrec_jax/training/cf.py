"""Training of collaborative-filtering models: data, sampling and whole epochs on the device, one jitted function.

A step of the shared loop is one epoch. Users lie on the device in length buckets; an epoch shuffles each bucket and
every batch takes the same share of each, so that shapes are fixed, no user is seen twice, and a batch has the mix of
lengths that the data has. A bucket of width L gives the same loss as width 50, dropout included but for which random
numbers are drawn (see :mod:`allmrec_jax.models.cf.sasrec`).

Shapes: B batch, T time, D model, N items, U users, S steps of an epoch.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.buckets import bucketed, choose_widths
from allmrec_jax.data.dataset import CUTS, Dataset
from allmrec_jax.data.negatives import draw_free_items
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, save_arrays, write_text
from allmrec_jax.models.cf.architecture import CFSettings, Trainable
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.models.cf.registry import CF_MODELS
from allmrec_jax.progress import announce
from allmrec_jax.rng import jax_key
from allmrec_jax.runs import Run
from allmrec_jax.training.cf_validation import make_validation
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import TrainingRun
from allmrec_jax.training.state import TrainState


class Bucket(NamedTuple):
    """Training users whose histories fit one width."""

    tokens: Int[Array, "U L+1"]
    """Training items, left-padded: all but the last column is the input, all but the first the targets."""
    users: Int[Array, "U"]
    """Their indices in the data set."""
    start: Int[Array, "U"]
    """Where the user's part of :attr:`TrainData.free_below` begins …"""
    end: Int[Array, "U"]
    """… and ends."""


class TrainData(NamedTuple):
    """Everything that an epoch reads, on the device."""

    buckets: tuple[Bucket, ...]
    free_below: Int[Array, "total"]
    """For each training item of each user, how many items below it the user has not got."""


def load_train_data(dataset: Dataset, settings: CFSettings) -> TrainData:
    """The users with something to learn from, in buckets: two training items, or one where no history is read.

    Raises:
        UserError: there are none, or one of them has met every item, so that no negative is left.
    """
    counts = dataset.train_lengths
    ends = dataset.offsets[:-1] + counts
    reads_history = settings.module(dataset.num_users, dataset.num_items).reads_history
    users = np.flatnonzero(counts >= (2 if reads_history else 1))
    if not len(users):
        raise UserError(f"{dataset.path}: no user has two training items; there is nothing to learn from")
    owner = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    trained = np.arange(len(dataset.items)) < ends[owner]
    pairs = np.unique(owner[trained] * (dataset.num_items + 1) + dataset.items[trained])
    owner, items = np.divmod(pairs, dataset.num_items + 1)
    start, end = np.searchsorted(owner, users), np.searchsorted(owner, users, side="right")
    if np.any(full := end - start == dataset.num_items):
        raise UserError(
            f"{dataset.path}: user {users[full][0]} has met all {dataset.num_items} items: no negative left"
        )
    first = np.searchsorted(owner, owner)
    free_below = items - 1 - (np.arange(len(items)) - first)

    lengths = np.clip(counts[users] - 1, 1, settings.max_length)
    widths = choose_widths(lengths, settings.buckets, settings.max_length)
    buckets = []
    for below, width in zip([0, *widths], widths, strict=False):
        chosen = (lengths > below) & (lengths <= width)
        tokens = dataset.items_before(users[chosen], counts[users[chosen]], width + 1)
        buckets.append(
            Bucket(*(jnp.asarray(a, jnp.int32) for a in (tokens, users[chosen], start[chosen], end[chosen])))
        )
    return TrainData(tuple(buckets), jnp.asarray(free_below, jnp.int32))


def bucket_loss(
    model: Trainable,
    loss: Literal["bce", "softmax"],
    params: Any,
    bucket: Bucket,
    free_below: Int[Array, "total"],
    key: jax.Array,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed loss over the positions with an item of a batch from one bucket, and how many there are.

    A model that reads the history predicts each item but the first from those before it; another each from the user.
    """
    dropout_key, negative_key = jax.random.split(key)
    if model.reads_history:
        inputs, positives = bucket.tokens[:, :-1], bucket.tokens[:, 1:]
    else:
        inputs = positives = bucket.tokens
    mask = inputs != 0
    hidden = model.states(params, bucket.users, inputs, dropout_key)
    likes = model.scores(params, hidden, positives, dropout_key)
    if loss == "bce":
        time, items = inputs.shape[1], model.config.num_items
        negatives = draw_free_items(negative_key, free_below, bucket.start, bucket.end, items, time)
        # Where dropout acts on scores (NeuMF), that of the negatives is drawn on its own.
        dislikes = model.scores(params, hidden, negatives, negative_key)
        losses = jax.nn.softplus(-likes) + jax.nn.softplus(dislikes)
    else:
        losses = jax.nn.logsumexp(model.scores(params, hidden, None, dropout_key), axis=-1) - likes
    return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask, dtype=jnp.float32)


def make_optimizer(settings: CFSettings) -> optax.GradientTransformation:
    """Adam as the official code sets it."""
    return optax.adam(settings.learning_rate, b1=0.9, b2=settings.beta2)


def steps_per_epoch(data: TrainData, settings: CFSettings, num_users: int) -> int:
    """⌊U/B⌋ over all of the data set's users when drawn with replacement, else as many as hold each trained user."""
    if settings.sampling == "with-replacement":
        return max(1, num_users // settings.batch_size)
    return math.ceil(sum(len(bucket.tokens) for bucket in data.buckets) / settings.batch_size)


def batch_rows(key: jax.Array, users: int, total: int, steps: int, settings: CFSettings) -> Int[Array, "S B"]:
    """Which of a bucket's ``users`` (of ``total`` in all buckets) are in each batch; ``users`` itself is no one."""
    if settings.sampling == "with-replacement":
        return jax.random.randint(key, (steps, max(1, round(settings.batch_size * users / total))), 0, users)
    rows = math.ceil(users / steps)
    order = jax.random.permutation(key, steps * rows)
    return jnp.minimum(order, users).reshape(rows, steps).T


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_epoch(
    model: Trainable, settings: CFSettings, steps: int, state: TrainState, data: TrainData, key: jax.Array
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One epoch, every draw of it made from ``key``; ``state`` is donated."""
    optimizer = make_optimizer(settings)
    total = sum(len(bucket.tokens) for bucket in data.buckets)
    rows = [
        batch_rows(jax.random.fold_in(key, index), len(bucket.tokens), total, steps, settings)
        for index, bucket in enumerate(data.buckets)
    ]

    def loss_fn(params: Any, batch: list[Int[Array, "B"]], key: jax.Array) -> Float[Array, ""]:
        sums, counts = [], []
        for index, (bucket, chosen) in enumerate(zip(data.buckets, batch, strict=True)):
            # Rows past the end are empty users: all padding, no loss.
            chosen = sharding.split_rows(chosen, fill=len(bucket.tokens))
            part = Bucket(*(a.at[chosen].get(mode="fill", fill_value=0) for a in bucket))
            part_key = jax.random.fold_in(key, index)
            loss, count = bucket_loss(model, settings.loss, params, part, data.free_below, part_key)
            sums.append(loss)
            counts.append(count)
        return sum(sums) / jnp.maximum(sum(counts), 1.0)  # a tiny batch may be all empty users

    def step(state: TrainState, inputs: Any) -> tuple[TrainState, Float[Array, ""]]:
        batch, number = inputs
        step_key = jax.random.fold_in(jax.random.fold_in(key, len(data.buckets)), number)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, step_key)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    state, losses = jax.lax.scan(step, state, (rows, jnp.arange(steps)))
    return sharding.constrain((state, {"loss": jnp.mean(losses)}), P())


def user_vectors(cf: CFModel, dataset: Dataset, max_length: int) -> dict[str, Float[np.ndarray, "U D"]]:
    """Every user's vector at each history cut; zeros for users without that cut."""
    vectors = {}
    for cut in CUTS:
        vectors[cut] = np.zeros((dataset.num_users, cf.dim), np.float32)
        users = dataset.users_with(cut)  # type: ignore[arg-type]
        histories, _ = dataset.history(users, cut, max_length)  # type: ignore[arg-type]
        for chosen, part in bucketed(histories) if len(users) else ():
            rows = np.resize(users[chosen], len(part))
            vectors[cut][users[chosen]] = np.asarray(cf.user_vectors(rows, part))[: len(chosen)]
    return vectors


def export_cf(run: Run, model: str, config: Any, params: Any, cf: CFModel, dataset: Dataset, max_length: int) -> None:
    """Writes what later stages read: ``cf.json`` and ``params.safetensors`` for :func:`load_cf`, and plain arrays."""
    save_arrays(run.export_path("params.safetensors"), params)
    arrays = {f"users_{cut}": vectors for cut, vectors in user_vectors(cf, dataset, max_length).items()}
    for name, array in {"items": cf.item_vectors(), **arrays}.items():
        with atomic_path(run.export_path(f"{name}.npy")) as sibling:
            np.save(sibling, array)
    card = {"model": model, "config": dataclasses.asdict(config)}
    write_text(run.export_path("cf.json"), json.dumps(card, indent=2) + "\n")


def train_cf(
    dataset: Dataset,
    settings: CFSettings,
    seed: int = 0,
    out: Path | str = "checkpoints",
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains a CF model and exports it; a finished run with the same identity is used as it is.

    Returns:
        The run's directory, for :func:`allmrec_jax.models.cf.protocol.load_cf`.

    Raises:
        UserError: the data cannot be trained on, a setting is out of range, the loss is not finite, the disk is full.
    """
    training = TrainingRun.open(dataset, "cf", settings, seed, out, {}, resume=resume, quiet=quiet)
    if training.done:
        return training.path
    model = settings.module(dataset.num_users, dataset.num_items)
    params = model.init_params(jax_key(seed, "cf-init"))
    cf = CF_MODELS.find(settings.model).load().cf
    return fit_cf(training, model, cf, params, dataset, settings)


def fit_cf(
    training: TrainingRun,
    model: Trainable,
    cf: Callable[[Any, Any, str], CFModel],
    params: Any,
    dataset: Dataset,
    settings: CFSettings,
) -> Path:
    """Trains ``model`` from ``params`` in an open run, exports it by way of the class ``cf`` and finishes the run."""
    data = sharding.place(load_train_data(dataset, settings))
    validates = settings.choose == "best" or len(dataset.users_with("valid")) > 0
    measure = make_validation(model, dataset, settings.validation, training.seed) if validates else None
    steps = steps_per_epoch(data, settings, dataset.num_users)

    def epoch(state: TrainState, key: jax.Array) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        return sharding.on_mesh(train_epoch)(model, settings, steps, state, data, key)

    state = training.fit(
        TrainState.start(params, make_optimizer(settings)),
        epoch,
        sharding.on_mesh(partial(jax_key, training.seed, "cf")),
        LoopSettings(
            settings.epochs,
            log_every=1,
            evaluate_every=settings.evaluate_every if validates else 0,
            save_every=settings.evaluate_every,
            patience=settings.patience if settings.choose == "best" else 0,
        ),
        evaluate=None if measure is None else lambda state: measure(state.params),
        monitor="ndcg@10" if settings.choose == "best" else None,
        unit="epoch",
    )
    chosen = jax.device_get(state.params)
    run = training.run
    trained = cf(model.config, chosen, run.identity)
    with announce("user vectors of everybody", training.quiet):
        export_cf(run, settings.model, model.config, chosen, trained, dataset, settings.max_length)
    return training.finish({"model": settings.model, "epoch": run.best_step() or run.latest_step()})
