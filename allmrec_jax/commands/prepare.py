"""``allmrec prepare``: raw files to a data set."""

from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import Command, grouped, preset_option, settings_options
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.prepare import PRESETS, PrepareSettings
from allmrec_jax.data.readers.sources import READERS
from allmrec_jax.errors import UserError, visible

EPILOG = """\b
Examples:
  allmrec prepare raw/Movies_and_TV.json.gz --out data/movies
  allmrec prepare ml-latest-small --out data/ml --rating-rule '>=4'
  allmrec prepare clicks.parquet --items products.csv --out data/shop \\
    --columns user=customer,item=sku,title=name
"""

SHOWN_BAD_LINES = 10
SHOWN_COLUMNS = 12
MOST_WIDTH = 40


@click.command("prepare", cls=Command, epilog=EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@grouped(
    "Options",
    click.option("--out", required=True, type=click.Path(path_type=Path), help="The data set's directory."),
    click.option("--items", type=click.Path(path_type=Path), help="Item metadata, if not beside the interactions."),
    click.option("--columns", help="Tables: what columns are called, as user=…,item=…,rating=…,time=…,key=…,title=…"),
    click.option("--name", help="Of the data set; runs are filed under it.  [the source's]"),
    click.option("--source", "kind", type=click.Choice(list(READERS)), help="What SOURCE is.  [recognised]"),
    preset_option(PRESETS, "paper", help="Whose rules to follow; `allmrec presets prepare` shows them."),
    click.option("--max-bad-lines", type=click.IntRange(0), default=100, show_default=True, help="Bad lines to skip."),
)
@settings_options(PrepareSettings)
def command(source: Path, out: Path, columns: str | None, preset: str, overrides: dict[str, Any], **given: Any) -> None:
    """Read SOURCE (Amazon, MovieLens, sequence JSON, RecBole, SASRec, CSV, Parquet, JSON lines) into a data set."""
    from allmrec_jax.api.data import prepare

    _report(prepare(source, out, preset=preset, columns=_pairs(columns), **given, **overrides))


def _pairs(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UserError(f"--columns: {text!r} should be like user=customer,item=sku")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _report(dataset: Dataset) -> None:
    """The closing table of counts, beside the paper's where the data set is one of its four."""
    from rich.console import Console
    from rich.table import Table

    from allmrec_jax.report.paper import tables

    console = Console()
    manifest = dataset.manifest
    bad = manifest["bad_lines"]
    if bad["count"]:
        click.secho(f"{bad['count']} bad lines skipped:", fg="yellow")
        for line in bad["first"][:SHOWN_BAD_LINES]:
            click.echo(f"  {visible(line)}")
        if bad["count"] > SHOWN_BAD_LINES:
            click.echo(f"  {bad['count'] - SHOWN_BAD_LINES} more: see {dataset.path / 'manifest.json'}")
    paper = None
    if manifest["source"]["kind"] == "amazon-2018":
        paper = tables()["table2_datasets"]["values"].get(dataset.name)
    counts = {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": len(dataset.items),
        "avg_len": len(dataset.items) / dataset.num_users,
    }
    title = f"{dataset.name}  ({manifest['source']['kind']}, preset {manifest['preset']})"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("here", justify="right")
    if paper:
        table.add_column("paper", justify="right")
    for key, value in counts.items():
        row = [key.replace("avg_len", "average length"), _number(value)]
        table.add_row(*row, *([_number(paper[key])] if paper else []))
    extra = {"three-interaction users kept apart": len(dataset.cold_users.raw)} | {
        key.replace("_", " "): value for key, value in manifest["counts"].items()
    }
    table.add_section()
    for key, value in extra.items():
        table.add_row(key, _number(value))
    console.print(table)
    _summary(dataset)
    for warning in manifest["warnings"]:
        click.secho(f"warning: {visible(warning)}", fg="yellow")
    click.echo(f"data set {dataset.hash[:12]}")
    click.echo(dataset.path)


def _summary(dataset: Dataset) -> None:
    """What was taken from where, aligned."""
    manifest = dataset.manifest
    source, settings = manifest["source"], manifest["settings"]
    rows = []
    for taken in source["taken"]:
        rows.append((taken["file"], ", ".join(f"{role} = {column}" for role, column in taken["columns"].items())))
        if taken["aside"]:
            more = f" and {len(taken['aside']) - SHOWN_COLUMNS} more" if len(taken["aside"]) > SHOWN_COLUMNS else ""
            rows.append(("  left aside", ", ".join(taken["aside"][:SHOWN_COLUMNS]) + more))
    rows += [("recognised", remark) for remark in source["remarks"]]
    use = (
        "; others do not count but stay"
        if settings["rating_use"] == "count" and settings["rating_rule"] != "all"
        else ""
    )
    rows += [("times", source["times"]), ("rating rule", settings["rating_rule"] + use)]
    for what in ("title", "description"):
        having = dataset.num_items - manifest["counts"][f"items_without_{what}"]
        rows.append((f"{what}s", f"{having:,} of {dataset.num_items:,} items ({having / dataset.num_items:.0%})"))
    width = min(max(len(name) for name, _ in rows), MOST_WIDTH)
    for name, value in rows:
        click.echo(f"{visible(name):{width}}  {visible(value)}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
