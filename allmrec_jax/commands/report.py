"""``allmrec report``: results to a self-contained HTML page."""

from pathlib import Path

import click

from allmrec_jax.errors import UserError


@click.command(short_help="results to a self-contained HTML page")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Data set evaluated first: adds example prompts.")
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [report.html beside the first results]")
@click.option("--title", help="Heading of the page.")
def command(runs: tuple[Path, ...], data: Path | None, out: Path | None, title: str | None) -> None:
    """Write one HTML page from RUNS: results of `allmrec eval`, and training runs whose curves to show.

    The page needs no network and no JavaScript; each directory is recognised by what it holds.

    \b
    Example:
      allmrec report runs/demo checkpoints/demo/stage2/* --data runs/demo/data
    """
    from allmrec_jax.report.page import write_report

    results = [path for path in runs if (path / "results.json").is_file()]
    trained = [path for path in runs if (path / "run.json").is_file()]
    for path in runs:
        if path not in results and path not in trained:
            raise UserError(f"{path}: neither results of an evaluation (results.json) nor a training run (run.json)")
    if not results:
        raise UserError("no results among the directories given; name one that `allmrec eval` wrote")
    out = out or results[0] / "report.html"
    write_report(out, results, trained, data=data, title=title)
    click.echo(out)
