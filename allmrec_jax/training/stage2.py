"""Stage 2: train the two projectors into the token space of a frozen language model (A-LLMRec, section 3.2).

The loss is the negative log-likelihood of the target's title, closing quote and end of text behind a prompt with the
user's vector, the history and 20 candidates. Logits are computed at the answer's positions only; the language model is
an argument that is never donated, differentiated or saved.

Shapes: B batch, T time, K candidates, S prompt length, A answer length, D user vector, Dj joint embedding, N items.
"""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from allmrec_jax import sharding
from allmrec_jax.data.candidates import make_candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import save_arrays, write_text
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.metrics import ranking_metrics, target_ranks
from allmrec_jax.models.cf.protocol import CF_HISTORY, CFModel, load_cf
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.projectors import embed_prompts, init_params
from allmrec_jax.pretrained.frozen_llm import load_llm, prompt_tables
from allmrec_jax.pretrained.llm import check_llm, llm_hash
from allmrec_jax.progress import announce
from allmrec_jax.prompts import STYLES, PromptBatch, PromptTables, build_prompts
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.runs import find_upstream, require_upstream
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun
from allmrec_jax.training.stage1_export import Stage1Export, load_stage1
from allmrec_jax.training.stage2_batches import Stage2Batch, Stage2Sampler
from allmrec_jax.training.stage2_settings import Stage2Settings
from allmrec_jax.training.state import TrainState
from allmrec_jax.training.warm_start import WarmStartBatch, warm_start

logger = logging.getLogger(__name__)

WARM_START_BATCH = 128
"""Samples of a warm-start step."""


class Frozen(NamedTuple):
    """What training reads and never changes.

    Attributes:
        llm: the language model's parameters.
        latents: the items' vectors; with ``text_share`` the text latents of all items follow.
    """

    llm: Any
    latents: Float[Array, "M Dj"] | None


