"""``allmrec plan``: what a step takes on a mesh of devices, before it is run."""

import json
from typing import TYPE_CHECKING, Any

import click

from allmrec_jax.commands.options import Command, grouped
from allmrec_jax.commands.show import show
from allmrec_jax.errors import UserError

if TYPE_CHECKING:
    from allmrec_jax.api.planning import Plan

EPILOG = """\b
Examples:
  allmrec plan --llm facebook/opt-6.7b --mesh tensor=4 --device a6000
  allmrec plan --llm facebook/opt-66b --mesh tensor=8 --device h100 --infer
  allmrec plan --stage1 --mesh data=4 --length 192 --samples 300000
"""

LLM_OPTIONS, STAGE1_OPTIONS = ("llm", "train", "llm_weights", "remat", "new_tokens"), ("samples", "epochs")
"""Those that only one of the two takes."""


@click.command("plan", cls=Command, epilog=EPILOG)
@grouped(
    "Options",
    click.option("--llm", default="facebook/opt-6.7b", show_default=True, help="A published model, or a directory."),
    click.option("--mesh", default="data=1", show_default=True, help="Axes data, fsdp and tensor."),
    click.option("--device", default="a6000", show_default=True, help="Kind of device; a wrong one lists them."),
    click.option("--batch", type=click.IntRange(1), help="Prompts in all; of stage 1, samples.  [4; 32]"),
    click.option("--length", type=click.IntRange(1), help="Tokens of a prompt; of stage 1, of a text.  [1024; 128]"),
    click.option("--train/--infer", default=True, help="A stage-2 step, or ranking and generation.  [train]"),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
@grouped(
    "Details",
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float32"]),
        help="Of the language model's weights and arithmetic; of stage 1, of the encoder's.  [bfloat16; float32]",
    ),
    click.option(
        "--llm-weights",
        type=click.Choice(["dtype", "int8"]),
        default="dtype",
        show_default=True,
        help="The layers' kernels in --dtype, or in int8.",
    ),
    click.option("--remat", is_flag=True, help="Recompute layers in the backward pass."),
    click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Generated at most."),
)
@grouped(
    "Stage 1",
    click.option("--stage1", is_flag=True, help="A step and a run of stage 1, with nq-distilbert-base-v1."),
    click.option("--samples", type=click.IntRange(1), default=100_000, show_default=True, help="Of an epoch."),
    click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Of the run."),
)
@click.pass_context
def command(context: click.Context, stage1: bool, as_json: bool, **given: Any) -> None:
    """Memory, work, exchange and the least possible time of a step, without weights or network.

    Activations and temporaries are estimates; the other memory is exact.
    """
    from allmrec_jax.api.planning import plan, plan_stage1

    for name in LLM_OPTIONS if stage1 else STAGE1_OPTIONS:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = "--train/--infer" if name == "train" else "--" + name.replace("_", "-")
            raise UserError(f"{option} {'means nothing with' if stage1 else 'needs'} --stage1")
    other = LLM_OPTIONS if stage1 else STAGE1_OPTIONS
    wanted = {name: value for name, value in given.items() if name not in other and value is not None}
    found = plan_stage1(**wanted) if stage1 else plan(**wanted)
    if as_json:
        click.echo(json.dumps(found.facts, indent=2))
    else:
        _show(found)


def _show(plan: "Plan") -> None:
    """Prints a plan as a table, and below it work, exchange and time."""
    from rich.console import Console

    show(plan, numbers=("GiB",))
    console, found, gib = Console(), plan.facts, 2**30
    seconds = dict(found["seconds_at_least"])
    for exchange in found["exchanges"]:
        sent = exchange["bytes"] / gib
        console.print(f"{exchange['what']} ({exchange['axis']}): {exchange['number']}, {sent:.2f} GiB sent")
    console.print(f"work: {found['flops'] / 1e12:.1f} TFLOP")
    run, step = seconds.pop("run", None), seconds.pop("step")
    bounds = ", ".join(f"{name} {bound * 1e3:.1f}" for name, bound in seconds.items())
    console.print(f"at least {step * 1e3:.1f} ms a step (ms by bound: {bounds})")
    if run is not None:
        console.print(f"at least {run / 60:.1f} minutes for {found['steps']:,} steps")
    if found["fits"]:
        console.print("fits", style="green")
        return
    near = " or ".join(found["nearest"])
    console.print(f"does not fit; {f'nearest that does: {near}' if near else 'nothing near does'}", style="red")
