"""CTRL in two runs: contrastive pre-training of SASRec's user representations against texts, then fine-tuning.

Pre-training pairs a user's representation after some item with a sentence encoder's vector of a text that tells the
same history. Fine-tuning is the training of a CF model (:mod:`allmrec_jax.training.cf`) that starts from there, with
one dense layer more; the encoder has done its part.

Shapes: B users, T time, L tokens, D model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.data.dataset import Dataset, require_titles
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import load_arrays, save_arrays
from allmrec_jax.models.cf.ctrl import CTRL, CTRLCF, Aligner, contrastive_loss
from allmrec_jax.models.cf.sasrec import SASRecSettings
from allmrec_jax.models.text_encoder import SentenceEncoder, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting
from allmrec_jax.training.cf import fit_cf
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun
from allmrec_jax.training.state import CountedState


@dataclasses.dataclass(frozen=True)
class ContrastSettings:
    """What decides the pre-training's numbers, with the sentence encoder that it starts from."""

    dim: int = setting(50, "width of item and user vectors")
    blocks: int = setting(2, "self-attention blocks")
    heads: int = setting(1, "attention heads")
    max_length: int = setting(50, "items of history at most, the latest")
    dropout: float = setting(0.5, "SASRec's dropout rate; the encoder keeps its own")
    epochs: int = setting(10, "epochs of pre-training; no source says how many")
    batch_size: int = setting(32, "pairs that are told apart, one for each user")
    contrast: Literal["infonce", "bce"] = setting("infonce", "the paper's loss, or that of A-LLMRec's authors")
    temperature: float = setting(1.0, "of infonce; no source says which")
    subspaces: int = setting(3, "of the fine-grained similarity; 3 is A-LLMRec's authors'")
    learning_rate: float = setting(1e-3, "Adam's, for SASRec and the projections")
    encoder_learning_rate: float = setting(1e-4, "Adam's, for the sentence encoder")
    history_titles: int = setting(10, "titles in a text at most, the latest")
    text_max_tokens: int = setting(256, "tokens that longer texts are cut to")
    text_prompt: str = setting(
        "",
        "before each text, such as 'passage: ', or one of the encoder's prompts by name; empty: its own default",
        added=True,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the sentence encoder's computation")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "subspaces", "history_titles"):
            if getattr(self, name) < 1:
                raise UserError(f"CTRL: {name} is {getattr(self, name)}; it must be at least 1")
        if self.temperature <= 0:
            raise UserError(f"CTRL: temperature is {self.temperature}; it must be above 0")


@dataclasses.dataclass(frozen=True)
class CTRLSettings(SASRecSettings):
    """SASRec's settings for the fine-tuning, and those of the pre-training that differ from them."""

    model: Literal["ctrl"] = setting("ctrl", "which model")  # type: ignore[assignment]
    contrast_epochs: int = setting(10, "epochs of pre-training; no source says how many")
    contrast_batch_size: int = setting(32, "pairs that are told apart; 32 is A-LLMRec's authors'")
    contrast: Literal["infonce", "bce"] = setting("infonce", "the paper's loss, or that of A-LLMRec's authors")
    temperature: float = setting(1.0, "of infonce; no source says which")
    subspaces: int = setting(3, "of the fine-grained similarity; 3 is A-LLMRec's authors'")
    encoder_learning_rate: float = setting(1e-4, "Adam's in pre-training, for the sentence encoder")
    history_titles: int = setting(10, "titles in a text at most, the latest")
    text_max_tokens: int = setting(256, "tokens that longer texts are cut to")
    text_prompt: str = setting(
        "",
        "before each text, such as 'passage: ', or one of the encoder's prompts by name; empty: its own default",
        added=True,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the sentence encoder's computation")

    def module(self, num_users: int, num_items: int) -> CTRL:
        """The model."""
        return CTRL(super().module(num_users, num_items).config)

    @property
    def pretraining(self) -> ContrastSettings:
        """The pre-training's own settings."""
        shared = {field.name for field in dataclasses.fields(ContrastSettings)} & set(dataclasses.asdict(self))
        values = {name: getattr(self, name) for name in shared}
        return ContrastSettings(**values | {"epochs": self.contrast_epochs, "batch_size": self.contrast_batch_size})


PRESETS = {
    "paper": CTRLSettings(),
    "official": CTRLSettings(
        contrast="bce", sampling="with-replacement", buckets=1, choose="last", evaluate_every=20, patience=0
    ),
    "small": CTRLSettings(
        max_length=24,
        dropout=0.3,
        learning_rate=3e-3,
        loss="softmax",
        buckets=2,
        epochs=20,
        evaluate_every=2,
        patience=3,
        contrast_epochs=3,
        encoder_learning_rate=3e-4,
        history_titles=5,
        text_max_tokens=64,
    ),
}
"""``paper``: SASRec's as in A-LLMRec's paper. ``official``: what A-LLMRec's authors left of CTRL in their code."""


class ContrastBatch(NamedTuple):
    """Users' histories up to some item and what tells them in words; empty rows have weight 0."""

    items: Int[Any, "B T"]
    ids: Int[Any, "B L"]
    lengths: Int[Any, " B"]
    weights: Float[Any, " B"]


def history_text(titles: Sequence[str]) -> str:
    """A history in words, after A-LLMRec's authors: its titles, and the latest once more."""
    return f"This is a user, who has recently interacted with {' | '.join(titles)}. The last item is {titles[-1]}."


class ContrastSampler:
    """Pre-training batches: batch i depends on the seed and i only.

    An epoch holds each user with a training item once, with the history up to one of these items, drawn anew
    (A-LLMRec's authors take all of them, at the cost of one text for each).
    """

    def __init__(self, dataset: Dataset, encoder: SentenceEncoder, settings: ContrastSettings, seed: int) -> None:
        self.dataset, self.encoder, self.settings, self.seed = dataset, encoder, settings, seed
        self.users = np.flatnonzero(dataset.train_lengths >= 1)
        self.steps_per_epoch = math.ceil(len(self.users) / settings.batch_size)

    def __call__(self, index: int) -> ContrastBatch:
        """Batch ``index``, 0-based; the last one of an epoch is filled up with rows of weight 0."""
        settings, size = self.settings, self.settings.batch_size
        epoch, place = divmod(index, self.steps_per_epoch)
        order = numpy_rng(self.seed, "ctrl/order", epoch).permutation(len(self.users))
        users = self.users[order[place * size : (place + 1) * size]]
        weights = (np.arange(size) < len(users)).astype(np.float32)
        users = np.resize(users, size)
        lengths = numpy_rng(self.seed, "ctrl/prefix", index).integers(1, self.dataset.train_lengths[users] + 1)
        items = self.dataset.items_before(users, lengths, settings.max_length)
        texts = [
            history_text([self.dataset.titles[item] for item in row[row > 0][-settings.history_titles :]])
            for row in items
        ]
        tokens = tokenize_texts(self.encoder, texts, settings.text_max_tokens)
        return ContrastBatch(items, *tokens.take(np.arange(size), tokens.bucket(np.arange(size))), weights)


def make_step(
    encoder: SentenceEncoder, model: CTRL, settings: ContrastSettings, seed: int
) -> tuple[
    optax.GradientTransformation,
    Callable[[CountedState, ContrastBatch], tuple[CountedState, dict[str, jax.Array]]],
]:
    """The optimizer and the jitted step of pre-training; the state is donated."""
    rates = {"encoder": settings.encoder_learning_rate, "rest": settings.learning_rate}
    optimizer = optax.partition(
        {name: optax.adam(rate) for name, rate in rates.items()},
        lambda params: {name: "encoder" if name == "encoder" else "rest" for name in params},
    )
    aligner = Aligner(settings.dim, settings.subspaces)

    def loss_fn(params: Any, batch: ContrastBatch, key: jax.Array) -> Float[Array, ""]:
        cf_key, text_key = jax.random.split(key)
        variables, rngs = {"params": params["cf"]}, {"dropout": cf_key}
        hidden = jnp.asarray(model.apply(variables, batch.items, deterministic=False, final=False, rngs=rngs))[:, -1]
        variables, rngs = {"params": params["encoder"]}, {"dropout": text_key}
        texts = encoder.model.apply(variables, batch.ids, batch.lengths, False, rngs=rngs)
        cf, text = aligner.apply({"params": params["aligner"]}, hidden, texts)
        return contrastive_loss(cf, text, batch.weights, settings.contrast, settings.temperature)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: CountedState, batch: ContrastBatch) -> tuple[CountedState, dict[str, jax.Array]]:
        key = jax_key(seed, "ctrl/dropout", state.step)
        loss, gradient = jax.value_and_grad(loss_fn)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = CountedState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return sharding.constrain((state, {"loss": loss}), P())

    return optimizer, sharding.on_mesh(step)


def pretrain(
    dataset: Dataset,
    encoder: SentenceEncoder,
    model: CTRL,
    settings: ContrastSettings,
    seed: int,
    out: Path | str,
    *,
    resume: bool,
    quiet: bool,
) -> Path:
    """The contrastive run, by its directory; it exports the CF model's parameters."""
    upstream, encoder = {"encoder": fingerprint(encoder)}, encoder.prompted(settings.text_prompt)
    training = TrainingRun.open(dataset, "ctrl-contrast", settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path
    sampler = ContrastSampler(dataset, encoder, settings, seed)
    optimizer, step = make_step(encoder, model, settings, seed)
    shapes = [jax.ShapeDtypeStruct((1, dim), jnp.float32) for dim in (settings.dim, encoder.dim)]
    params = {
        "cf": model.init_params(jax_key(seed, "cf-init")),
        "aligner": Aligner(settings.dim, settings.subspaces).lazy_init(jax_key(seed, "ctrl/init"), *shapes)["params"],
        "encoder": jax.tree.map(jnp.asarray, encoder.params),
    }
    total_steps = settings.epochs * sampler.steps_per_epoch
    loop = LoopSettings(total_steps, save_every=SAVE_EVERY)

    def batch_at(index: int) -> ContrastBatch:
        return sharding.place_batch(sharding.fill_up(sampler(index)), sharding.AXES)

    state = training.fit(CountedState.start(params, optimizer), step, batch_at, loop)
    save_arrays(training.export_path("params.safetensors"), jax.device_get(state.params["cf"]))
    return training.finish({"step": total_steps})


def train_ctrl(
    dataset: Dataset,
    encoder_name: str | Path,
    settings: CTRLSettings,
    seed: int = 0,
    out: Path | str = "checkpoints",
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Pre-trains and fine-tunes CTRL and exports it; finished runs with the same identity are used as they are.

    Args:
        dataset: with titles.
        encoder_name: a sentence encoder's directory or hub name, or ``sbert-nano``.
        settings: see :class:`CTRLSettings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue interrupted runs.
        quiet: show no progress.

    Returns:
        The directory of the fine-tuning run.

    Raises:
        UserError: the data cannot be trained on, a setting is out of range, the loss is not finite, the disk is full.
    """
    require_titles(dataset, "CTRL")
    encoder = load_sentence_encoder(encoder_name, jnp.dtype(settings.dtype))
    upstream = {"encoder": fingerprint(encoder)}
    training = TrainingRun.open(dataset, "ctrl", settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path
    model = settings.module(dataset.num_users, dataset.num_items)
    before = pretrain(dataset, encoder, model, settings.pretraining, seed, out, resume=resume, quiet=quiet)
    like = jax.eval_shape(model.init_params, jax_key(seed, "cf-init"))
    params = jax.tree.map(jnp.asarray, load_arrays(before / "export" / "params.safetensors", like))
    return fit_cf(training, model, CTRLCF, params, dataset, settings)
