"""``allmrec experiment all``: every table and figure of the paper that the data set can serve, and one page of them."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.eval.runner import Options, Table, locked, only_planned, table_options, target_option
from allmrec_jax.fileio import held, write_text
from allmrec_jax.outputs import Output

OF_ALL = Output("folder of results", signs=("*/results.json", "*/users.parquet"))

TABLES = (
    "table1",
    "table4",
    "table5",
    "table6",
    "table7",
    "table8",
    "table9",
    "table10",
    "table11",
    "genres",
)


@click.command(
    name="all",
    short_help="every table that the data can serve",
    epilog="Example: allmrec experiment all --data data/Movies --target data/Games --llm-users 500",
)
@target_option
@table_options
def command(options: Options) -> None:
    """Make every table, each in a folder of its own, and a report of them all.

    The whole plan comes first. A table that the data set cannot serve says why before anything trains, and the others
    go on; `tables.json` holds the reasons. What one table trained or asked, the next ones use.
    """
    out = options.out or Path("runs") / "all" / load_dataset(options.data).name
    tables: dict[str, list[Table]] = {}
    reasons: dict[str, str] = {}
    for name in TABLES:
        try:
            program = importlib.import_module(f"allmrec_jax.eval.{name}")
            tables[name] = program.plan_tables(dataclasses.replace(options, out=out / name))
        except UserError as error:
            reasons[name] = str(error)
            click.echo(f"{name} cannot be made: {error}", err=True)
    every = [table for each in tables.values() for table in each]
    if not only_planned(options, every):
        OF_ALL.claim(out)
        with held(out / ".lock"), locked(every):
            trained = [name for name, each in tables.items() if _done(name, each, Table.train, reasons)]
            made = [name for name in trained if _done(name, tables[name], Table.make, reasons)]
            write_text(out / "tables.json", json.dumps({"made": made, "not_made": reasons}, indent=2) + "\n")
            write_site(out, options, [table for name in made for table in tables[name]], reasons)
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"{len(reasons)} of {len(TABLES)} tables were not made; {first}: {reason}")


def _done(name: str, tables: list[Table], step: Callable[[Table], None], reasons: dict[str, str]) -> bool:
    """Whether a step was done with all tables of a name; the reason why not is printed and added to ``reasons``."""
    try:
        for table in tables:
            click.secho(f"\n{table.title}", bold=True, err=True)
            step(table)
    except UserError as error:
        reasons[name] = str(error)
        click.echo(f"{name}: {error}", err=True)
        return False
    return True


def write_site(out: Path, options: Options, tables: list[Table], reasons: Mapping[str, str]) -> None:
    """One site of all results."""
    from allmrec_jax.report.site import ReportSources, write_report

    if tables:
        data = list({table.dataset.hash: table.dataset.path for table in tables}.values())
        sources = ReportSources([table.out for table in tables], (), data, options.checkpoints, reasons)
        click.echo(write_report(out / "report", sources))


if __name__ == "__main__":
    command()
