"""``allmrec experiment all``: every table of the paper that the data set can serve, and one page of them all."""

import dataclasses
import importlib
import json
from pathlib import Path

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.eval.runner import Options, table_options
from allmrec_jax.fileio import write_text

TABLES = ("table1", "table4", "table5", "table6", "table8", "table9", "table10", "table11")


@click.command(
    name="all",
    short_help="every table that the data can serve",
    epilog="Example: allmrec experiment all --data data/Movies --llm-users 500 --set stage2.steps=160",
)
@table_options
def command(options: Options) -> None:
    """Make every table, each in a folder of its own, and a report of them all.

    A table that the data set cannot serve says why, and the others go on; `tables.json` holds the reasons. What one
    table trained or asked, the next ones use.
    """
    out = options.out or Path("runs") / "all" / load_dataset(options.data).name
    made, reasons = [], {}
    for name in TABLES:
        click.secho(f"\n{name}", bold=True, err=True)
        try:
            importlib.import_module(f"allmrec_jax.eval.{name}").run(dataclasses.replace(options, out=out / name))
            made.append(name)
        except UserError as error:
            reasons[name] = str(error)
            click.echo(f"{name}: {error}", err=True)
    if not (options.dry_run or options.slurm):
        write_text(out / "tables.json", json.dumps({"made": made, "not_made": reasons}, indent=2) + "\n")
        results = sorted(path.parent for name in made for path in (out / name).glob("**/results.json"))
        if results:
            from allmrec_jax.report.page import Found, write_report

            found = Found(results, (), [options.data], options.checkpoints, reasons)
            click.echo(write_report(out / "report", found))
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"{len(reasons)} of {len(TABLES)} tables were not made; {first}: {reason}")


if __name__ == "__main__":
    command()
