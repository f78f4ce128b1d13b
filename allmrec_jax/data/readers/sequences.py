"""Sequence JSON: ``X.inter.json``, user → item ids in time order, and ``X.item.json``, item → title, description, …

The layout of the LC-Rec family of repositories; it has neither times nor ratings.
"""

from pathlib import Path
from typing import Any

import polars as pl

from allmrec_jax.data.readers.json_lines import read_json
from allmrec_jax.data.readers.reading import INTERACTIONS, ITEMS, Field, Reading, Source, gather, last_values
from allmrec_jax.data.readers.values import convert, type_name
from allmrec_jax.errors import UserError

FIELDS = {
    "title": Field("title", "text"),
    "description": Field("description", "texts"),
    "brand": Field("brand", "text"),
    "categories": Field("categories", "texts"),
}
"""What is taken of an item's object."""


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
    seen: set[str] = set()
    for user, sequence in read_json(path, reading):
        try:
            if not isinstance(sequence, list):
                raise ValueError(f"should be a list of item ids, is {type_name(sequence)}")
            owner = convert(user, Field("user", "id"))
            ids = [convert(item, Field("item", "id")) for item in sequence]
        except ValueError as error:
            reading.reject(path, f"user {user!r}", str(error))
            continue
        if owner in seen:
            reading.warn(path, f"user {owner!r} occurs twice: the lists follow one another")
        seen.add(owner)
        clicked += ids
        users += [owner] * len(ids)
    if not users:
        gather([], path, reading, "sequences")
    reading.take(path, {"user": "the keys", "item": "their lists"}, ["the keys", "their lists"])
    columns = {"user": users, "item": clicked, "rating": None, "time": None}
    interactions = pl.DataFrame(columns, schema=INTERACTIONS)

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        rows, keys, known = [], set(), set(wanted)
        for item, body in read_json(item_path, reading):
            reading.described_item = reading.described_item or item
            try:
                if item.strip() in known:
                    rows.append({"item": item.strip()} | _item(body))
                    keys |= body.keys()
            except ValueError as error:
                reading.reject(item_path, f"item {item!r}", str(error))
        reading.take(item_path, {key: key for key in FIELDS}, sorted(keys))
        return last_values(pl.DataFrame(rows, schema=ITEMS))

    return Source(name, "sequences", [path, item_path], interactions, read_items)


def _item(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError(f"should be an object with a title, is {type_name(body)}")
    found = {name: convert(body.get(name), field) for name, field in FIELDS.items()}
    description = found["description"]
    return found | {
        "description": [text for text in description if text] or None if description else description,
        "categories": _split(found["categories"]) if isinstance(body.get("categories"), str) else found["categories"],
    }


def _split(categories: list[str] | None) -> list[str] | None:
    return categories and [part.strip() for part in categories[0].split(",") if part.strip()]
