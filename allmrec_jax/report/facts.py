"""What ``results.json`` says of an evaluation: its scenario, its systems, how they compare."""

from collections.abc import Mapping, Sequence
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


def run_of(results: Mapping[str, Any], name: str) -> str | None:
    """Identity of the first run behind a row."""
    return next((run["id"] for run in results["runs"] if run["system"] == name), None)
