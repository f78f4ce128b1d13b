"""RECFORMER's three runs: pre-training, fine-tuning with an item table that is made anew, then with a frozen one.

Pre-training tells a history's next item from those of the batch (cosine over a temperature) and restores masked tokens.
Fine-tuning is a cross-entropy over the whole item table, through the histories' encoding only: in its first stage the
table is encoded again before each epoch, in its second it is that of the first stage's best epoch. Each run starts from
the export of the one before. The authors pre-train on other data sets; here it is the training part of this one.

Shapes: B users, T tokens, D model, N items.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset, require_titles
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import load_arrays, save_arrays, write_text
from allmrec_jax.models.cf.architecture import ValidationSettings
from allmrec_jax.models.longformer import LongformerConfig, MaskedTokenHead
from allmrec_jax.models.recformer import (
    Inputs,
    ItemTokens,
    RecformerCF,
    RecformerConfig,
    encode,
    encode_histories,
    item_table,
    normalized,
    states,
    tokenize_items,
)
from allmrec_jax.pretrained.longformer import LoadedLongformer, as_recformer, load_longformer, nano_longformer
from allmrec_jax.progress import announce
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting
from allmrec_jax.training.cf_validation import ValidationBatch, candidate_metrics, load_validation
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TINY = LongformerConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=1026,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
"""*RECFORMER (tiny)*: what ``start=scratch`` trains, with the tokenizer of ``sbert-nano``.

Without dropout: untrained, the states at ``<s>`` of any two texts are nearly the same, and its noise hides what tells
them apart, so that nothing is ever learnt."""


@dataclasses.dataclass(frozen=True)
class RecformerSettings:
    """What decides a RECFORMER's numbers, with the Longformer that it starts from."""

    start: Literal["longformer", "scratch"] = setting(
        "longformer", "a pretrained Longformer's weights, or RECFORMER (tiny): a small one from scratch"
    )
    attention_window: int = setting(64, "tokens that a token sees, both sides together (RECFORMER's authors)")
    max_items: int = setting(50, "items of a history at most, the latest (RECFORMER's authors)")
    attribute_tokens: int = setting(32, "tokens of an attribute, its name included (RECFORMER's authors)")
    max_tokens: int = setting(1024, "tokens of a history (RECFORMER's authors)")
    descriptions: bool = setting(False, "an attribute for the description beside that for the title")
    temperature: float = setting(0.05, "that cosines are divided by (RECFORMER's authors)")
    mask_share: float = setting(0.15, "tokens to restore in pre-training (RECFORMER's authors)")
    mask_weight: float = setting(0.1, "weight of that loss (RECFORMER's authors)")
    batch_size: int = setting(128, "users in a batch; RECFORMER's authors have 16 with accumulation")
    learning_rate: float = setting(5e-5, "Adam's (RECFORMER's authors)")
    pretrain_epochs: int = setting(32, "epochs of pre-training (RECFORMER's authors)")
    epochs: int = setting(128, "epochs of each fine-tuning stage at most (RECFORMER's authors)")
    evaluate_every: int = setting(1, "epochs between validations")
    patience: int = setting(5, "validations without improvement before a stage stops; 0 is never")
    validation_users: int = setting(10_000, "users in a validation, a seeded sample where there are more")
    validation_negatives: int = setting(100, "negatives of each validation item")

    def __post_init__(self) -> None:
        for name in ("max_items", "attribute_tokens", "batch_size", "pretrain_epochs", "epochs", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"RECFORMER: {name} is {getattr(self, name)}; it must be at least 1")
        if self.temperature <= 0 or not 0 <= self.mask_share < 1 or self.max_tokens < 2:
            raise UserError("RECFORMER: temperature is above 0, mask_share in [0, 1), max_tokens at least 2")

    @property
    def kind(self) -> str:
        """Of the last run."""
        return "recformer" if self.start == "longformer" else "recformer-tiny"


