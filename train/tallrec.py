"""``allmrec train tallrec``: LoRA on the language model's query and value projections."""

from pathlib import Path

import click

from allmrec_jax.baselines.tallrec import PRESETS, train_tallrec
from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import llm_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.kinds import KINDS

LLMS = KINDS["tallrec"].models["llm"]


@click.command(
    name="tallrec",
    epilog="Example: allmrec train tallrec --data data/Movies --protocol titles --style movies --llm facebook/opt-1.3b",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@training_options
@llm_option(LLMS, PRESETS)
@settings_options(PRESETS)
def command(data: Path, llm: str | None, preset: str, overrides: dict, seed: int, out: Path, resume: bool) -> None:
    """Train TALLRec's adapter, with the language model itself frozen.

    Prints the run's directory last; `allmrec eval` takes it, and PEFT reads its export/adapter.
    """
    dataset = load_dataset(data)
    print(train_tallrec(dataset, llm or LLMS[preset], resolve(PRESETS, preset, overrides), seed, out, resume=resume))


if __name__ == "__main__":
    command()
