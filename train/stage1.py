"""``allmrec train stage1``: align the CF model's items with their texts."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.run import find_upstream
from allmrec_jax.training.stage1 import ENCODERS, PRESETS, train_stage1


@click.command(
    name="stage1",
    epilog="Example: allmrec train stage1 --data data/Movies --preset paper --seed 1",
)
@mesh_options()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option("--cf", type=click.Path(path_type=Path), help="The CF run or arrays; by default the only run there is.")
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