PRESETS = {
    "paper": RecformerSettings(),
    "small": RecformerSettings(
        start="scratch",
        attention_window=32,
        max_items=10,
        attribute_tokens=12,
        max_tokens=128,
        batch_size=64,
        learning_rate=2e-3,
        pretrain_epochs=6,
        epochs=6,
        patience=2,
        validation_users=1000,
    ),
}
"""``paper``: batches as in A-LLMRec's paper, the rest RECFORMER's authors'. ``small``: from scratch on two cores."""


class RecformerState(NamedTuple):
    """What training changes: parameters (with ``head`` in pre-training) and, in fine-tuning, the item table."""

    params: Any
    table: Any
    opt_state: Any
    step: Int[Array, ""]


class RecformerBatch(NamedTuple):
    """Histories and what comes next; empty rows have weight 0."""

    histories: Inputs
    items: Inputs
    targets: Int[Any, " B"]
    weights: Float[Any, " B"]


class RecformerSampler:
    """Training batches: batch i depends on the seed and i only.

    An epoch holds each user with two training items once, with one of them, but the first, as what comes next.

    Raises:
        UserError: there is no such user.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: RecformerConfig,
        tokens: ItemTokens,
        settings: RecformerSettings,
        seed: int,
        purpose: str,
    ) -> None:
        self.dataset, self.config, self.tokens, self.settings = dataset, config, tokens, settings
        self.seed, self.purpose = seed, purpose
        self.users, _ = dataset.training_targets("last")
        self.steps_per_epoch = math.ceil(len(self.users) / settings.batch_size)

    def __call__(self, index: int) -> RecformerBatch:
        """Batch ``index``, 0-based; the last one of an epoch is filled up with rows of weight 0."""
        size = self.settings.batch_size
        epoch, place = divmod(index, self.steps_per_epoch)
        order = numpy_rng(self.seed, f"{self.purpose}/order", epoch).permutation(len(self.users))
        users = self.users[order[place * size : (place + 1) * size]]
        weights = (np.arange(size) < len(users)).astype(np.float32)
        users = np.resize(users, size)
        places = numpy_rng(self.seed, f"{self.purpose}/places", index).integers(1, self.dataset.train_lengths[users])
        sequences = [self.dataset.sequence(user) for user in users.tolist()]
        histories = [sequence[:place] for sequence, place in zip(sequences, places, strict=True)]
        targets = np.array([sequence[place] for sequence, place in zip(sequences, places, strict=True)], np.int32)
        return RecformerBatch(
            self.tokens.inputs(self.config, histories),
            self.tokens.inputs(self.config, [np.array([target]) for target in targets]),
            targets,
            weights,
        )


def mask_tokens(
    config: RecformerConfig, mask: int, share: float, ids: Int[Array, "B T"], key: jax.Array
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """BERT's masking: of ``share`` of the tokens 80% are masked, 10% replaced, 10% left; and which they are."""
    choose, how, what = jax.random.split(key, 3)
    real = (ids != config.longformer.pad_token_id) & (ids != config.start)
    chosen = (jax.random.uniform(choose, ids.shape) < share) & real
    way = jax.random.uniform(how, ids.shape)
    random = jax.random.randint(what, ids.shape, 0, config.longformer.vocab_size)
    changed = jnp.where(way < 0.8, mask, jnp.where(way < 0.9, random, ids))
    return jnp.where(chosen, changed, ids), chosen.astype(jnp.float32)


def most_masked(length: int, share: float) -> int:
    """More than the tokens of a row that :func:`mask_tokens` chooses: five standard deviations beyond their mean.

    Of rows without padding, some one in a million has more; its last ones are not restored.
    """
    return min(length, math.ceil(length * share + 5 * math.sqrt(length * share * (1 - share))))


