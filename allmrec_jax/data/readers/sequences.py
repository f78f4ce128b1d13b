"""Sequence JSON: ``X.inter.json``, user → item ids in time order, and ``X.item.json``, item → title, description, …

The layout of the LC-Rec family of repositories; it has neither times nor ratings.
"""

from pathlib import Path
from typing import Any

import polars as pl

from allmrec_jax.data.readers.reading import INTERACTIONS, ITEMS, Reading, Source, convert, read_json
from allmrec_jax.errors import UserError


def read_sequences(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read a pair of files; ``path`` is the one of interactions or the directory of both.

    Raises:
        UserError: a file is missing or no JSON object; or more entries are bad than allowed.
    """
    if path.is_dir():
        found = sorted(path.glob("*.inter.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"{path}: should hold one *.inter.json, found: {names}; name the file")
        path = found[0]
    name = path.name.removesuffix(".json").removesuffix(".inter")
    item_path = items or path.with_name(f"{name}.item.json")
    users: list[str] = []
    clicked: list[str] = []
    for user, sequence in read_json(path, reading).items():
        try:
            if not isinstance(sequence, list):
                raise ValueError("should be a list of item ids")
            ids = [convert(item, "id") for item in sequence]
        except ValueError as error:
            reading.reject(path, f"user {user!r}", str(error))
            continue
        clicked += ids
        users += [user] * len(ids)
    if not users:
        raise UserError(f"{path}: no usable sequences (the file is empty, or no entry of it is good)")
    columns = {"user": users, "item": clicked, "rating": None, "time": None}
    interactions = pl.DataFrame(columns, schema=INTERACTIONS)

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        bodies = read_json(item_path, reading)
        rows = []
        for item in wanted.to_list():
            try:
                if item in bodies:
                    rows.append({"item": item} | _item(bodies[item]))
            except ValueError as error:
                reading.reject(item_path, f"item {item!r}", str(error))
        return pl.DataFrame(rows, schema=ITEMS)

    return Source(name, "sequences", [path, item_path], interactions, read_items)


def _item(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError("should be an object with a title")
    categories = body.get("categories")
    if isinstance(categories, str):
        categories = [part.strip() for part in categories.split(",") if part.strip()]
    description = convert(body.get("description"), "texts")
    return {
        "title": convert(body.get("title"), "text"),
        "description": [text for text in description if text] or None if description else description,
        "brand": convert(body.get("brand"), "text"),
        "categories": convert(categories, "texts"),
    }
