"""What commands print: a table on a terminal or in a file."""

import json
import sys
from typing import Any, Literal

import click

from allmrec_jax.api.table import Table
from allmrec_jax.errors import visible


def show(
    table: Table[Any], *, as_json: bool = False, numbers: tuple[str, ...] = (), whole: tuple[str, ...] = ()
) -> None:
    """Prints a table, or its rows as JSON.

    Args:
        table: to print.
        as_json: as JSON.
        numbers: columns that are set to the right.
        whole: columns whose words a narrow terminal does not fold, since they are copied into other commands.
    """
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
    title = Text(visible(table.title)) if table.title else None
    shown = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for name in rows[0] if rows else ():
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        words = [word for row in rows for word in row[name].split()] if name in whole else []
        least = max(map(len, words), default=None)
        shown.add_column(name, justify=justify, overflow="fold", min_width=least)
    for row in rows:
        shown.add_row(*(Text(visible(cell)) for cell in row.values()))
    Console().print(shown)
