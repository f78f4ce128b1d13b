"""SASRec's text files: a user's and an item's number a line, in time order, without header, times or titles."""

from functools import partial
from pathlib import Path

from allmrec_jax.data.readers.columns import ITEM_ROLES, choose_columns
from allmrec_jax.data.readers.delimited import Dialect, read_delimited
from allmrec_jax.data.readers.reading import INTERACTIONS, Field, Reading, Source, complete, gather
from allmrec_jax.data.readers.streams import first_line
from allmrec_jax.data.readers.tables import Table, read_items_of
from allmrec_jax.errors import UserError

HEADER = ["user_id", "item_id"]


def read_sasrec(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read a list of pairs; ``items`` is a table with the items' ids and titles.

    Raises:
        UserError: ``items`` is not given, or a file is bad.
    """
    if items is None:
        raise UserError(
            f"{path}: is a list of user and item numbers (SASRec's text file), which has no titles; give a table of "
            "item ids and titles with --items"
        )
    table = Table(items, reading)
    taken = choose_columns(items, table.columns, ITEM_ROLES, {}, reading)
    reading.take(path, {"user": "the first value", "item": "the second"}, ["the first value", "the second"])
    reading.take(items, taken, table.columns)
    fields = {"user": Field("user_id", "id"), "item": Field("item_id", "id")}
    separator = "\t" if "\t" in first_line(path) else " "
    pairs = read_delimited(path, reading, fields, Dialect(separator, quotes=False), header=HEADER)
    interactions = complete(gather(pairs, path, reading, "pairs"), INTERACTIONS)
    name = path.name.partition(".")[0]
    return Source(name, "sasrec", [path, items], interactions, partial(read_items_of, table, taken, reading))
