"""The paper's published values, to stand beside ours. They are other data and another language model."""

import functools
import json
from importlib.resources import files
from typing import Any

DATASETS = {
    "Movies_and_TV": "Movies and TV",
    "Video_Games": "Video Games",
    "Luxury_Beauty": "Luxury Beauty",
    "Toys_and_Games": "Toys and Games",
}
"""The paper's data sets by the name of their raw file, and as a reader knows them."""


@functools.cache
def tables() -> dict[str, Any]:
    """Every table of the paper as printed, ``None`` where the source at hand is not legible."""
    return json.loads(files("allmrec_jax.report").joinpath("paper.json").read_text(encoding="utf-8"))


NAMES = {"TALLRec (yes-no)": "TALLRec", "TALLRec (titles)": "TALLRec"}
"""The paper's name of systems that go by another one here; it does not say which protocol its TALLRec is."""


def hit_at_1(system: str, slice_name: str, table: str = "table1_overall") -> dict[str, float]:
    """The paper's Hit@1 of a system by data set, empty where it reports none.

    Args:
        system: name as in the results, e.g. ``"A-LLMRec (SBERT)"``.
        slice_name: ``"all"``, or ``"cold"`` or ``"warm"`` (its Table 4, whatever the table).
        table: key of :func:`tables` for ``"all"``; behind a slash, what its rows are further divided by.
    """
    system = NAMES.get(system, system)
    if slice_name == "all":
        key, _, inner = table.partition("/")
        values = tables()[key]["values"]
        if inner:
            values = {data: row.get(inner, {}) for data, row in values.items()}
        if all(isinstance(value, float) for value in values.values()):  # Table 7: one data set for all
            found = {"Video_Games": values.get(system)}
        else:
            by_data = system not in values and not any(isinstance(value, float) for value in values.values())
            found = {data: row.get(system) for data, row in values.items()} if by_data else dict(values.get(system, {}))
    else:
        rows = tables()["table4_cold_warm_items"]["values"]
        found = {data: row.get(system, {}).get(slice_name) for data, row in rows.items()}
    return {data: value for data, value in found.items() if value is not None}
