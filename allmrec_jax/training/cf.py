"""Training of collaborative-filtering models: data, sampling and whole epochs on the device, one jitted function.

A step of the shared loop is one epoch. Users lie on the device in length buckets; an epoch shuffles each bucket and
every batch takes the same share of each, so that shapes are fixed, no user is seen twice, and a batch has the mix of
lengths that the data has. A bucket of width L gives the same loss as width 50, dropout included but for which random
numbers are drawn (see :mod:`allmrec_jax.models.cf.sasrec`).

Shapes: B batch, T time, D model, N items, U users, S steps of an epoch.
"""

import abc
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
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
from allmrec_jax.data.dataset import CUTS, Dataset
from allmrec_jax.data.negatives import draw_distinct_free_items, draw_free_items
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, save_arrays, write_text
from allmrec_jax.models.cf import ctrl, gru4rec, ncf, nextitnet, sasrec, sequential
from allmrec_jax.models.cf.ctrl import CTRL, CTRLCF
from allmrec_jax.models.cf.gru4rec import GRU4Rec, GRU4RecCF, GRU4RecConfig
from allmrec_jax.models.cf.ncf import NCF, NCFConfig, NeuMF
from allmrec_jax.models.cf.nextitnet import NextItNet, NextItNetCF, NextItNetConfig
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.runs import Run
from allmrec_jax.settings import setting
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger

EVALUATION_ROWS = 256
"""Users per forward pass outside training."""


@dataclasses.dataclass(frozen=True)
class ValidationSettings:
    """Who is asked in a validation, and among how many items.

    Attributes:
        max_length: items of history at most, the latest.
        users: a seeded sample where there are more.
        negatives: of each validation item.
    """

    max_length: int
    users: int
    negatives: int


@dataclasses.dataclass(frozen=True)
class CFSettings(abc.ABC):
    """What decides a CF model's numbers, whichever model it is; subclasses add their own and a ``module``."""

    model: str = setting("", "which CF model")
    dim: int = setting(50, "width of item and user vectors; NCF has as much for its GMF and for its MLP")
    max_length: int = setting(50, "items of history at most, the latest")
    learning_rate: float = setting(1e-3, "Adam's learning rate")
    beta2: float = setting(0.98, "Adam's second moment decay")
    batch_size: int = setting(128, "users in a batch, with all of their positions")
    epochs: int = setting(200, "epochs at most")
    loss: Literal["bce", "softmax"] = setting(
        "bce", "binary cross-entropy with one uniform negative per position, or cross-entropy over all items"
    )
    sampling: Literal["each-once", "with-replacement"] = setting(
        "each-once", "users of an epoch: each once, or drawn with replacement as the official code does"
    )
    buckets: int = setting(3, "length buckets in training; 1 is max_length for all")
    choose: Literal["best", "last"] = setting("best", "export the epoch best on validation, or the last one")
    evaluate_every: int = setting(5, "epochs between validations")
    patience: int = setting(4, "validations without improvement before training stops; 0 is never")
    validation_users: int = setting(10_000, "users in a validation, a seeded sample where there are more")
    validation_negatives: int = setting(100, "negatives of each validation item")

    def __post_init__(self) -> None:
        counts = ("batch_size", "epochs", "buckets", "evaluate_every", "validation_users", "validation_negatives")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"CF training: {name} is {getattr(self, name)}; it must be at least 1")
        if self.patience < 0 or self.learning_rate <= 0 or not 0 <= self.beta2 < 1:
            raise UserError("CF training: patience is at least 0, learning_rate above 0, beta2 in [0, 1)")

    @property
    def validation(self) -> ValidationSettings:
        """Of the validations that choose the epoch."""
        return ValidationSettings(self.max_length, self.validation_users, self.validation_negatives)

    @abc.abstractmethod
    def module(self, num_users: int, num_items: int) -> Any:
        """The model."""


@dataclasses.dataclass(frozen=True)
class SASRecSettings(CFSettings):
    """SASRec's: the paper's values."""

    model: Literal["sasrec"] = setting("sasrec", "which CF model")
    blocks: int = setting(2, "self-attention blocks")
    heads: int = setting(1, "attention heads")
    dropout: float = setting(0.5, "dropout rate")

    def module(self, num_users: int, num_items: int) -> SASRec:
        """The model."""
        config = SASRecConfig(num_items, self.dim, self.blocks, self.heads, self.max_length, self.dropout)
        return SASRec(config)


