"""``allmrec train cf``: train the collaborative-filtering model."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import model_options, resolve
from allmrec_jax.training.cf import PRESETS, train_cf


@click.command(
    name="cf",
    epilog="Example: allmrec train cf --data data/Movies --model gru4rec --preset paper --seed 1",
)
@mesh_options()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@model_options(PRESETS, "sasrec")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def command(data: Path, model: str, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Train the collaborative-filtering model on next-item prediction, and export it.

    Prints the run's directory last; later stages take it as --cf.
    """
    dataset = load_dataset(data)
    print(train_cf(dataset, resolve(PRESETS[model], preset, overrides), seed, out, resume=resume))


if __name__ == "__main__":
    command()
