"""``allmrec train morec``: SASRec over a sentence encoder, trained end to end."""

from pathlib import Path

import click

from allmrec_jax.baselines.morec import PRESETS, train_morec
from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import encoder_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS

ENCODERS = KINDS["morec"].models["encoder"]


@click.command(
    name="morec",
    epilog="Example: allmrec train morec --data data/Movies --preset paper --seed 1",
)
@mesh_options()
@training_options
@encoder_option(ENCODERS)
@settings_options(PRESETS)
def command(
    data: Path, sentence_encoder: str | None, preset: str, overrides: dict, seed: int, out: Path, resume: bool
) -> None:
    """Train MoRec: the titles' encoder is the item embedding of a SASRec.

    Prints the run's directory last; `allmrec eval overall` takes it as --runs.
    """
    settings = resolve(PRESETS, preset, overrides)
    print(train_morec(load_dataset(data), sentence_encoder or ENCODERS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
