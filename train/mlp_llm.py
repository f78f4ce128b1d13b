"""``allmrec train mlp-llm``: CF vectors into the language model's token space by MLPs alone, without a stage 1."""

from pathlib import Path

import click

from allmrec_jax.baselines.mlp_llm import PRESETS, train_mlp_llm
from allmrec_jax.commands.mesh import mesh_options
from allmrec_jax.commands.training import cf_option, llm_option, training_options
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.runs import find_upstream
from allmrec_jax.settings import settings_options
from allmrec_jax.trained.kinds import KINDS

LLMS = KINDS["mlp-llm"].models["llm"]


@click.command(
    name="mlp-llm",
    epilog="Example: allmrec train mlp-llm --data data/Movies --style movies --llm facebook/opt-1.3b --seed 1",
)
@mesh_options(lambda given: given["llm"] or LLMS[given["preset"]])
@training_options
@cf_option
@llm_option(LLMS, PRESETS)
@settings_options(PRESETS)
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
    settings = KINDS["mlp-llm"].settings(preset, overrides)
    if cf is None:
        cf, _ = find_upstream(out, "cf", dataset.name, dataset.hash)
    print(train_mlp_llm(dataset, cf, llm or LLMS[preset], settings, seed, out, resume=resume))


if __name__ == "__main__":
    command()
