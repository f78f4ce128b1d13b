"""``allmrec plan``: what a step with a frozen LLM takes on a mesh of devices, before it is run."""

import json

import click

from allmrec_jax.errors import UserError

EPILOG = """\b
Examples:
  allmrec plan --llm facebook/opt-6.7b --mesh tensor=4 --device a6000 --batch 4 --length 1024
  allmrec plan --llm facebook/opt-66b --mesh data=2,tensor=8 --device h100 --infer --json
"""


@click.command(epilog=EPILOG)
@click.option("--llm", default="facebook/opt-6.7b", show_default=True, help="A published OPT, or a directory.")
@click.option("--mesh", default="data=1", show_default=True, help="Axes data, fsdp and tensor.")
@click.option("--device", default="a6000", show_default=True, help="Kind of device; a wrong one lists them.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Prompts in all.")
@click.option("--length", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of a prompt.")
@click.option("--train/--infer", default=True, help="A stage-2 step, or ranking and generation.  [train]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Of the language model's weights and arithmetic.",
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
@click.option("--json", "as_rows", is_flag=True, help="Print JSON.")
def command(
    llm: str,
    mesh: str,
    device: str,
    batch: int,
    length: int,
    train: bool,
    dtype: str,
    llm_weights: str,
    remat: bool,
    new_tokens: int,
    as_rows: bool,
) -> None:
    """Memory, work, exchange and the least possible time of a step, without weights or network.

    Activations and temporaries are estimates; the other memory is exact.
    """
    from allmrec_jax.plan import DEVICES, GIB, Work, as_json, make_plan, nearest_choices, read_config
    from allmrec_jax.sharding import check_heads, parse_mesh

    if device not in DEVICES:
        raise UserError(f"--device {device}: unknown; known: {', '.join(DEVICES)}")
    shape, config = parse_mesh(mesh), read_config(llm)
    check_heads(shape, config, llm)
    int8 = llm_weights == "int8"
    work = Work(config, shape, batch, length, train, dtype, remat, new_tokens=new_tokens, int8=int8)
    plan = make_plan(work, DEVICES[device])
    if as_rows:
        click.echo(json.dumps(as_json(plan), indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    what = "stage-2 training step" if train else "ranking and generation"
    types = f"{dtype}, kernels int8" if int8 else dtype
    console.print(f"{llm}, {what}, mesh {shape} of {device}, {batch} prompts of {length} tokens, {types}", style="bold")
    table = Table("on each device", "GiB", "", show_edge=False)
    for kind, count in plan.bytes.items():
        table.add_row(kind, f"{count / GIB:.2f}", "estimate" if kind in ("activations", "temporaries") else "exact")
    table.add_row("total", f"{plan.total / GIB:.2f}", f"of {plan.device.memory:g}")
    console.print(table)
    for exchange in plan.exchanges:
        console.print(f"{exchange.what} ({exchange.axis}): {exchange.number}, {exchange.bytes / GIB:.2f} GiB sent")
    console.print(f"work: {plan.flops / 1e12:.1f} TFLOP")
    bounds = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in plan.seconds.items())
    console.print(f"at least {plan.floor * 1e3:.1f} ms a step (ms by bound: {bounds})")
    if plan.fits:
        console.print("fits", style="green")
        return
    near = " or ".join(nearest_choices(plan))
    console.print(f"does not fit; {f'nearest that does: {near}' if near else 'nothing near does'}", style="red")
