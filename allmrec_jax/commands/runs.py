"""``allmrec runs``: the training runs that there are."""

import json
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import FOLDER, RUN, Command, Group, checkpoints_option, grouped
from allmrec_jax.commands.show import show

EPILOG = """\b
Examples:
  allmrec runs list --data data/movies
  allmrec runs compare first second
  allmrec runs rm first
"""


@click.group(cls=Group, epilog=EPILOG)
def command() -> None:
    """List, show, compare and remove training runs."""


@command.command(
    "list",
    cls=Command,
    short_help="the runs, how good, and what was built on what",
    epilog="Example: allmrec runs list --data data/movies --kind stage2",
)
@grouped(
    "Options",
    click.option("--data", type=FOLDER, help="Only runs of this data set.  [all]"),
    click.option("--kind", help="Only runs of this kind.  [all]"),
    checkpoints_option,
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
def list_(data: Path | None, kind: str | None, checkpoints: Path, as_json: bool) -> None:
    """What there is: how good on validation users, how large, and what was built on what."""
    from allmrec_jax.api.data import load_data
    from allmrec_jax.api.runs import list_runs

    found = list_runs(checkpoints, data=None if data is None else load_data(data), kind=kind)
    if not found and not as_json:
        click.echo(f"no runs in {checkpoints}", err=True)
    show(found, as_json=as_json, numbers=("MiB",), whole=("run", "built on", "state"))


@command.command(
    "show",
    cls=Command,
    short_help="all that is known about a run, as JSON",
    epilog="Example: allmrec runs show checkpoints/movies/stage2/0a1b2c3d4e5f",
)
@click.argument("run", type=RUN)
@grouped("Options", checkpoints_option)
def show_(run: str, checkpoints: Path) -> None:
    """All that is known about RUN, as JSON: settings, metrics, what it was built on, versions, machine."""
    from allmrec_jax.api.runs import find_run, read_run

    found = read_run(find_run(run, checkpoints))
    about: dict[str, Any] = {"path": str(found.path), "label": dict(found.label), **found.about}
    about |= {"done": found.done, "metrics": dict(found.metrics), "bytes": found.bytes}
    click.echo(json.dumps(about, indent=2, ensure_ascii=False))


@command.command(
    "compare",
    cls=Command,
    short_help="what differs between runs, side by side",
    epilog="Example: allmrec runs compare first 0a1b2c3d4e5f",
)
@click.argument("runs", type=RUN, nargs=-1, required=True)
@grouped("Options", checkpoints_option, click.option("--json", "as_json", is_flag=True, help="Print JSON."))
def compare(runs: tuple[str, ...], checkpoints: Path, as_json: bool) -> None:
    """What differs between RUNS, and their validation metrics, side by side."""
    from allmrec_jax.api.runs import compare_runs, find_run, read_run

    show(compare_runs([read_run(find_run(run, checkpoints)) for run in runs]), as_json=as_json)


@command.command(
    "rm",
    cls=Command,
    short_help="remove runs that none was built on",
    epilog="Example: allmrec runs rm checkpoints/movies/cf/0a1b2c3d4e5f",
)
@click.argument("runs", type=RUN, nargs=-1, required=True)
@grouped(
    "Options",
    checkpoints_option,
    click.option("--force", is_flag=True, help="Even if another run was built on it."),
)
def remove(runs: tuple[str, ...], checkpoints: Path, force: bool) -> None:
    """Remove RUNS; one that another was built on only with --force. Only directories of runs are removed."""
    from allmrec_jax.api.runs import find_run, read_run, remove_run

    for run in runs:
        found = read_run(find_run(run, checkpoints))
        remove_run(found, checkpoints, force=force)
        click.echo(f"removed {found.path}")
