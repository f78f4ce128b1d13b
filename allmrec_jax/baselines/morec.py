"""MoRec (Yuan et al. 2023): SASRec whose item embeddings are the items' texts, encoder included in training.

An item's vector is ``GELU(W · encoder(title) + b)``. Of a batch every distinct item is encoded once. After training the
whole catalogue is encoded, and what is exported is a SASRec with that table in place of its own.

Shapes: B users, T time, M distinct items, L tokens, D model, N items.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset, require_titles
from allmrec_jax.data.negatives import UniformNegatives
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import save_arrays
from allmrec_jax.models.cf.architecture import ValidationSettings
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.models.cf.sequential import logits, torch_uniform
from allmrec_jax.models.text_encoder import SentenceEncoder, TokenTable, encode_table, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, save_sentence_encoder
from allmrec_jax.progress import announce
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting
from allmrec_jax.training.cf import export_cf
from allmrec_jax.training.cf_validation import make_validation
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun
from allmrec_jax.training.state import CountedState


@dataclasses.dataclass(frozen=True)
class MoRecSettings:
    """What decides a MoRec run's numbers, with the sentence encoder that it starts from."""

    dim: int = setting(50, "width of item and user vectors")
    blocks: int = setting(2, "self-attention blocks")
    heads: int = setting(1, "attention heads")
    max_length: int = setting(50, "items of history at most, the latest")
    dropout: float = setting(0.5, "SASRec's dropout rate; the encoder keeps its own")
    learning_rate: float = setting(1e-4, "AdamW's, for SASRec and the layer behind the encoder (MoRec's authors)")
    encoder_learning_rate: float = setting(5e-5, "AdamW's, for the sentence encoder (MoRec's authors)")
    weight_decay: float = setting(0.01, "AdamW's (MoRec's authors)")
    batch_size: int = setting(128, "users in a batch, with all of their positions")
    epochs: int = setting(200, "epochs at most")
    loss: Literal["bce", "in-batch"] = setting(
        "bce",
        "binary cross-entropy with one uniform negative per position, or cross-entropy over the batch's items, each "
        "logit less the logarithm of the item's share of training",
    )
    text_max_tokens: int = setting(30, "tokens that longer titles are cut to (MoRec's authors)")
    text_prompt: str = setting(
        "",
        "before each text, such as 'passage: ', or one of the encoder's prompts by name; empty: its own default",
        added=True,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the sentence encoder's computation")
    choose: Literal["best", "last"] = setting("best", "export the epoch best on validation, or the last one")
    evaluate_every: int = setting(1, "epochs between validations")
    patience: int = setting(5, "validations without improvement before training stops; 0 is never")
    validation_users: int = setting(10_000, "users in a validation, a seeded sample where there are more")
    validation_negatives: int = setting(100, "negatives of each validation item")

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "evaluate_every", "validation_users", "validation_negatives"):
            if getattr(self, name) < 1:
                raise UserError(f"MoRec: {name} is {getattr(self, name)}; it must be at least 1")

    def sasrec(self, num_items: int) -> SASRecConfig:
        """Of the SASRec over so many items."""
        return SASRecConfig(num_items, self.dim, self.blocks, self.heads, self.max_length, self.dropout)


PRESETS = {
    "paper": MoRecSettings(),
    "small": MoRecSettings(
        max_length=24,
        dropout=0.2,
        learning_rate=3e-3,
        encoder_learning_rate=3e-4,
        batch_size=64,
        epochs=12,
        loss="in-batch",
        patience=3,
        text_max_tokens=16,
    ),
}
"""``paper``: d and batch of A-LLMRec's paper, the rest of MoRec's authors. ``small``: a few minutes on two cores."""


class MoRecBatch(NamedTuple):
    """Sequences of row numbers into the batch's distinct items; row 0 is padding."""

    ids: Int[Any, "M L"]
    lengths: Int[Any, " M"]
    log_share: Float[Any, " M"]
    """Logarithm of each item's share of training; infinite for rows that nothing refers to."""
    inputs: Int[Any, "B T"]
    positives: Int[Any, "B T"]
    negatives: Int[Any, "B T"]


class Head(nn.Module):
    """From a sentence vector to an item vector: one dense layer and GELU."""

    dim: int

    @nn.compact
    def __call__(self, texts: Float[Array, "M W"]) -> Float[Array, "M D"]:
        """Item vectors."""
        uniform = torch_uniform(texts.shape[-1])
        h = nn.Dense(self.dim, kernel_init=uniform, bias_init=uniform, name="dense")(texts)
        return nn.gelu(h, approximate=False)


def with_table(params: Any, vectors: Float[Array, "M D"]) -> dict[str, Any]:
    """SASRec's parameters with a zero row for padding and then ``vectors`` as its item table."""
    return {**params, "item_embedding": jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])}