@dataclasses.dataclass(frozen=True)
class GRU4RecSettings(CFSettings):
    """GRU4Rec's: d, batch and optimizer as the paper has them, the rest RecBole 1.2.1's defaults but for the loss."""

    model: Literal["gru4rec"] = setting("gru4rec", "which CF model")
    beta2: float = setting(0.999, "Adam's second moment decay")
    hidden: int = setting(128, "GRU4Rec: width of the GRU's state. NCF: of the MLP's first layer, twice the second's")
    layers: int = setting(1, "GRU layers")
    dropout: float = setting(0.3, "dropout rate")

    def module(self, num_users: int, num_items: int) -> GRU4Rec:
        """The model."""
        config = GRU4RecConfig(num_items, self.dim, self.hidden, self.layers, self.max_length, self.dropout)
        return GRU4Rec(config)


@dataclasses.dataclass(frozen=True)
class NextItNetSettings(CFSettings):
    """NextItNet's, from the same sources as GRU4Rec's."""

    model: Literal["nextitnet"] = setting("nextitnet", "which CF model")
    beta2: float = setting(0.999, "Adam's second moment decay")
    kernel: int = setting(3, "taps of a convolution")
    dilations: str = setting("1,4", "of successive residual blocks; microsoft/recommenders: 1,2,4,1,2,4")
    repeats: int = setting(5, "how often these blocks follow each other; microsoft/recommenders: 1")

    def module(self, num_users: int, num_items: int) -> NextItNet:
        """The model."""
        config = NextItNetConfig(num_items, self.dim, self.kernel, self.dilations, self.repeats, self.max_length)
        return NextItNet(config)


@dataclasses.dataclass(frozen=True)
class NCFSettings(CFSettings):
    """NCF's (NeuMF), from the same sources as GRU4Rec's. It has no use for order, so it may see longer histories."""

    model: Literal["ncf"] = setting("ncf", "which CF model")
    max_length: int = setting(200, "items of history at most, the latest")
    beta2: float = setting(0.999, "Adam's second moment decay")
    hidden: int = setting(128, "GRU4Rec: width of the GRU's state. NCF: of the MLP's first layer, twice the second's")
    dropout: float = setting(0.1, "dropout rate")

    def module(self, num_users: int, num_items: int) -> NeuMF:
        """The model."""
        config = NCFConfig(num_users, num_items, self.dim, self.hidden, self.dropout)
        return NeuMF(config)


_SMALL: dict[str, Any] = dict(learning_rate=3e-3, loss="softmax", buckets=2, epochs=20, evaluate_every=2, patience=3)

PRESETS: dict[str, dict[str, CFSettings]] = {
    "sasrec": {
        "paper": SASRecSettings(),
        "official": SASRecSettings(
            sampling="with-replacement", buckets=1, choose="last", evaluate_every=20, patience=0
        ),
        "small": SASRecSettings(max_length=24, dropout=0.3, **_SMALL),
    },
    "nextitnet": {
        "paper": NextItNetSettings(),
        "small": NextItNetSettings(max_length=24, repeats=1, **_SMALL),
    },
    "gru4rec": {"paper": GRU4RecSettings(), "small": GRU4RecSettings(max_length=24, **_SMALL)},
    "ncf": {"paper": NCFSettings(), "small": NCFSettings(max_length=100, **_SMALL | {"loss": "bce", "epochs": 40})},
}
"""By model. ``paper``: the paper's values, with the epoch chosen on validation. ``official``: the public code's, for
SASRec only. ``small``: the embedded data in half a minute; for SASRec full softmax ends higher there than BCE does
(NDCG@10 0.50 against 0.48)."""


class Architecture(NamedTuple):
    """What training asks of a CF model; ``states`` and ``scores`` as in :mod:`allmrec_jax.models.cf.sequential`."""

    cf: Any
    """The class behind the CF protocol, made of a configuration, parameters and an identity."""
    init_params: Callable[[Any, jax.Array], dict[str, Any]]
    states: Callable[..., Float[Array, "B T D"]]
    scores: Callable[..., Float[Array, "B T"]]


