"""Training of the embedded sentence encoder, from generated text alone."""

import dataclasses
import shutil
import time
from pathlib import Path

from allmrec_jax.embedded.sbert_nano import (
    MODEL,
    SbertNanoSettings,
    generated_texts,
    make_batch,
    make_optimizer,
    make_step,
    measure,
    new_encoder,
)
from allmrec_jax.pretrained.sentence_encoder import save_sentence_encoder
from allmrec_jax.training.loop import LoopSettings
from allmrec_jax.training.run import TrainingRun
from allmrec_jax.training.state import CountedState

EVALUATE_EVERY = 250
"""Steps between measurements on held-out texts and between checkpoints."""


def train_sbert_nano(
    settings: SbertNanoSettings,
    seed: int,
    checkpoints: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    export_to: Path | None = None,
) -> Path:
    """Trains the encoder, writes it to ``export/sbert-nano`` and returns the run's directory.

    Args:
        settings: see :class:`allmrec_jax.embedded.sbert_nano.SbertNanoSettings`.
        seed: of texts, parameters and dropout.
        checkpoints: the folder of all runs.
        resume: continue an interrupted run.
        quiet: show no progress.
        export_to: a folder to write the finished encoder to as well.

    Raises:
        UserError: ``export_to`` holds something else, the loss is not finite, or the disk is full.
    """
    if export_to is not None:
        MODEL.check(export_to)
    training = TrainingRun.open(
        generated_texts(), "sbert-nano", settings, seed, checkpoints, {}, resume=resume, quiet=quiet
    )
    exported = training.export_path("sbert-nano")
    if not training.done:
        start = time.monotonic()
        encoder = new_encoder(settings, seed)
        state = training.fit(
            CountedState.start(encoder.params, make_optimizer(settings)),
            make_step(encoder.model, settings, seed),
            lambda step: make_batch(encoder, settings, seed, step),
            LoopSettings(settings.steps, log_every=25, evaluate_every=EVALUATE_EVERY, save_every=EVALUATE_EVERY),
            evaluate=lambda state: measure(dataclasses.replace(encoder, params=state.params), seed),
        )
        trained = dataclasses.replace(encoder, params=state.params)
        scores = measure(trained, seed + 1, count=1000)
        minutes = (time.monotonic() - start) / 60
        card = model_card(settings, seed, scores, minutes, resumed=resume)
        save_sentence_encoder(exported, trained, card=card)
        training.finish({"scores": scores, "minutes": minutes})
    if export_to is not None:
        with MODEL.replacing(export_to) as directory:
            shutil.copytree(exported, directory, dirs_exist_ok=True)
    return training.path


def model_card(settings: SbertNanoSettings, seed: int, scores: dict[str, float], minutes: float, resumed: bool) -> str:
    """The ``README.md`` of the encoder."""
    values = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings).items())
    return f"""---
library_name: sentence-transformers
license: apache-2.0
language: en
---
# sbert-nano

A DistilBERT of {settings.layers} layers and width {settings.hidden_size} with mean pooling: the sentence encoder that
allmrec-jax embeds so that its demo and tests need no download. Load it with sentence-transformers, or by the name
`sbert-nano` in `allmrec train stage1 --sentence-encoder`.

- **Data**: generated text alone, written on the fly from the word lists in `allmrec_jax/embedded/lexicon.py` (24 themes
  with about 20 words each, words that carry no theme) and from invented words; about
  {settings.steps * settings.batch_size:,} pairs of texts. No real text, no user data.
- **Loss**: among the second texts of a batch each text finds those on its own themes: cross entropy between
  softmax(theme overlap / {settings.temperature}) and softmax(cosine / {settings.temperature}), both ways.
- **Settings**: seed {seed}, {values}.
- **Time**: {minutes:.0f} minutes{" since it was last resumed" if resumed else ""} on a shared two-core CPU.
- **Tokenizer**: lower-casing WordPiece over bytes; no text has an unknown token.
- **Held-out texts** (1,000 pairs, written with another seed): the nearest text shares the main theme in
  {scores["nearest"]:.1%} of cases (4% by chance); cosine and theme overlap correlate with {scores["overlap"]:.3f}; of
  texts on words invented for the test, {scores["invented"]:.1%} find the one that shares some of them (0.1% by chance).
- **Limits**: it knows the themes of the lexicon's words and the spelling of others, no more: not synonyms, not grammar,
  no language but the lexicon's English. Text beyond {settings.max_length} tokens is cut. For real catalogues use
  `sentence-transformers/nq-distilbert-base-v1` or the like; stage 1 of A-LLMRec fine-tunes either.

Made by `allmrec train sbert-nano`.
"""
