"""``allmrec train ctrl``: SASRec aligned with texts, then fine-tuned."""

from pathlib import Path

import click

from allmrec_jax.baselines.ctrl import PRESETS, train_ctrl
from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import encoder_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS

ENCODERS = KINDS["ctrl"].models["encoder"]


@click.command(
    name="ctrl",
    epilog="Example: allmrec train ctrl --data data/Movies --preset paper --seed 1",
)
@mesh_options()
@training_options
@encoder_option(ENCODERS)
@settings_options(PRESETS)
def command(
    data: Path, sentence_encoder: str | None, preset: str, overrides: dict, seed: int, out: Path, resume: bool
) -> None:
    """Pre-train SASRec against texts by contrast (a run of its own), then fine-tune it.

    Prints the run's directory last; `allmrec eval overall` takes it as --runs.
    """
    settings = resolve(PRESETS, preset, overrides)
    print(train_ctrl(load_dataset(data), sentence_encoder or ENCODERS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
