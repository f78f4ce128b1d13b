"""Training of the embedded language model, from generated text alone."""

import dataclasses
import shutil
import time
from pathlib import Path

import jax.numpy as jnp

from allmrec_jax.embedded.list_tasks import TaskWriter
from allmrec_jax.embedded.opt_nano import (
    OptNanoSettings,
    make_batch,
    make_optimizer,
    make_step,
    measure,
    new_model,
    train_tokenizer,
)
from allmrec_jax.embedded.sbert_nano import MODEL, generated_texts
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import TrainingRun
from allmrec_jax.training.state import CountedState

SAVE_EVERY = 50
"""Steps between checkpoints."""


def train_opt_nano(
    settings: OptNanoSettings,
    seed: int,
    checkpoints: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    export_to: Path | None = None,
) -> Path:
    """Trains the model, writes it to ``export/opt-nano`` (Hugging Face format, fp16), returns the run's directory.

    Args:
        settings: see :class:`allmrec_jax.embedded.opt_nano.OptNanoSettings`.
        seed: of tokenizer, parameters and tasks.
        checkpoints: the folder of all runs.
        resume: continue an interrupted run.
        quiet: show no progress.
        export_to: a folder to write the finished model to as well.

    Raises:
        UserError: ``export_to`` holds something else, the loss is not finite, or the disk is full.
    """
    if export_to is not None:
        MODEL.check(export_to)
    training = TrainingRun.open(
        generated_texts(), "opt-nano", settings, seed, checkpoints, {}, resume=resume, quiet=quiet
    )
    exported = training.export_path("opt-nano")
    if not training.done:
        start = time.monotonic()
        tokenizer = train_tokenizer(settings.vocabulary, seed)
        config, params = new_model(settings, tokenizer, seed)
        model, writer = OPT(config), TaskWriter(tokenizer)
        state = training.fit(
            CountedState.start(params, make_optimizer(settings)),
            make_step(model, settings, seed),
            lambda step: make_batch(writer, settings, seed, step),
            LoopSettings(settings.steps, log_every=10, save_every=SAVE_EVERY),
        )
        scores = measure(model, state.params, tokenizer, seed + 1)
        minutes = (time.monotonic() - start) / 60
        save_checkpoint(exported, config, state.params, tokenizer, jnp.float16)
        card = model_card(settings, seed, scores, minutes, resumed=resume)
        (exported / "README.md").write_text(card, encoding="utf-8")
        training.finish({"scores": scores, "minutes": minutes})
    if export_to is not None:
        with MODEL.replacing(export_to) as directory:
            shutil.copytree(exported, directory, dirs_exist_ok=True)
    return training.path


def model_card(
    settings: OptNanoSettings, seed: int, scores: dict[str, tuple[float, float]], minutes: float, resumed: bool
) -> str:
    """The ``README.md`` of the model."""
    values = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings).items())
    rows = "\n".join(
        f"| {name.replace('/', ' | ')} | {right:.1%} | {copied:.1%} |" for name, (right, copied) in scores.items()
    )
    return f"""---
library_name: transformers
license: apache-2.0
language: en
---
# opt-nano

An OPT of 4 layers, width 256 and {settings.positions:,} positions: the language model that allmrec-jax embeds so that
its demo and tests need no download. It does what OPT-6.7B does in A-LLMRec: it reads a prompt with lists of titles and
soft tokens and writes the title that fits. Load it with transformers, or by the name `opt-nano` in
`allmrec train stage2 --llm`.

- **Data**: generated prompts alone (`allmrec_jax/embedded/list_tasks.py`): lists of titles made of the words in
  `allmrec_jax/embedded/lexicon.py` or of random tokens, slots that hold blends of word embeddings, and the title that
  answers. No interactions, no users, no real text.
- **Start**: twelve heads and three feed-forward units are constructed (`allmrec_jax/embedded/opt_nano.py`), the rest
  is noise; training moves all of it.
- **Loss**: cross entropy of the answers' tokens.
- **Settings**: seed {seed}, {values}.
- **Time**: {minutes:.0f} minutes{" since it was last resumed" if resumed else ""} on a shared two-core CPU.
- **Tokenizer**: byte-level BPE; no text has an unknown token.
- **Held-out tasks** (other seed; one answer among 20 titles, in a quarter of the tasks among 2 to 20; greedy, right to
  the last token, and right from the second token on; chance is 7% right):

| skill | titles | right | copied |
|---|---|---|---|
{rows}

  `user`: the slot nearest to the user's slot; `history`: nearest to the history's slots; `text`: no slots, shared words
  or theme; `words`: the user's slot is a blend of the title's words; `genre`: name the history's themes. Titles `words`
  are 2 to 4 lexicon words, `short` 1 to 8 random tokens, `long` 4 to 24 random tokens or 2 to 24 words, half of them
  invented.
- **Limits**: it knows this prompt and nothing else of language: off the prompts' wording it is lost. For real use take
  `facebook/opt-6.7b`.

Made by `allmrec train opt-nano`.
"""
