"""``allmrec train recformer``: a Longformer that reads histories as text."""

from pathlib import Path

import click

from allmrec_jax.baselines.recformer import PRESETS, train_recformer
from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS

LONGFORMER = KINDS["recformer"].models["longformer"]["paper"]


@click.command(
    name="recformer",
    epilog="Example: allmrec train recformer --data data/Movies --preset paper --seed 1",
)
@mesh_options()
@training_options
@click.option(
    "--longformer",
    default=LONGFORMER,
    show_default=True,
    help="A Longformer's directory or hub name; not read with --start scratch.",
)
@settings_options(PRESETS)
def command(data: Path, longformer: str, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Pre-train and fine-tune RECFORMER, in three runs; preset small is RECFORMER (tiny), from scratch.

    Prints the run's directory last; `allmrec eval overall` takes it as --runs.
    """
    settings = resolve(PRESETS, preset, overrides)
    print(train_recformer(load_dataset(data), longformer, settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
