"""Training of the embedded models, ``opt-nano`` and ``sbert-nano``, from generated text alone."""

import os
from pathlib import Path
from typing import Any

from allmrec_jax.errors import UserError
from allmrec_jax.settings import resolve


def train_embedded_model(
    name: str,
    *,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    resume: bool = False,
    export_to: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Path:
    """Trains one of the models that the package carries; who only uses them has no need to.

    Args:
        name: ``"opt-nano"``, the language model (about an hour on two cores), or ``"sbert-nano"``, the sentence
            encoder (about ten minutes).
        seed: of every random draw.
        checkpoints: the folder of runs.
        resume: continue an interrupted run.
        export_to: also write the finished model to this folder.
        settings: single settings in place of the packaged model's.

    Returns:
        the run's directory; the model is below its ``export``.

    Raises:
        UserError: there is no such model or setting.
    """
    place = None if export_to is None else Path(export_to)
    if name == "opt-nano":
        from allmrec_jax.embedded.opt_nano import PRESETS as OPT_NANO
        from allmrec_jax.embedded.opt_nano_training import train_opt_nano

        return train_opt_nano(
            resolve(OPT_NANO, "default", settings), seed, Path(checkpoints), resume=resume, export_to=place
        )
    if name == "sbert-nano":
        from allmrec_jax.embedded.sbert_nano import PRESETS as SBERT_NANO
        from allmrec_jax.embedded.sbert_nano_training import train_sbert_nano

        return train_sbert_nano(
            resolve(SBERT_NANO, "default", settings), seed, Path(checkpoints), resume=resume, export_to=place
        )
    raise UserError(f"unknown embedded model {name!r}; known: opt-nano, sbert-nano")