def pretraining_loss(
    config: RecformerConfig,
    mask: int,
    settings: RecformerSettings,
    params: Any,
    batch: RecformerBatch,
    key: jax.Array | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The next item among the batch's, and masked tokens; ``key`` is for dropout and masks, ``None`` for neither."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    users = normalized(encode(config, params["encoder"], batch.histories, keys[0]))
    items = normalized(encode(config, params["encoder"], batch.items, keys[1]))
    real = batch.weights > 0
    # Another user's next item that is the same one is no negative.
    same = (batch.targets[:, None] == batch.targets[None]) & ~jnp.eye(len(real), dtype=bool)
    scores = jnp.where(same | ~real[None], -1e9, users @ items.T / config.temperature)
    each = jax.nn.logsumexp(scores, axis=1) - jnp.diag(scores)
    contrast = jnp.sum(jnp.where(real, each, 0.0)) / jnp.maximum(jnp.sum(batch.weights), 1.0)
    if keys[2] is None or settings.mask_share == 0:
        return contrast, {"loss": contrast, "contrast": contrast}
    ids, chosen = mask_tokens(config, mask, settings.mask_share, jnp.asarray(batch.histories.ids), keys[2])
    hidden = states(config, params["encoder"], batch.histories._replace(ids=ids), keys[3])
    # Logits of the chosen tokens only: those of all would cost as much as the encoder.
    chosen, places = jax.lax.top_k(chosen, most_masked(ids.shape[1], settings.mask_share))
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    words = params["encoder"]["word_embeddings"]["embedding"]
    found = jnp.asarray(MaskedTokenHead(config.longformer).apply({"params": params["head"]}, hidden, words))
    wanted = jnp.take_along_axis(jnp.asarray(batch.histories.ids), places, axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(found, wanted)
    chosen = chosen * batch.weights[:, None]
    restored = jnp.sum(losses * chosen) / jnp.maximum(jnp.sum(chosen), 1.0)
    loss = contrast + settings.mask_weight * restored
    return loss, {"loss": loss, "contrast": contrast, "restored": restored}


def finetuning_loss(
    config: RecformerConfig, params: Any, table: Float[Array, "N+1 D"], batch: RecformerBatch, key: jax.Array | None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the next item over the item table, which is a constant here; ``key`` is for dropout."""
    users = normalized(encode(config, params["encoder"], batch.histories, key))
    scores = users @ normalized(jax.lax.stop_gradient(table)[1:]).T / config.temperature
    each = optax.softmax_cross_entropy_with_integer_labels(scores, batch.targets - 1)
    loss = jnp.sum(each * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1.0)
    return loss, {"loss": loss}


def make_step(
    loss_fn: Callable[[Any, Any, RecformerBatch, jax.Array], tuple[Float[Array, ""], dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    seed: int,
    purpose: str,
) -> Callable[[RecformerState, RecformerBatch], tuple[RecformerState, dict[str, jax.Array]]]:
    """The jitted step of a run; the state is donated."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: RecformerState, batch: RecformerBatch) -> tuple[RecformerState, dict[str, jax.Array]]:
        key = jax_key(seed, f"{purpose}/dropout", state.step)
        gradient, metrics = jax.grad(loss_fn, has_aux=True)(state.params, state.table, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return sharding.constrain((RecformerState(params, state.table, opt_state, state.step + 1), metrics), P())

    return sharding.on_mesh(step)


def make_validation(
    dataset: Dataset, config: RecformerConfig, tokens: ItemTokens, settings: RecformerSettings, seed: int
) -> Callable[[RecformerState], dict[str, float]]:
    """Hit@1, Hit@10 and NDCG@10 among the validation item and its negatives, as the CF models' validation has them."""
    asked = ValidationSettings(config.max_items, settings.validation_users, settings.validation_negatives)
    batches = load_validation(dataset, asked, seed)
    histories = [[row[row > 0] for row in np.asarray(batch.histories)] for batch in batches]
    users = sum(float(batch.weight.sum()) for batch in batches)

    def evaluate(state: RecformerState) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch, rows in zip(batches, histories, strict=True):
            vectors = jnp.asarray(encode_histories(config, state.params["encoder"], tokens, rows))
            for name, value in jax.device_get(_validate(vectors, state.table, batch)).items():
                totals[name] = totals.get(name, 0.0) + float(value) / users
        return totals

    return evaluate


@jax.jit
def _validate(
    vectors: Float[Array, "B D"], table: Float[Array, "N+1 D"], batch: ValidationBatch
) -> dict[str, Float[Array, ""]]:
    scores = jnp.einsum("bd,bkd->bk", normalized(vectors), normalized(table)[batch.candidates])
    return candidate_metrics(scores, batch.weight)


class _Shared(NamedTuple):
    """What the three runs share."""

    dataset: Dataset
    config: RecformerConfig
    tokens: ItemTokens
    mask: int
    settings: RecformerSettings

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.settings.learning_rate)

    def start(self, params: Any, table: Any) -> RecformerState:
        state = RecformerState(params, table, self.optimizer().init(params), jnp.zeros((), jnp.int32))
        return sharding.place(state)


def placed(batch: RecformerBatch) -> RecformerBatch:
    """A batch on the mesh in use, its users split over all axes."""
    return sharding.place_batch(sharding.fill_up(batch), sharding.AXES)


def _pretrain(training: TrainingRun, shared: _Shared, params: Any) -> Path:
    config, settings, kind = shared.config, shared.settings, training.run.kind
    sampler = RecformerSampler(shared.dataset, config, shared.tokens, settings, training.seed, kind)
    total = settings.pretrain_epochs * sampler.steps_per_epoch

    def loss_fn(params: Any, table: Any, batch: RecformerBatch, key: jax.Array) -> Any:
        return pretraining_loss(config, shared.mask, settings, params, batch, key)

    state = training.fit(
        shared.start(params, jnp.zeros(())),
        make_step(loss_fn, shared.optimizer(), training.seed, kind),
        lambda index: placed(sampler(index)),
        LoopSettings(total, save_every=SAVE_EVERY),
    )
    save_arrays(training.export_path("params.safetensors"), {"encoder": jax.device_get(state.params["encoder"])})
    return training.finish({"step": total})


def _finetune(
    training: TrainingRun, shared: _Shared, params: Any, table: np.ndarray | None
) -> tuple[Any, Float[np.ndarray, "N+1 D"]]:
    """One fine-tuning stage: with ``table`` frozen, or made anew before each epoch where it is ``None``."""
    config, settings, tokens, kind = shared.config, shared.settings, shared.tokens, training.run.kind
    sampler = RecformerSampler(shared.dataset, config, tokens, settings, training.seed, kind)
    total = settings.epochs * sampler.steps_per_epoch
    refreshes = table is None
    if table is None:
        with announce("encoding the item table", training.quiet):
            table = item_table(config, params["encoder"], tokens)

    def loss_fn(params: Any, table: Any, batch: RecformerBatch, key: jax.Array) -> Any:
        return finetuning_loss(config, params, table, batch, key)

    jitted = make_step(loss_fn, shared.optimizer(), training.seed, kind)

    def step(
        state: RecformerState, numbered: tuple[int, RecformerBatch]
    ) -> tuple[RecformerState, dict[str, jax.Array]]:
        index, batch = numbered
        if refreshes and index and index % sampler.steps_per_epoch == 0:
            table = jnp.asarray(item_table(config, state.params["encoder"], tokens))
            state = state._replace(table=sharding.place(table))
        return jitted(state, batch)

    every = settings.evaluate_every * sampler.steps_per_epoch
    best = training.fit(
        shared.start(params, jnp.asarray(table)),
        step,
        lambda index: (index, placed(sampler(index))),
        LoopSettings(total, evaluate_every=every, save_every=min(SAVE_EVERY, every), patience=settings.patience),
        evaluate=make_validation(shared.dataset, config, tokens, settings, training.seed),
        monitor="ndcg@10",
    )
    return jax.device_get(best.params), np.asarray(best.table)


def train_recformer(
    dataset: Dataset,
    longformer_name: str | Path,
    settings: RecformerSettings,
    seed: int = 0,
    out: Path | str = "checkpoints",
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Pre-trains and fine-tunes RECFORMER and exports it; finished runs of the same identity are used as they are.

    Args:
        dataset: with titles.
        longformer_name: a Longformer's directory or hub name; not read with ``start=scratch``.
        settings: see :class:`RecformerSettings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue interrupted runs.
        quiet: show no progress.

    Returns:
        The directory of the last run, of kind ``recformer`` or ``recformer-tiny``.

    Raises:
        UserError: the data cannot be trained on, a setting is out of range, the loss is not finite, the disk is full.
    """
    require_titles(dataset, "RECFORMER")
    scratch = settings.start == "scratch"
    loaded = load_start(settings, seed, longformer_name)
    made = as_recformer(loaded, settings.attention_window, settings.max_items, seed)
    _check_length(made, settings)
    upstream = {} if scratch else {"longformer": loaded.fingerprint}

    def opened(kind: str) -> TrainingRun:
        return TrainingRun.open(dataset, kind, settings, seed, out, upstream, resume=resume, quiet=quiet)

    training = opened(settings.kind)
    if training.done:
        return training.path
    config = RecformerConfig(made.config, made.start, settings.temperature, settings.max_tokens)
    tokens = catalogue_tokens(made.tokenizer, dataset, settings)
    shared = _Shared(dataset, config, tokens, made.mask, settings)

    before = opened(f"{settings.kind}-pretrain")
    if not before.done:
        _pretrain(before, shared, jax.tree.map(jnp.asarray, made.params))
    first = opened(f"{settings.kind}-stage1")
    if not first.done:
        params = jax.tree.map(jnp.asarray, load_arrays(before.path / "export" / "params.safetensors"))
        best, table = _finetune(first, shared, params, None)
        save_arrays(first.export_path("params.safetensors"), best)
        save_arrays(first.export_path("items.safetensors"), {"table": table})
        first.finish({"step": first.run.best_step()})
    params = jax.tree.map(jnp.asarray, load_arrays(first.path / "export" / "params.safetensors"))
    table = load_arrays(first.path / "export" / "items.safetensors")["table"]
    best, table = _finetune(training, shared, params, table)
    model = RecformerCF(config, best["encoder"], table, tokens, training.run.identity)
    model.save(training.export_path("cf.json").parent)
    card = {"model": "recformer", "config": dataclasses.asdict(config)}
    write_text(training.export_path("cf.json"), json.dumps(card, indent=2) + "\n")
    return training.finish({"step": training.run.best_step(), "longformer": None if scratch else str(longformer_name)})


def load_start(settings: RecformerSettings, seed: int, longformer: str | Path) -> LoadedLongformer:
    """The Longformer that a run starts from; ``longformer`` is not read with ``start=scratch``."""
    return nano_longformer(TINY, seed) if settings.start == "scratch" else load_longformer(longformer)


def catalogue_tokens(tokenizer: "Tokenizer", dataset: Dataset, settings: RecformerSettings) -> ItemTokens:
    """The tokens of a data set's items: titles and, where the settings say so, descriptions."""
    attributes = {"title": dataset.titles}
    if settings.descriptions:
        attributes["description"] = dataset.descriptions
    return tokenize_items(tokenizer, attributes, settings.attribute_tokens)


def _check_length(made: LoadedLongformer, settings: RecformerSettings) -> None:
    limit = made.config.max_position_embeddings - made.config.pad_token_id - 1
    if settings.max_tokens > limit:
        raise UserError(f"RECFORMER: max_tokens {settings.max_tokens}, but this Longformer reads {limit} at most")
