"""``allmrec train stage1``: align the CF model's items with their texts."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import cf_option, encoder_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.runs import find_upstream
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS
from allmrec_jax.training.stage1 import train_stage1
from allmrec_jax.training.stage1_settings import PRESETS

ENCODERS = KINDS["stage1"].models["encoder"]


@click.command(
    name="stage1",
    epilog="Example: allmrec train stage1 --data data/Movies --preset paper --seed 1",
)
@mesh_options()
@training_options
@cf_option
@encoder_option(ENCODERS)
@settings_options(PRESETS)
def command(
    data: Path,
    cf: Path | None,
    sentence_encoder: str | None,
    preset: str,
    overrides: dict,
    seed: int,
    out: Path,
    resume: bool,
) -> None:
    """Train the autoencoders and the sentence encoder with the CF model frozen.

    Prints the run's directory last; stage 2 takes it as --stage1.
    """
    dataset = load_dataset(data)
    settings = resolve(PRESETS, preset, overrides)
    if cf is None:
        cf, _ = find_upstream(out, "cf", dataset.name, dataset.hash)
    print(train_stage1(dataset, cf, sentence_encoder or ENCODERS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
