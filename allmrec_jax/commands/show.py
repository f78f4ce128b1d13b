"""What commands print: a table on a terminal or in a file."""

import json
import sys
from typing import Any

import click

from allmrec_jax.api.table import Table
from allmrec_jax.errors import visible


def show(table: Table[Any], *, as_json: bool = False, numbers: tuple[str, ...] = ()) -> None:
    """Prints a table, or its rows as JSON; the columns called ``numbers`` are set to the right."""
    if as_json:
        click.echo(json.dumps(table.records(), indent=2, ensure_ascii=False))
        return
    if not sys.stdout.isatty():
        click.echo(repr(table))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = table.shown()
    shown = RichTable(title=Text(visible(table.title)) if table.title else None, title_justify="left", box=SIMPLE_HEAD)
    for name in rows[0] if rows else ():
        shown.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(visible(cell)) for cell in row.values()))
    Console().print(shown)