def batch_loss(
    encoder: SentenceEncoder, settings: MoRecSettings, params: Any, batch: MoRecBatch, key: jax.Array | None
) -> Float[Array, ""]:
    """Mean loss over the positions with an item; ``key`` is for dropout, ``None`` for none."""
    text_key, sequence_key = (None, None) if key is None else jax.random.split(key)
    off = key is None
    rngs = None if off else {"dropout": text_key}
    texts = encoder.model.apply({"params": params["encoder"]}, batch.ids, batch.lengths, off, rngs=rngs)
    vectors = jnp.asarray(Head(settings.dim).apply({"params": params["head"]}, texts))
    table = with_table(params["sasrec"], vectors)
    model = SASRec(settings.sasrec(len(batch.ids)))
    rngs = None if off else {"dropout": sequence_key}
    hidden = jnp.asarray(model.apply({"params": table}, batch.inputs, deterministic=off, rngs=rngs))
    mask = batch.inputs != 0
    likes = logits(table, hidden, batch.positives)
    if settings.loss == "bce":
        losses = jax.nn.softplus(-likes) + jax.nn.softplus(logits(table, hidden, batch.negatives))
    else:
        everything = jnp.einsum("btd,md->btm", hidden, vectors) - batch.log_share[None, None]
        # The user's own items are no negatives but for the one to predict.
        users = jnp.arange(len(batch.inputs))[:, None]
        own = jnp.zeros((len(batch.inputs), len(vectors) + 1), bool)
        own = own.at[users, batch.inputs].set(True).at[users, batch.positives].set(True)[:, None, 1:]
        target = jax.nn.one_hot(batch.positives - 1, len(vectors), dtype=bool)
        everything = jnp.where(own & ~target, -jnp.inf, everything)
        losses = jax.nn.logsumexp(everything, axis=-1) - jnp.sum(jnp.where(target, everything, 0.0), axis=-1)
    return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)


def make_optimizer(settings: MoRecSettings) -> optax.GradientTransformation:
    """AdamW, with a learning rate for the encoder and one for the rest."""
    rates = {"encoder": settings.encoder_learning_rate, "rest": settings.learning_rate}
    return optax.partition(
        {name: optax.adamw(rate, weight_decay=settings.weight_decay) for name, rate in rates.items()},
        lambda params: {name: "encoder" if name == "encoder" else "rest" for name in params},
    )


