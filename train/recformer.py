"""``allmrec train recformer``: a Longformer that reads histories as text."""

from pathlib import Path

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.recformer import LONGFORMER, PRESETS, train_recformer


@click.command(
    name="recformer",
    epilog="Example: allmrec train recformer --data data/Movies --preset paper --seed 1",
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option(
    "--longformer",
    default=LONGFORMER,
    show_default=True,
    help="A Longformer's directory or hub name; not read with --start scratch.",
)
@settings_options(PRESETS)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def command(data: Path, longformer: str, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Pre-train and fine-tune RECFORMER, in three runs; preset small is RECFORMER (tiny), from scratch.

    Prints the run's directory last; `allmrec eval overall` takes it as --runs.
    """
    settings = resolve(PRESETS, preset, overrides)
    print(train_recformer(load_dataset(data), settings, seed, out, longformer=longformer, resume=resume))


if __name__ == "__main__":
    command()
