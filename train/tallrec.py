"""``allmrec train tallrec``: LoRA on the language model's query and value projections."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.stage2 import LLMS
from allmrec_jax.training.tallrec import PRESETS, train_tallrec


@click.command(
    name="tallrec",
    epilog="Example: allmrec train tallrec --data data/Movies --protocol titles --style movies --llm facebook/opt-1.3b",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option(
    "--llm",
    help="OPT as a directory or hub name, or opt-nano.  ["
    + ", ".join(f"{preset} {LLMS[preset]}" for preset in PRESETS)
    + "]",
)
@settings_options(PRESETS)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def command(data: Path, llm: str | None, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Train TALLRec's adapter, with the language model itself frozen.

    Prints the run's directory last; `allmrec eval` takes it, and PEFT reads its export/adapter.
    """
    dataset = load_dataset(data)
    print(train_tallrec(dataset, llm or LLMS[preset], resolve(PRESETS, preset, overrides), seed, out, resume=resume))


if __name__ == "__main__":
    command()
