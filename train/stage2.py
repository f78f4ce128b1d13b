"""``allmrec train stage2``: train the projectors into the language model's token space."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.run import find_upstream
from allmrec_jax.training.stage2 import LLMS, PRESETS, train_stage2


@click.command(
    name="stage2",
    epilog="Example: allmrec train stage2 --data data/Movies --style movies --llm facebook/opt-1.3b --seed 1",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option("--cf", type=click.Path(path_type=Path), help="The CF run or arrays; by default the only run there is.")
@click.option("--stage1", type=click.Path(path_type=Path), help="The stage-1 run; by default the only one there is.")
@click.option(
    "--llm", help="OPT as a directory or hub name, or opt-nano.  [" + ", ".join(map(" ".join, LLMS.items())) + "]"
)
@settings_options(PRESETS)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def command(
    data: Path,
    cf: Path | None,
    stage1: Path | None,
    llm: str | None,
    preset: str,
    overrides: dict,
    seed: int,
    out: Path,
    resume: bool,
) -> None:
    """Train the user and item projectors with the language model, the CF model and stage 1 frozen.

    Prints the run's directory last; `allmrec eval` and `allmrec recommend` take it.
    """
    dataset = load_dataset(data)
    settings = resolve(PRESETS, preset, overrides)
    if cf is None:
        cf, _ = find_upstream(out, "cf", dataset.name, dataset.hash)
    if stage1 is None and settings.item_vectors != "cf":
        stage1, _ = find_upstream(out, "stage1", dataset.name, dataset.hash)
    print(train_stage2(dataset, cf, stage1, llm or LLMS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
