"""TALLRec (Bao et al. 2023, arXiv 2305.00447): LoRA on the query and value projections of a frozen language model.

How the A-LLMRec paper gets a Hit@1 over 20 candidates from it is not said. Two protocols stand side by side:

* ``yes-no``: the model is asked about one item at a time; see :mod:`allmrec_jax.inference.yes_no`. Trained on each
  sample's target ("Yes.") and random items ("No.").
* ``titles``: the text-only prompt with 20 candidates that LLM-Only reads, answered with the target's title; trained and
  evaluated as stage 2 is.

Shapes: B batch, S prompt length, K candidates.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from allmrec_jax import sharding
from allmrec_jax.data.candidates import make_candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.inference.yes_no import YesNoRecommender, yes_no_prompts
from allmrec_jax.metrics import ranking_metrics, target_ranks
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.llm.lora import Adapter, init_adapter, merge, variables
from allmrec_jax.pretrained.frozen_llm import load_llm, prompt_tables
from allmrec_jax.pretrained.llm import check_llm, llm_hash
from allmrec_jax.pretrained.peft import LoRA, save_adapter
from allmrec_jax.progress import announce
from allmrec_jax.prompts import STYLES, PromptBatch, PromptTables
from allmrec_jax.rng import jax_key
from allmrec_jax.settings import setting
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import SAVE_EVERY, TrainingRun
from allmrec_jax.training.stage2 import loss_behind, make_optimizer
from allmrec_jax.training.stage2_batches import Stage2Batch, Stage2Sampler, pad_batch
from allmrec_jax.training.stage2_settings import Stage2Settings


@dataclasses.dataclass(frozen=True)
class TallrecSettings:
    """What decides a TALLRec run's numbers. Rank, alpha, dropout and learning rate are TALLRec's own."""

    protocol: Literal["yes-no", "titles"] = setting("yes-no", "what is asked, see above")
    rank: int = setting(8, "of the low-rank terms")
    alpha: float = setting(16.0, "their scale, times the rank")
    dropout: float = setting(0.05, "of the low-rank terms' inputs")
    epochs: int = setting(5, "passes over the training samples at most; the paper's for stage 2")
    steps: int = setting(0, "optimizer steps in place of epochs; 0 is by epochs")
    batch_size: int = setting(4, "prompts per optimizer step")
    learning_rate: float = setting(1e-4, "Adam's learning rate")
    beta2: float = setting(0.999, "Adam's second moment decay, TALLRec's code's")
    schedule: Literal["constant", "cosine"] = setting("constant", "of the learning rate after the warm-up")
    warmup_steps: int = setting(0, "steps of linear warm-up")
    positions: Literal["last", "all"] = setting(
        "last", "targets: each training sequence's last item, or every item but the first"
    )
    negatives: int = setting(1, "yes-no: random items asked about for each target; TALLRec has ratings instead")
    history_length: int = setting(10, "items of history in a prompt at most")
    candidates: int = setting(20, "titles to choose from")
    title_max_tokens: int = setting(32, "tokens that longer titles are cut to")
    style: Literal["neutral", "movies", "games", "goods"] = setting("neutral", "the words of the prompt")
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", "of the language model; the adapter is float32")
    remat: bool = setting(False, "recompute layers in the backward pass to save memory")
    choose: Literal["best", "last"] = setting("best", "export the best step on validation (Hit@1), or the last one")
    validation_users: int = setting(500, "users in a validation, a seeded sample; one validation each epoch")
    patience: int = setting(2, "validations without improvement before training stops; 0 is never")

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "negatives", "history_length", "title_max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"TALLRec: {name} is {getattr(self, name)}; it must be at least 1")
        if self.candidates < 2:
            raise UserError(f"TALLRec: candidates is {self.candidates}; it must be at least 2")
        if self.protocol == "yes-no" and self.batch_size % (1 + self.negatives):
            raise UserError(
                f"TALLRec: a batch of {self.batch_size} prompts does not hold whole samples of "
                f"{1 + self.negatives} prompts each; choose another batch_size or another number of negatives"
            )

    @property
    def kind(self) -> str:
        """Of the run: the two protocols are two systems."""
        return f"tallrec-{self.protocol}"

    @property
    def samples_per_step(self) -> int:
        """Targets in a batch."""
        return self.batch_size // (1 + self.negatives) if self.protocol == "yes-no" else self.batch_size

    @property
    def sampling(self) -> Stage2Settings:
        """What stage 2's sampler and optimizer are asked for: text-only prompts."""
        shared = {field.name for field in dataclasses.fields(Stage2Settings)} & set(dataclasses.asdict(self))
        values: dict[str, Any] = {name: getattr(self, name) for name in shared}
        if self.protocol == "yes-no":
            values["candidates"] = 1 + self.negatives
        return Stage2Settings(**values, item_vectors="none", user_vector=False)