def make_step(
    encoder: SentenceEncoder, settings: MoRecSettings, seed: int
) -> Callable[[CountedState, MoRecBatch], tuple[CountedState, dict[str, jax.Array]]]:
    """The jitted training step; the state is donated."""
    optimizer = make_optimizer(settings)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: CountedState, batch: MoRecBatch) -> tuple[CountedState, dict[str, jax.Array]]:
        key = jax_key(seed, "morec/dropout", state.step)
        loss, gradient = jax.value_and_grad(lambda params: batch_loss(encoder, settings, params, batch, key))(
            state.params
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = CountedState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return sharding.constrain((state, {"loss": loss}), P())

    return step


class MoRecSampler:
    """Training batches: batch i depends on the seed and i only. An epoch holds each user once, in random order.

    Raises:
        UserError: no user has two training items, or one has met every item.
    """

    def __init__(self, dataset: Dataset, tokens: TokenTable, settings: MoRecSettings, seed: int) -> None:
        self.dataset, self.tokens, self.settings, self.seed = dataset, tokens, settings, seed
        self.users, _ = dataset.training_targets("last")
        self.negatives = UniformNegatives(dataset, dataset.train_lengths)
        self.steps_per_epoch = math.ceil(len(self.users) / settings.batch_size)
        share = np.maximum(dataset.train_count, 1) / max(dataset.train_count.sum(), 1)
        self.log_share = np.log(share).astype(np.float32)

    def __call__(self, index: int) -> MoRecBatch:
        """Batch ``index``, 0-based; the last one of an epoch is filled up with empty rows."""
        settings, size = self.settings, self.settings.batch_size
        epoch, place = divmod(index, self.steps_per_epoch)
        order = numpy_rng(self.seed, "morec/order", epoch).permutation(len(self.users))
        users = self.users[order[place * size : (place + 1) * size]]
        sequences = np.zeros((len(sharding.padded_rows(size, sharding.AXES)), settings.max_length + 1), np.int64)
        ends = self.dataset.train_lengths[users]
        sequences[: len(users)] = self.dataset.items_before(users, ends, settings.max_length + 1)
        inputs, positives = sequences[:, :-1], sequences[:, 1:]
        positives = np.where(inputs == 0, 0, positives)
        negatives = np.zeros_like(positives)
        rows, columns = np.nonzero(positives)
        if settings.loss == "bce":
            rng = numpy_rng(self.seed, "morec/negatives", index)
            negatives[rows, columns] = self.negatives.draw(rng, users[rows])

        everything = np.stack([inputs, positives, negatives])
        distinct, found = np.unique(np.concatenate([[0], everything.ravel()]), return_inverse=True)
        inputs, positives, negatives = found[1:].reshape(everything.shape).astype(np.int32)
        items = distinct[1:]
        # M grows in steps, for few compiled shapes.
        padded = np.pad(items, (0, -len(items) % math.lcm(2 * size, sharding.shards(sharding.AXES))))
        ids, lengths = self.tokens.take(padded, self.tokens.bucket(padded))
        log_share = np.where(np.arange(len(padded)) < len(items), self.log_share[padded], np.inf).astype(np.float32)
        return MoRecBatch(ids, lengths, log_share, inputs, positives, negatives)


def catalogue_params(
    encoder: SentenceEncoder, settings: MoRecSettings, params: Any, tokens: TokenTable
) -> dict[str, Any]:
    """SASRec's parameters with the table of all items, each encoded without dropout."""
    texts = encode_table(encoder.model, params["encoder"], tokens)[1:]
    vectors = Head(settings.dim).apply({"params": params["head"]}, texts)
    return with_table(params["sasrec"], jnp.asarray(vectors))


def train_morec(
    dataset: Dataset,
    encoder_name: str | Path,
    settings: MoRecSettings,
    seed: int = 0,
    out: Path | str = "checkpoints",
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains MoRec and exports it; a finished run with the same identity is used as it is.

    Args:
        dataset: with titles.
        encoder_name: a sentence encoder's directory or hub name, or ``sbert-nano``.
        settings: see :class:`MoRecSettings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue an interrupted run.
        quiet: show no progress.

    Returns:
        The run's directory. Its ``export/`` is also a directory of CF arrays.

    Raises:
        UserError: the data cannot be trained on, a setting is out of range, the loss is not finite, the disk is full.
    """
    require_titles(dataset, "MoRec")
    encoder = load_sentence_encoder(encoder_name, jnp.dtype(settings.dtype))
    upstream, encoder = {"encoder": fingerprint(encoder)}, encoder.prompted(settings.text_prompt)
    training = TrainingRun.open(dataset, "morec", settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path
    tokens = tokenize_texts(encoder, dataset.titles, settings.text_max_tokens)
    sampler = MoRecSampler(dataset, tokens, settings, seed)
    total_steps = settings.epochs * sampler.steps_per_epoch
    config = settings.sasrec(dataset.num_items)
    sasrec = {
        name: leaf
        for name, leaf in SASRec(dataclasses.replace(config, num_items=1))
        .init_params(jax_key(seed, "morec/init"))
        .items()
        if name != "item_embedding"
    }
    texts = jax.ShapeDtypeStruct((1, encoder.dim), jnp.float32)
    head = Head(settings.dim).lazy_init(jax_key(seed, "morec/init", 1), texts)["params"]
    params = {"sasrec": sasrec, "head": head, "encoder": jax.tree.map(jnp.asarray, encoder.params)}
    validates = settings.choose == "best" or len(dataset.users_with("valid")) > 0
    asked = ValidationSettings(settings.max_length, settings.validation_users, settings.validation_negatives)
    validate = make_validation(SASRec(config), dataset, asked, seed) if validates else None

    def evaluate(state: CountedState) -> dict[str, float]:
        assert validate is not None
        return validate(catalogue_params(encoder, settings, state.params, tokens))

    every = settings.evaluate_every * sampler.steps_per_epoch
    chosen = training.fit(
        CountedState.start(params, make_optimizer(settings)),
        sharding.on_mesh(make_step(encoder, settings, seed)),
        lambda index: sharding.place_batch(sampler(index), sharding.AXES),
        LoopSettings(
            total_steps,
            evaluate_every=every if validates else 0,
            save_every=min(SAVE_EVERY, every),
            patience=settings.patience if settings.choose == "best" else 0,
        ),
        evaluate=evaluate if validates else None,
        monitor="ndcg@10" if settings.choose == "best" else None,
    ).params
    run = training.run
    with announce("encoding the items' titles", quiet):
        table = catalogue_params(encoder, settings, chosen, tokens)
    export_cf(run, "sasrec", config, table, SASRecCF(config, table, run.identity), dataset, settings.max_length)
    save_arrays(run.export_path("head.safetensors"), jax.device_get(chosen["head"]))
    trained = dataclasses.replace(encoder, params=jax.device_get(chosen["encoder"]))
    save_sentence_encoder(run.export_path("sentence_encoder"), trained)
    return training.finish({"step": run.best_step() or run.latest_step(), "encoder": str(encoder_name)})
