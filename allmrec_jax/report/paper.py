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


def hit_at_1(system: str, slice_name: str) -> dict[str, float]:
    """The paper's Hit@1 of a system by data set, empty where it reports none.

    Args:
        system: name as in the results, e.g. ``"A-LLMRec (SBERT)"``.
        slice_name: ``"all"`` (its Table 1), ``"cold"`` or ``"warm"`` (its Table 4).
    """
    if slice_name == "all":
        found = {data: row.get(system) for data, row in tables()["table1_overall"]["values"].items()}
    else:
        rows = tables()["table4_cold_warm_items"]["values"]
        found = {data: row.get(system, {}).get(slice_name) for data, row in rows.items()}
    return {data: value for data, value in found.items() if value is not None}