ARCHITECTURES = {
    SASRec: Architecture(SASRecCF, sasrec.init_params, sequential.states, sequential.scores),
    NextItNet: Architecture(NextItNetCF, nextitnet.init_params, sequential.states, sequential.scores),
    GRU4Rec: Architecture(GRU4RecCF, gru4rec.init_params, sequential.states, sequential.scores),
    NeuMF: Architecture(NCF, ncf.init_params, ncf.states, ncf.scores),
    CTRL: Architecture(CTRLCF, ctrl.init_params, sequential.states, sequential.scores),
}
"""By module."""


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


class CFState(NamedTuple):
    """What training changes."""

    params: Any
    opt_state: Any


def choose_widths(lengths: Int[np.ndarray, "U"], count: int, max_length: int) -> list[int]:
    """At most ``count`` widths, the largest ``max(lengths)``, that pad the least in all.

    Args:
        lengths: of the histories, 1 to ``max_length`` each.
        count: 1 gives ``[max_length]``: the reference's fixed width.
        max_length: the model's.
    """
    if count == 1:
        return [max_length]
    users = np.bincount(lengths, minlength=max_length + 1)
    fitting = np.cumsum(users)
    # best[w]: fewest cells for all users of length at most w with w as a width, and the widths of that choice.
    widths = [int(width) for width in np.flatnonzero(users)]
    best = {width: (int(fitting[width]) * width, [width]) for width in widths}
    for _ in range(count - 1):
        best = {
            width: min(
                [best[width]]
                + [
                    (cells + int(fitting[width] - fitting[below]) * width, [*chosen, width])
                    for below, (cells, chosen) in best.items()
                    if below < width
                ]
            )
            for width in widths
        }
    return best[widths[-1]][1]