def answer_loss(
    llm: LanguageModel, params: Any, frozen: Frozen, batch: Stage2Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Summed negative log-likelihood of the answers' tokens; rows whose every token is the most probable, as ``exact``.

    Differentiate with respect to ``params``, the projectors', only.
    """
    embeds = embed_prompts(llm, frozen.llm, params, batch.prompts, batch.users, frozen.latents)
    return loss_behind(llm, {"params": frozen.llm}, embeds, batch.prompts)


def loss_behind(
    llm: LanguageModel,
    variables: Any,
    embeds: Float[Array, "B S E"],
    prompts: PromptBatch,
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """:func:`answer_loss` of embedded prompts, for the language model's ``variables``."""
    rows, size = prompts.ids.shape
    hidden, _ = llm.apply(variables, embeds, jnp.broadcast_to(jnp.arange(size), (rows, size)), rngs=rngs)
    before = prompts.target_start[:, None] - 1 + jnp.arange(prompts.targets.shape[1])[None]
    hidden = jnp.take_along_axis(hidden, jnp.minimum(before, size - 1)[..., None], axis=1)
    logits = llm.apply(variables, hidden, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, prompts.targets)
    right = (jnp.argmax(logits, axis=-1) == prompts.targets) | (prompts.target_mask == 0)
    exact = right.all(axis=1) & prompts.target_mask.any(axis=1)
    return jnp.sum(losses * prompts.target_mask), {"exact": jnp.sum(exact, dtype=jnp.float32)}


Step = Callable[[TrainState, Frozen, Stage2Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_step(llm: LanguageModel, optimizer: optax.GradientTransformation, accumulation: int = 1) -> Step:
    """The jitted training step; the state is donated.

    The loss is the mean over all answer tokens of the batch, whatever number of parts it is computed in. Rows without
    answer tokens are padding and count nowhere.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen: Frozen, batch: Stage2Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def add_part(total: Any, part: Stage2Batch) -> tuple[Any, None]:
            grad = jax.value_and_grad(lambda params: answer_loss(llm, params, frozen, part), has_aux=True)
            return jax.tree.map(jnp.add, total, grad(state.params)), None

        parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)
        parts = sharding.constrain_batch(parts, dimension=1)
        zero = jnp.zeros(())
        empty = ((zero, {"exact": zero}), jax.tree.map(jnp.zeros_like, state.params))
        ((loss, metrics), gradient), _ = jax.lax.scan(add_part, empty, parts)
        tokens = jnp.sum(batch.prompts.target_mask)
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = {
            "loss": loss / tokens,
            "exact": metrics["exact"] / jnp.sum(batch.prompts.target_mask.any(axis=1), dtype=jnp.float32),
            "gradient_norm": optax.tree.norm(gradient),
        }
        state = TrainState(optax.apply_updates(state.params, updates), opt_state)
        return sharding.constrain((state, metrics), P())

    return step


def make_optimizer(settings: Stage2Settings, total_steps: int) -> optax.GradientTransformation:
    """Adam with the settings' schedule."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        decay_steps = max(total_steps - settings.warmup_steps, 1)
        rate = optax.cosine_decay_schedule(settings.learning_rate, decay_steps)
    elif settings.warmup_steps:
        rate = optax.constant_schedule(settings.learning_rate)
    if settings.warmup_steps:
        warmup = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [settings.warmup_steps])
    return optax.adam(rate, b1=0.9, b2=settings.beta2)


def start_projectors(
    params: Any,
    llm: LanguageModel,
    frozen: Frozen,
    sampler: Stage2Sampler,
    show: Callable[[int], None] = lambda done: None,
) -> Any:
    """Fresh projector parameters after the warm start that the settings ask for."""
    latents, settings = frozen.latents, sampler.settings
    if latents is None and not settings.user_vector:
        raise UserError("warm_start_steps needs user or item vectors; set it to 0 to leave both out")
    words = _word_table(llm, frozen.llm)
    titles = _title_words(sampler.tables, np.asarray(words, np.float32)) if latents is None else None
    purpose = "stage2/warm-start"

    def batch_at(index: int) -> WarmStartBatch:
        question = sampler.draw(index, WARM_START_BATCH, purpose)
        column = jnp.asarray(np.argmax(question.candidates == question.targets[:, None], axis=1))
        users = sampler.user_vectors(question) if settings.user_vector else None
        if titles is not None:
            return WarmStartBatch(column, users, titles=titles[question.candidates])
        assert latents is not None
        items = jnp.take(latents, sampler.rows(question.candidates, index, purpose), axis=0)
        if users is not None:
            return WarmStartBatch(column, users, items=items)
        read = question.histories[:, -settings.history_length :]
        history = jnp.take(latents, sampler.rows(read, index, f"{purpose}/history"), axis=0)
        return WarmStartBatch(column, history=history, real=jnp.asarray(read > 0), items=items)

    return warm_start(params, words, batch_at, settings.warm_start_steps, show)[0]


def _word_table(llm: LanguageModel, params: Any) -> Float[np.ndarray, "V E"]:
    """The embeddings of all words."""
    every = jnp.arange(llm.config.vocab_size)[None]
    embed = jax.jit(lambda variables: sharding.constrain(llm.apply(variables, every, method="embed")[0], P()))
    return sharding.fetch(sharding.on_mesh(embed)({"params": params}))


def _title_words(tables: PromptTables, words: Float[np.ndarray, "V E"]) -> Float[np.ndarray, "N+1 E"]:
    """The sum of each title's word embeddings, the direction of their mean."""
    return np.stack([words[tables.titles[item]].sum(axis=0) for item in range(len(tables.titles))])


def item_latents(
    stage1: Stage1Export | None,
    kind: Literal["joint", "text", "normal", "cf", "none"],
    seed: int,
    cf: CFModel | None = None,
) -> Float[np.ndarray, "N+1 Dj"] | None:
    """What stands behind titles, see :attr:`Stage2Settings.item_vectors`; ``cf`` needs a CF model and no stage 1.

    ``normal`` is noise of N(0, 1) and the joint embeddings' shape, the same in training and evaluation.
    """
    if kind == "none":
        return None
    if kind == "cf":
        if cf is None:
            raise ValueError("the CF model's item vectors need a CF model")
        return np.asarray(cf.item_vectors(), np.float32)
    if stage1 is None:
        raise ValueError(f"item vectors {kind} need a stage 1")
    if kind == "joint" or kind == "text":
        return np.asarray(stage1.item_latents(kind), np.float32)
    noise = numpy_rng(seed, "stage2/normal-items").standard_normal(stage1.item_latents("joint").shape)
    return noise.astype(np.float32)


def train_stage2(
    dataset: Dataset,
    cf_path: Path,
    stage1_path: Path | None,
    llm_name: str | Path,
    settings: Stage2Settings,
    seed: int,
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains the projectors and exports them; returns the run's directory.

    Args:
        dataset: the one that both upstream runs were trained on.
        cf_path: a ``train cf`` run, or the user's own arrays.
        stage1_path: a ``train stage1`` run built on it; not read for item vectors ``cf``.
        llm_name: a directory, a hub name or ``opt-nano``.
        settings: see :class:`Stage2Settings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue an interrupted run.
        quiet: show no progress.

    Raises:
        UserError: an upstream does not match, or as the parts raise it.
    """
    if settings.batch_size % settings.accumulation:
        raise UserError(f"accumulation {settings.accumulation} does not divide the batch size {settings.batch_size}")
    config = check_llm(llm_name, jnp.dtype(settings.dtype), int8=settings.llm_weights == "int8")
    tables = prompt_tables(llm_name, config, dataset.titles, settings.title_max_tokens, chat=settings.chat)
    check_length(tables, settings)
    cf = load_cf(cf_path, dataset)
    with announce("hashing the language model's files", quiet):
        upstream, stage1 = {"cf": cf.identity, "llm": llm_hash(llm_name)}, None
    if settings.item_vectors != "cf":
        stage1_path, about = find_upstream(out, "stage1", dataset.name, dataset.hash, given=stage1_path)
        require_upstream(stage1_path, about, "cf", cf.identity)
        stage1 = load_stage1(stage1_path)
        upstream["stage1"] = about["identity"]
    training = TrainingRun.open(dataset, settings.kind, settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path

    with announce("reading the language model", quiet):
        llm, llm_params = load_llm(llm_name, settings.dtype, settings.llm_weights, remat=settings.remat)
    if tables.titles.cut:
        longer = f", {tables.titles.extended} of them to more so that they differ" if tables.titles.extended else ""
        logger.info("%d titles were cut to %d tokens%s", tables.titles.cut, settings.title_max_tokens, longer)
    latents = item_latents(stage1, settings.item_vectors, seed, cf)
    shown = latents
    if settings.text_share:
        if settings.item_vectors != "joint":
            raise UserError(f"text_share goes with item vectors joint, not {settings.item_vectors}; set it to 0")
        shown = np.concatenate([item_latents(stage1, kind, seed) for kind in ("joint", "text")])
    frozen = Frozen(llm_params, None if shown is None else jnp.asarray(shown))
    sampler = Stage2Sampler(dataset, cf, tables, settings, seed)

    epoch_steps = math.ceil(len(sampler) / settings.batch_size)
    total_steps = settings.steps or settings.epochs * epoch_steps
    optimizer = make_optimizer(settings, total_steps)
    params = init_params(
        llm.config.embed_dim,
        cf.dim if settings.user_vector else None,
        None if latents is None else latents.shape[1],
        jax_key(seed, "stage2/init"),
    )
    # A resumed run takes its state from the checkpoint and needs no start.
    if settings.warm_start_steps and not training.continues:
        with announce("warm start of the projectors", quiet, settings.warm_start_steps) as show:
            params = start_projectors(params, llm, frozen, sampler, show)
    frozen = frozen._replace(latents=sharding.place(frozen.latents))
    step = sharding.on_mesh(make_step(llm, optimizer, settings.accumulation))
    evaluate = None
    if settings.choose == "best":
        recommender = LLMRecommender(
            llm,
            llm_params,
            tables,
            STYLES[settings.style],
            user_slot=settings.user_vector,
            history_length=settings.history_length,
            batch_size=settings.batch_size,
        )
        evaluate = make_validation(dataset, cf, recommender, frozen.latents, settings, seed)
    state = training.fit(
        TrainState.start(params, optimizer),
        lambda state, batch: step(state, frozen, batch),
        lambda index: sharding.place_batch(sampler(index)),
        LoopSettings(
            total_steps=total_steps,
            evaluate_every=epoch_steps if evaluate else 0,
            save_every=min(SAVE_EVERY, epoch_steps),
            patience=settings.patience,
        ),
        evaluate=evaluate,
        monitor="hit@1" if evaluate else None,
    )

    if sampler.dropped:
        limit = llm.config.max_position_embeddings
        logger.info("%d old history items were left out to fit %d positions", sampler.dropped, limit)
    save_arrays(training.export_path("params.safetensors"), jax.device_get(state.params))
    card = {"llm": str(llm_name), "cf": str(cf_path), "stage1": None if stage1 is None else str(stage1_path)}
    write_text(training.export_path("stage2.json"), json.dumps(card, indent=2) + "\n")
    return training.finish(
        {
            "steps": total_steps,
            "samples": len(sampler),
            "compiled_shapes": len(sampler.shapes),
            "real_tokens": round(sampler.tokens_read / max(sampler.tokens_processed, 1), 4),
            "titles_cut": tables.titles.cut,
            "history_items_dropped": sampler.dropped,
        }
    )


def make_validation(
    dataset: Dataset,
    cf: CFModel,
    recommender: LLMRecommender,
    latents: Float[Array, "N+1 Dj"] | None,
    settings: Stage2Settings,
    seed: int,
) -> Callable[[TrainState], dict[str, float]]:
    """Ranking metrics of a state's projectors on a seeded sample of validation users."""
    asked = make_candidates(
        dataset, cut="valid", seed=seed, max_users=settings.validation_users, count=settings.candidates
    )
    histories, _ = dataset.history(asked.users, "valid", CF_HISTORY)
    users = np.asarray(cf.at("valid").user_vectors(asked.users, histories)) if settings.user_vector else None

    def evaluate(state: TrainState) -> dict[str, float]:
        trained = dataclasses.replace(recommender, soft=SoftTokens(state.params, latents))
        ranks = target_ranks(trained.rank(histories, asked.candidates, users), asked.target_column)
        return {name: float(values.mean()) for name, values in ranking_metrics(ranks).items()}

    return evaluate


def check_length(tables: PromptTables, settings: Stage2Settings) -> None:
    """Refuses settings under which no prompt fits the language model's positions: those of the shortest titles do not.

    Raises:
        UserError: with the numbers, before anything is loaded.
    """
    shortest = 1 + np.argsort(np.diff(tables.titles.offsets)[1:], kind="stable")
    shown = np.resize(shortest, settings.candidates)[None]
    build_prompts(
        tables,
        STYLES[settings.style],
        shown[:, :1],
        shown,
        shown[:, 0],
        soft=True,
        user_slot=settings.user_vector,
        item_slots=settings.item_vectors != "none",
    )
