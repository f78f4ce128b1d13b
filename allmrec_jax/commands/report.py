"""``allmrec report``: results to a page or a folder of pages, without a network."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from allmrec_jax.errors import UserError


@click.command(
    short_help="results to HTML pages, Markdown and LaTeX",
    epilog="Example: allmrec report runs/all/Movies --data data/Movies --out report",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A data set that was evaluated; may be repeated. Adds single users, popularity, the map of items.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder, or NAME.html for one page without table files.  [report.html beside the first results or run]",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where the trainings that results name are looked for.",
)
@click.option("--users", type=click.IntRange(min=1), default=60, show_default=True, help="Users in each browser.")
@click.option("--attribution", type=click.IntRange(min=0), default=3, show_default=True, help="Users attributed.")
@click.option(
    "--models/--no-models",
    default=True,
    help="Load models for the map of items and the attribution of soft tokens.  [yes]",
)
@click.option("--title", help="Heading.")
def command(
    runs: tuple[Path, ...],
    data: tuple[Path, ...],
    out: Path | None,
    checkpoints: Path,
    users: int,
    attribution: int,
    models: bool,
    title: str | None,
) -> None:
    """Write a report of RUNS: results of `allmrec eval` or `allmrec experiment`, and trainings whose curves to show.

    Each directory is recognised by what it holds; one of many tables is looked through. A folder holds an index, a page
    for each table and each training, and the tables in Markdown, LaTeX and JSON; its links hold wherever it is moved.
    Tables need no JavaScript; sorting them and browsing single users do.
    """
    from allmrec_jax.report.site import ReportSources, write_report

    results, not_made = _results(runs)
    trained = [path for path in runs if (path / "run.json").is_file()]
    out = out or (results or trained)[0] / "report.html"
    sources = ReportSources(results, trained, data, checkpoints, not_made)
    click.echo(write_report(out, sources, title=title, users=users, attributed=attribution, models=models))


def _results(runs: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """The directories of results in and beneath ``runs``, and why tables are not there, by name."""
    from allmrec_jax.report.readers import read_not_made

    results: list[Path] = []
    not_made: dict[str, str] = {}
    for path in runs:
        if (path / "run.json").is_file():
            continue
        beneath = sorted((file.parent for file in path.glob("**/results.json")), key=_natural)
        if not beneath:
            raise UserError(f"{path}: neither results of an evaluation (results.json) nor a training run (run.json)")
        results += beneath
        not_made |= read_not_made(path)
    return list(dict.fromkeys(results)), not_made


def _natural(path: Path) -> list[str | int]:
    """Sorts ``table10`` after ``table9``."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", str(path))]