_SMALL: dict[str, Any] = {
    "steps": 320,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 20,
    "positions": "all",
    "history_length": 6,
    "title_max_tokens": 16,
    "dtype": "float32",
    "choose": "last",
}
PRESETS = {"paper": TallrecSettings(), "small": TallrecSettings(**_SMALL)}
"""``paper``: TALLRec's LoRA, the A-LLMRec paper's batch of 4. ``small``: the budget of stage 2's preset ``small``."""

KINDS = tuple(TallrecSettings(protocol=protocol).kind for protocol in ("yes-no", "titles"))


class TallrecState(NamedTuple):
    """What training changes."""

    adapter: Adapter
    opt_state: Any
    step: Int[Array, ""]


Step = Callable[[TallrecState, Any, PromptBatch], tuple[TallrecState, dict[str, jax.Array]]]


def make_step(llm: LanguageModel, optimizer: optax.GradientTransformation, scale: float, seed: int) -> Step:
    """The jitted training step; the state is donated, the language model's parameters are only read.

    The loss is the mean over all answer tokens of the batch; ``exact`` is the share of answers whose every token is the
    most probable.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TallrecState, frozen: Any, prompts: PromptBatch) -> tuple[TallrecState, dict[str, jax.Array]]:
        rngs = {"dropout": jax_key(seed, "tallrec/dropout", state.step)}
        tokens = jnp.sum(prompts.target_mask)

        def loss(adapter: Adapter) -> tuple[jax.Array, jax.Array]:
            adapted = variables(frozen, adapter, scale)
            embeds = llm.apply(adapted, prompts.ids, method="embed")
            total, metrics = loss_behind(llm, adapted, embeds, prompts, rngs)
            return total / tokens, metrics["exact"] / jnp.sum(prompts.target_mask.any(axis=1), dtype=jnp.float32)

        (value, exact), gradient = jax.value_and_grad(loss, has_aux=True)(state.adapter)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.adapter)
        metrics = {"loss": value, "exact": exact, "gradient_norm": optax.tree.norm(gradient)}
        state = TallrecState(optax.apply_updates(state.adapter, updates), opt_state, state.step + 1)
        return sharding.constrain((state, metrics), P())

    return step


def make_batch(sampler: Stage2Sampler, settings: TallrecSettings, index: int) -> PromptBatch:
    """Batch ``index``, 0-based, always full: it depends on the seed and the index only."""
    if settings.protocol == "titles":
        return sampler(index).prompts
    question = sampler.draw(index, settings.samples_per_step, "tallrec")
    items = question.candidates
    truths = items == question.targets[:, None]
    histories = np.repeat(question.histories[:, -settings.history_length :], items.shape[1], axis=0)
    prompts = yes_no_prompts(sampler.tables, STYLES[settings.style], histories, items.ravel(), truths.ravel())
    sampler.shapes.add((prompts.ids.shape[1], prompts.targets.shape[1]))
    sampler.dropped += int(prompts.dropped.sum())
    return pad_batch(Stage2Batch(prompts, None)).prompts


def make_recommender(
    llm: LanguageModel,
    llm_params: Any,
    tables: PromptTables,
    settings: TallrecSettings,
    *,
    batch_size: int,
    decode: DecodeSettings | None = None,
) -> LLMRecommender | YesNoRecommender:
    """The system of the settings' protocol on a language model with its adapter merged."""
    style = STYLES[settings.style]
    if settings.protocol == "yes-no":
        return YesNoRecommender(llm, llm_params, tables, style, settings.history_length, batch_size)
    return LLMRecommender(
        llm,
        llm_params,
        tables,
        style,
        history_length=settings.history_length,
        batch_size=batch_size,
        decode=decode or DecodeSettings(),
    )