def load_train_data(dataset: Dataset, settings: CFSettings) -> TrainData:
    """The users with something to learn from, in buckets: two training items, or one for NCF, which has no history.

    Raises:
        UserError: there are none, or one of them has met every item, so that no negative is left.
    """
    counts = dataset.train_lengths
    ends = dataset.offsets[:-1] + counts
    users = np.flatnonzero(counts >= (1 if settings.model == "ncf" else 2))
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
    model: Any,
    loss: Literal["bce", "softmax"],
    params: Any,
    bucket: Bucket,
    free_below: Int[Array, "total"],
    key: jax.Array,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed loss over the positions with an item of a batch from one bucket, and how many there are.

    A sequence model predicts each item but the first from those before it; NeuMF each item from the user.
    """
    _, _, states, scores = ARCHITECTURES[type(model)]
    dropout_key, negative_key = jax.random.split(key)
    if isinstance(model, NeuMF):
        inputs = positives = bucket.tokens
    else:
        inputs, positives = bucket.tokens[:, :-1], bucket.tokens[:, 1:]
    mask = inputs != 0
    hidden = states(model, params, bucket.users, inputs, dropout_key)
    likes = scores(model, params, hidden, positives, dropout_key)
    if loss == "bce":
        time, items = inputs.shape[1], model.config.num_items
        negatives = draw_free_items(negative_key, free_below, bucket.start, bucket.end, items, time)
        # NeuMF's dropout acts on scores: that of the negatives is drawn on its own.
        dislikes = scores(model, params, hidden, negatives, negative_key)
        losses = jax.nn.softplus(-likes) + jax.nn.softplus(dislikes)
    else:
        losses = jax.nn.logsumexp(scores(model, params, hidden, None, dropout_key), axis=-1) - likes
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
    model: Any, settings: CFSettings, steps: int, state: CFState, data: TrainData, key: jax.Array
) -> tuple[CFState, dict[str, Float[Array, ""]]]:
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

    def step(state: CFState, inputs: Any) -> tuple[CFState, Float[Array, ""]]:
        batch, number = inputs
        step_key = jax.random.fold_in(jax.random.fold_in(key, len(data.buckets)), number)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, step_key)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return CFState(optax.apply_updates(state.params, updates), opt_state), loss

    state, losses = jax.lax.scan(step, state, (rows, jnp.arange(steps)))
    return sharding.constrain((state, {"loss": jnp.mean(losses)}), P())


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


def bucketed(histories: Int[np.ndarray, "U T"]) -> Iterator[tuple[np.ndarray, Int[np.ndarray, "B T"]]]:
    """Rows of left-padded histories in batches of a few fixed shapes; one shape where there is one batch.

    Yields:
        The indices of up to ``EVALUATION_ROWS`` rows, and those rows without most of their padding, repeated to
        ``EVALUATION_ROWS``.
    """
    lengths = np.maximum(np.count_nonzero(histories, axis=1), 1)
    widths = choose_widths(lengths, 3 if len(histories) > EVALUATION_ROWS else 1, histories.shape[1])
    for below, width in zip([0, *widths], widths, strict=False):
        chosen = np.flatnonzero((lengths > below) & (lengths <= width))
        for begin in range(0, len(chosen), EVALUATION_ROWS):
            rows = chosen[begin : begin + EVALUATION_ROWS]
            yield rows, histories[np.resize(rows, EVALUATION_ROWS), histories.shape[1] - width :]


@partial(jax.jit, static_argnums=0)
def _validate(model: Any, params: Any, batch: ValidationBatch) -> dict[str, Float[Array, ""]]:
    architecture = ARCHITECTURES[type(model)]
    users = architecture.states(model, params, batch.users, batch.histories, None)[:, -1:]
    scores = architecture.scores(model, params, users, batch.candidates, None)
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
    model: Any, dataset: Dataset, settings: ValidationSettings, seed: int
) -> Callable[[CFState], dict[str, float]]:
    """A function from a state to Hit@1, Hit@10 and NDCG@10 among the validation item and its negatives."""
    batches = [sharding.place(batch) for batch in load_validation(dataset, settings, seed)]
    users = sum(float(batch.weight.sum()) for batch in batches)

    def evaluate(state: CFState) -> dict[str, float]:
        parts = jax.device_get([_validate(model, state.params, batch) for batch in batches])
        return {name: float(sum(part[name] for part in parts)) / users for name in parts[0]}

    return evaluate


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
    run = Run.open(out, dataset.name, "cf", settings, seed, dataset.hash, {}, resume=resume)
    if run.done:
        return run.path
    model = settings.module(dataset.num_users, dataset.num_items)
    params = ARCHITECTURES[type(model)].init_params(model.config, jax_key(seed, "cf-init"))
    fit_cf(run, model, params, dataset, settings, resume=resume, quiet=quiet)
    return run.path


def fit_cf(
    run: Run, model: Any, params: Any, dataset: Dataset, settings: CFSettings, *, resume: bool, quiet: bool
) -> None:
    """Trains ``model`` from ``params`` in the open ``run``, exports it and finishes the run."""
    architecture, seed = ARCHITECTURES[type(model)], run.seed
    data = load_train_data(dataset, settings)
    validates = settings.choose == "best" or len(dataset.users_with("valid")) > 0
    evaluate = make_validation(model, dataset, settings.validation, seed) if validates else None
    state, data = sharding.place((CFState(params, make_optimizer(settings).init(params)), data))
    steps = steps_per_epoch(data, settings, dataset.num_users)

    def epoch(state: CFState, key: jax.Array) -> tuple[CFState, dict[str, Float[Array, ""]]]:
        return sharding.on_mesh(train_epoch)(model, settings, steps, state, data, key)

    with MetricsLogger(run.path, settings.epochs, unit="epoch", quiet=quiet) as log:
        last, best = train_loop(
            run,
            state,
            epoch,
            sharding.on_mesh(partial(jax_key, seed, "cf")),
            LoopSettings(
                settings.epochs,
                log_every=1,
                evaluate_every=settings.evaluate_every if validates else 0,
                save_every=settings.evaluate_every,
                patience=settings.patience if settings.choose == "best" else 0,
            ),
            evaluate=evaluate,
            monitor="ndcg@10" if settings.choose == "best" else None,
            resume=resume,
            log=log,
        )
    chosen = jax.device_get((best if settings.choose == "best" else last).params)
    cf = architecture.cf(model.config, chosen, run.identity)
    export_cf(run, settings.model, model.config, chosen, cf, dataset, settings.max_length)
    run.finish({"model": settings.model, "epoch": run.best_step() or run.latest_step()})
