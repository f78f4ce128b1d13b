"""``allmrec report``: results to a page or a folder of pages, without a network."""

from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import FOLDER, RUN, Command, checkpoints_option, grouped


@click.command(
    "report",
    cls=Command,
    short_help="results to HTML pages, Markdown and LaTeX",
    epilog="""\b
Examples:
  allmrec report runs/all/Movies --data data/Movies --out report
  allmrec report checkpoints/Movies/stage2/0a1b2c3d4e5f
""",
)
@click.argument("runs", nargs=-1, required=True, type=RUN)
@grouped(
    "Options",
    click.option(
        "--data",
        type=FOLDER,
        multiple=True,
        help="A data set that was evaluated; may be repeated. Adds single users, popularity, the map of items.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="A folder, or NAME.html for one page without table files.  [report.html in the first of RUNS]",
    ),
    click.option("--title", help="Heading."),
    checkpoints_option,
)
@grouped(
    "Contents",
    click.option("--users", type=click.IntRange(min=1), default=60, show_default=True, help="Users in each browser."),
    click.option("--attribution", type=click.IntRange(min=0), default=3, show_default=True, help="Users attributed."),
    click.option(
        "--models/--no-models",
        default=True,
        help="Load models for the map of items and the attribution of soft tokens.  [yes]",
    ),
)
def command(runs: tuple[str, ...], **given: Any) -> None:
    """Write a report of RUNS: results of `allmrec eval` or `allmrec experiment`, and trainings whose curves to show.

    Each directory is recognised by what it holds; one of many tables is looked through. A folder holds an index, a page
    for each table and each training, and the tables in Markdown, LaTeX and JSON; its links hold wherever it is moved.
    Tables need no JavaScript; sorting them and browsing single users do.
    """
    from allmrec_jax.api.reporting import write_report

    click.echo(write_report(runs, **given))
