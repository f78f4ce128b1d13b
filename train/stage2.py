"""``allmrec train stage2``: train the projectors into the language model's token space."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import cf_option, llm_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.runs import find_upstream
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS
from allmrec_jax.training.stage2 import train_stage2
from allmrec_jax.training.stage2_settings import PRESETS

LLMS = KINDS["stage2"].models["llm"]


@click.command(
    name="stage2",
    epilog="Example: allmrec train stage2 --data data/Movies --style movies --llm facebook/opt-1.3b --seed 1",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@training_options
@cf_option
@click.option("--stage1", type=click.Path(path_type=Path), help="The stage-1 run; by default the only one there is.")
@llm_option(LLMS, PRESETS)
@settings_options(PRESETS)
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
