"""``allmrec train mlp-llm``: CF vectors into the language model's token space by MLPs alone, without a stage 1."""

from pathlib import Path

import click

from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.training.run import find_upstream
from allmrec_jax.training.stage2 import LLMS, MLP_PRESETS, train_stage2


@click.command(
    name="mlp-llm",
    epilog="Example: allmrec train mlp-llm --data data/Movies --style movies --llm facebook/opt-1.3b --seed 1",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option("--cf", type=click.Path(path_type=Path), help="The CF run or arrays; by default the only run there is.")
@click.option(
    "--llm", help="OPT as a directory or hub name, or opt-nano.  [" + ", ".join(map(" ".join, LLMS.items())) + "]"
)
@settings_options(MLP_PRESETS)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
def command(
    data: Path,
    cf: Path | None,
    llm: str | None,
    preset: str,
    overrides: dict,
    seed: int,
    out: Path,
    resume: bool,
) -> None:
    """Train MLP-LLM: stage 2 on the CF model's own vectors, with the language model and the CF model frozen.

    Prints the run's directory last; `allmrec eval` takes it.
    """
    dataset = load_dataset(data)
    settings = resolve(MLP_PRESETS, preset, {**overrides, "item_vectors": "cf"})
    if cf is None:
        cf, _ = find_upstream(out, "cf", dataset.name, dataset.hash)
    print(train_stage2(dataset, cf, None, llm or LLMS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
