"""``allmrec train cf``: train the collaborative-filtering model."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.settings import model_options, resolve
from allmrec_jax.training.cf import train_cf


@click.command(
    name="cf",
    epilog="Example: allmrec train cf --data data/Movies --model gru4rec --preset paper --seed 1",
)
@mesh_options()
@training_options
@model_options(CF_PRESETS, "sasrec")
def command(data: Path, model: str, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Train the collaborative-filtering model on next-item prediction, and export it.

    Prints the run's directory last; later stages take it as --cf.
    """
    dataset = load_dataset(data)
    print(train_cf(dataset, resolve(CF_PRESETS[model], preset, overrides), seed, out, resume=resume))


if __name__ == "__main__":
    command()
