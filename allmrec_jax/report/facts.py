"""What ``results.json`` says of an evaluation: its scenario, its systems, how they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAIN = {"hit@1": "Hit@1", "genre_hit": "Genre hit"}
"""What an evaluation is about: the metric that is tested, compared and drawn."""

SLICES = {"all": "All users", "warm": "Warm items", "cold": "Cold items"}

OURS = ("A-LLMRec", "A-LLMRec, reduced", "A-LLMRec (SASRec)")
"""The product's own system, as the rows of the tables call it, the plain one first."""

NO_CONTEST = ("Oracle",)
"""Rows that cannot win: bounds, not systems."""


def heading(results: Mapping[str, Any]) -> str:
    """The table's title as its program recorded it, or one made of the scenario."""
    return results.get("settings", {}).get("title") or {
        "overall": "All test users",
        "cold users": "Cold users",
        "few-shot": "Few training users",
    }.get(scenario := results["runs"][0]["scenario"], scenario)


def reference(results: Mapping[str, Any]) -> str:
    """The system that the others are tested against."""
    return results.get("settings", {}).get("reference") or "SASRec"


def tested_against(results: Mapping[str, Any]) -> list[str]:
    """The reference and the best baseline, those that the results hold."""
    chosen = dict.fromkeys((reference(results), str(results.get("best_baseline"))))
    return [name for name in chosen if name in results["systems"]]


def published(results: Mapping[str, Any]) -> str:
    """The paper's table, a key of :func:`allmrec_jax.report.paper.hit_at_1`."""
    return results.get("settings", {}).get("published") or "table1_overall"


def about_scenario(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the results say of whom was trained on and asked about."""
    return results.get("settings", {}).get("scenario") or {"scenario": results["runs"][0]["scenario"]}


def row_name(results: Mapping[str, Any], name: str) -> str:
    """A system as its row is called: *simulated* where the users it was asked about are."""
    return f"{name}, simulated" if about_scenario(results).get("simulated") else name


def main_metric(results: Mapping[str, Any]) -> str:
    """The one of :data:`MAIN` that the results hold."""
    return next((key for key in MAIN if any(key in row["all"] for row in results["systems"].values())), "hit@1")


def pair_of(
    results: Mapping[str, Any], name: str, other: str, part: str = "all"
) -> tuple[Sequence[float], float | None] | None:
    """The paired difference ``[value, low, high]`` of two systems' Hit@1 and its p-value, ``None`` if not measured."""
    key, turned = f"{name} - {other}", f"{other} - {name}"
    paired, tests = results.get("paired", {}), results.get("tests", {})
    if part in paired.get(key, {}):
        return paired[key][part], tests.get(key, {}).get(part)
    if part in paired.get(turned, {}):
        value, low, high = paired[turned][part]
        return (-value, -high, -low), tests.get(turned, {}).get(part)
    return None


@dataclass(frozen=True)
class Comparison:
    """Two systems on the users whom both were asked about.

    Attributes:
        users: how many those are.
        value: the main metric of the first.
        other: that of the second.
        difference: ``[value - other, low, high]``.
        p: of the sign-flip test, where there is one.
    """

    users: int
    value: float
    other: float
    difference: Sequence[float]
    p: float | None


def compare(results: Mapping[str, Any], name: str, other: str, part: str = "all") -> Comparison | None:
    """Two systems on the users of both, ``None`` where the results hold no difference of the two.

    Of two systems one was asked about all users of the other. The value of that other one is of the users of both
    already; the first one's on them is that value and the mean difference.
    """
    pair = pair_of(results, name, other, part)
    mine, theirs = (results["systems"].get(system, {}).get(part) for system in (name, other))
    if pair is None or mine is None or theirs is None:
        return None
    difference, p = pair
    metric = main_metric(results)
    if mine["n"] <= theirs["n"]:
        value = mine[metric][0]
        return Comparison(mine["n"], value, value - difference[0], difference, p)
    base = theirs[metric][0]
    return Comparison(theirs["n"], base + difference[0], base, difference, p)


def same_users(results: Mapping[str, Any]) -> bool:
    """Whether every system was asked about as many users, which are then the same."""
    return len({row["all"]["n"] for row in results["systems"].values()}) == 1


def is_speed(results: Mapping[str, Any]) -> bool:
    """Whether an evaluation is about time (the paper's Table 10)."""
    return results.get("settings", {}).get("table") == "table10"


def run_of(results: Mapping[str, Any], name: str) -> str | None:
    """Identity of the first run behind a row."""
    return next((run["id"] for run in results["runs"] if run["system"] == name), None)


def of_batch(node: Mapping[str, Any]) -> str:
    """`` of batch 32``; nothing for a training that has no batches."""
    return "" if node["batch_size"] is None else f" of batch {node['batch_size']}"