def train_tallrec(
    dataset: Dataset,
    llm_name: str | Path,
    settings: TallrecSettings,
    seed: int,
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains the adapter and exports it in PEFT's format; returns the run's directory.

    Args:
        dataset: whose training sequences are learnt.
        llm_name: a directory, a hub name or ``opt-nano``.
        settings: see :class:`TallrecSettings`.
        seed: of every random draw.
        out: the checkpoints directory.
        resume: continue an interrupted run.
        quiet: show no progress.

    Raises:
        UserError: as the parts raise it.
    """
    check_llm(llm_name, jnp.dtype(settings.dtype))
    with announce("hashing the language model's files", quiet):
        upstream = {"llm": llm_hash(llm_name)}
    training = TrainingRun.open(dataset, settings.kind, settings, seed, out, upstream, resume=resume, quiet=quiet)
    if training.done:
        return training.path
    with announce("reading the language model", quiet):
        plain, llm_params = load_llm(llm_name, settings.dtype, remat=settings.remat)
    llm = plain.clone(lora_dropout=settings.dropout)
    tables = prompt_tables(llm_name, llm.config, dataset.titles, settings.title_max_tokens)
    sampler = Stage2Sampler(dataset, None, tables, settings.sampling, seed)
    epoch_steps = math.ceil(len(sampler) / settings.samples_per_step)
    total_steps = settings.steps or settings.epochs * epoch_steps
    optimizer = make_optimizer(settings.sampling, total_steps)
    adapter = init_adapter(llm.config, settings.rank, jax_key(seed, "tallrec/init"))
    state = sharding.place(TallrecState(adapter, optimizer.init(adapter), jnp.zeros((), jnp.int32)))
    step = sharding.on_mesh(make_step(llm, optimizer, settings.alpha / settings.rank, seed))
    evaluate = None
    if settings.choose == "best":
        evaluate = make_validation(dataset, plain, llm_params, tables, settings, seed)
    chosen = training.fit(
        state,
        lambda state, prompts: step(state, llm_params, prompts),
        lambda index: sharding.place_batch(make_batch(sampler, settings, index)),
        LoopSettings(
            total_steps=total_steps,
            evaluate_every=epoch_steps if evaluate else 0,
            save_every=min(SAVE_EVERY, epoch_steps),
            patience=settings.patience,
        ),
        evaluate=evaluate,
        monitor="hit@1" if evaluate else None,
    )
    lora = LoRA(jax.device_get(chosen.adapter), settings.alpha)
    save_adapter(training.export_path("adapter"), llm.config, lora, dropout=settings.dropout, base_model=str(llm_name))
    write_text(training.export_path("tallrec.json"), json.dumps({"llm": str(llm_name)}, indent=2) + "\n")
    return training.finish(
        {
            "steps": training.run.latest_step(),
            "samples": len(sampler),
            "compiled_shapes": len(sampler.shapes),
            "titles_cut": tables.titles.cut,
            "history_items_dropped": sampler.dropped,
        }
    )


def make_validation(
    dataset: Dataset, llm: LanguageModel, llm_params: Any, tables: PromptTables, settings: TallrecSettings, seed: int
) -> Callable[[TallrecState], dict[str, float]]:
    """Ranking metrics of a state's adapter on a seeded sample of validation users."""
    asked = make_candidates(
        dataset, cut="valid", seed=seed, max_users=settings.validation_users, count=settings.candidates
    )
    histories, _ = dataset.history(asked.users, "valid", settings.history_length)

    def evaluate(state: TallrecState) -> dict[str, float]:
        merged = merge(llm_params, state.adapter, settings.alpha / settings.rank)
        recommender = make_recommender(llm, merged, tables, settings, batch_size=settings.batch_size)
        ranks = target_ranks(recommender.rank(histories, asked.candidates), asked.target_column)
        return {name: float(values.mean()) for name, values in ranking_metrics(ranks).items()}

    return evaluate
