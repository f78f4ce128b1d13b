"""``allmrec plan``: what a step takes on a mesh of devices, before it is run."""

import json
from typing import Any

import click

from allmrec_jax.errors import UserError

EPILOG = """\b
Examples:
  allmrec plan --llm facebook/opt-6.7b --mesh tensor=4 --device a6000 --batch 4 --length 1024
  allmrec plan --llm facebook/opt-66b --mesh data=2,tensor=8 --device h100 --infer --json
  allmrec plan --stage1 --mesh data=4 --device a6000 --batch 32 --length 192 --samples 300000
"""

LLM_OPTIONS, STAGE1_OPTIONS = ("llm", "train", "llm_weights", "remat", "new_tokens"), ("samples", "epochs")
"""Those that only one of the two takes."""


@click.command(epilog=EPILOG)
@click.option("--llm", default="facebook/opt-6.7b", show_default=True, help="A published OPT, or a directory.")
@click.option("--mesh", default="data=1", show_default=True, help="Axes data, fsdp and tensor.")
@click.option("--device", default="a6000", show_default=True, help="Kind of device; a wrong one lists them.")
@click.option("--batch", type=click.IntRange(1), help="Prompts in all; of stage 1, samples.  [4; 32]")
@click.option("--length", type=click.IntRange(1), help="Tokens of a prompt; of stage 1, of a text.  [1024; 128]")
@click.option("--train/--infer", default=True, help="A stage-2 step, or ranking and generation.  [train]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="Of the language model's weights and arithmetic; of stage 1, of the encoder's arithmetic.  "
    "[bfloat16; float32]",
)
@click.option(
    "--llm-weights",
    type=click.Choice(["dtype", "int8"]),
    default="dtype",
    show_default=True,
    help="The layers' kernels in --dtype, or in int8.",
)
@click.option("--remat", is_flag=True, help="Recompute layers in the backward pass.")
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Generated at most.")
@click.option("--stage1", is_flag=True, help="A step and a run of stage 1, with nq-distilbert-base-v1.")
@click.option("--samples", type=click.IntRange(1), default=100_000, show_default=True, help="Of a stage-1 epoch.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Of the stage-1 run.")
@click.option("--json", "as_rows", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    llm: str,
    mesh: str,
    device: str,
    batch: int | None,
    length: int | None,
    train: bool,
    dtype: str | None,
    llm_weights: str,
    remat: bool,
    new_tokens: int,
    stage1: bool,
    samples: int,
    epochs: int,
    as_rows: bool,
) -> None:
    """Memory, work, exchange and the least possible time of a step, without weights or network.

    Activations and temporaries are estimates; the other memory is exact.
    """
    from allmrec_jax.models.text_encoder import TextEncoderConfig
    from allmrec_jax.planning import stage1 as plan_stage1
    from allmrec_jax.planning import stage2 as plan
    from allmrec_jax.planning.devices import DEVICES
    from allmrec_jax.planning.preflight import read_config
    from allmrec_jax.sharding import check_heads, parse_mesh

    for name in LLM_OPTIONS if stage1 else STAGE1_OPTIONS:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = "--train/--infer" if name == "train" else "--" + name.replace("_", "-")
            raise UserError(f"{option} {'means nothing with' if stage1 else 'needs'} --stage1")
    if device not in DEVICES:
        raise UserError(f"--device {device}: unknown; known: {', '.join(DEVICES)}")
    shape = parse_mesh(mesh)
    where = f"mesh {shape} of {device}"
    if stage1:
        task = plan_stage1.Stage1Work(
            TextEncoderConfig(), shape, batch or 32, length or 128, dtype or "float32", samples, epochs
        )
        found = plan_stage1.as_json(plan_stage1.make_plan(task, DEVICES[device]))
        title = f"stage-1 training step, {where}, {task.batch} samples, texts of {task.length} tokens, {task.dtype}"
    else:
        config, int8 = read_config(llm), llm_weights == "int8"
        check_heads(shape, config, llm)
        work = plan.Work(
            config,
            shape,
            batch or 4,
            length or 1024,
            train,
            dtype or "bfloat16",
            remat,
            new_tokens=new_tokens,
            int8=int8,
        )
        found = plan.as_json(plan.make_plan(work, DEVICES[device]))
        what = "stage-2 training step" if train else "ranking and generation"
        types = f"{work.dtype}, kernels int8" if int8 else work.dtype
        title = f"{llm}, {what}, {where}, {work.batch} prompts of {work.length} tokens, {types}"
    if as_rows:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(title, found)


def _show(title: str, found: dict[str, Any]) -> None:
    """Prints a plan's JSON as a table."""
    from rich.console import Console
    from rich.table import Table

    from allmrec_jax.models.llm.room import GIB

    console = Console()
    console.print(title, style="bold")
    kinds, seconds = found["bytes_per_device"], dict(found["seconds_at_least"])
    total = kinds.pop("total")
    table = Table("on each device", "GiB", "", show_edge=False)
    for kind, count in kinds.items():
        table.add_row(kind, f"{count / GIB:.2f}", "estimate" if kind in found["estimates"] else "exact")
    table.add_row("total", f"{total / GIB:.2f}", f"of {found['device']['memory']:g}")
    console.print(table)
    for exchange in found["exchanges"]:
        sent = exchange["bytes"] / GIB
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
