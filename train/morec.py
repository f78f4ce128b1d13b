"""``allmrec train morec``: SASRec over a sentence encoder, trained end to end."""

from pathlib import Path

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.morec import ENCODERS, PRESETS, train_morec


@click.command(
    name="morec",
    epilog="Example: allmrec train morec --data data/Movies --preset paper --seed 1",
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option(
    "--sentence-encoder",
    help="A sentence-transformers directory or hub name, or sbert-nano.  ["
    + ", ".join(map(" ".join, ENCODERS.items()))
    + "]",
)
@settings_options(PRESETS)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
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
