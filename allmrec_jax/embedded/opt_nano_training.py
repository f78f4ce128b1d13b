"""Training of the embedded language model, from generated text alone."""

import dataclasses
from pathlib import Path

from allmrec_jax.embedded.opt_nano import OptNanoSettings

SAVE_EVERY = 50
"""Steps between checkpoints."""


def train_opt_nano(
    settings: OptNanoSettings, seed: int, checkpoints: Path, *, resume: bool = False, export_to: Path | None = None
) -> Path:
    """Train, write ``export/opt-nano`` (Hugging Face format, fp16) and return the run's directory."""
    import shutil
    import time

    import jax.numpy as jnp

    from allmrec_jax.embedded.list_tasks import TaskWriter
    from allmrec_jax.embedded.opt_nano import (
        TrainState,
        make_batch,
        make_optimizer,
        make_step,
        measure,
        new_model,
        train_tokenizer,
    )
    from allmrec_jax.embedded.sbert_nano import MODEL, lexicon_hash
    from allmrec_jax.models.llm.opt import OPT
    from allmrec_jax.pretrained.llm import save_opt
    from allmrec_jax.runs import Run
    from allmrec_jax.training.loop import LoopSettings, train_loop
    from allmrec_jax.training.metrics import MetricsLogger

    if export_to is not None:
        MODEL.check(export_to)
    run = Run.open(checkpoints, "generated", "opt-nano", settings, seed, lexicon_hash(), {}, resume=resume)
    if not run.done:
        start = time.monotonic()
        tokenizer = train_tokenizer(settings.vocabulary, seed)
        config, params = new_model(settings, tokenizer, seed)
        model, writer = OPT(config), TaskWriter(tokenizer)
        state = TrainState(params, make_optimizer(settings).init(params), jnp.zeros((), jnp.int32))
        with MetricsLogger(run.path, settings.steps) as log:
            state, _ = train_loop(
                run,
                state,
                make_step(model, settings, seed),
                lambda step: make_batch(writer, settings, seed, step),
                LoopSettings(settings.steps, log_every=10, save_every=SAVE_EVERY),
                resume=resume,
                log=log,
            )
        scores = measure(model, state.params, tokenizer, seed + 1)
        minutes = (time.monotonic() - start) / 60
        save_opt(run.export_path("opt-nano"), config, state.params, tokenizer, jnp.float16)
        card = model_card(settings, seed, scores, minutes, resumed=resume)
        (run.export_path("opt-nano") / "README.md").write_text(card, encoding="utf-8")
        run.finish({"scores": scores, "minutes": minutes})
    if export_to is not None:
        with MODEL.replacing(export_to) as directory:
            shutil.copytree(run.export_path("opt-nano"), directory, dirs_exist_ok=True)
    return run.path


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
