"""The page of one evaluation, as data for its template: tables, figures, single users."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.report import facts, figures, tables
from allmrec_jax.report.findings import findings, summary
from allmrec_jax.report.provenance import of_evaluation
from allmrec_jax.report.readers import read_answers
from allmrec_jax.report.users import asked_dataset, browser_data, describe_users, popularity, sample_users
from allmrec_jax.report.words import SCENARIOS, line_tone, side_tone, tone

if TYPE_CHECKING:
    import polars as pl

CHANCE = 1 / 20
"""Hit@1 of guessing among the candidates."""


def evaluation_page(
    directory: Path,
    results: Mapping[str, Any],
    dataset: Dataset | None,
    runs: Mapping[str, Path],
    taken: Iterable[str],
    users: int,
) -> dict[str, Any]:
    """What the template of an evaluation shows.

    Args:
        directory: holds ``results.json`` and perhaps ``users.parquet``.
        results: the former.
        dataset: that was evaluated, where it is at hand.
        runs: directories of the training runs that are at hand, by identity.
        taken: the names of pages that are there already.
        users: in the browser of users, at most.
    """
    settings = results.get("settings", {})
    times = results.get("times", {})
    scenario = results["runs"][0]["scenario"]
    few = facts.about_scenario(results).get("training_users")
    base = "-".join(str(part) for part in (settings.get("table", "results"), few) if part is not None)
    identifier = next(
        name for n in range(len(set(taken)) + 1) if (name := f"{base}-{n + 1}" if n else base) not in taken
    )
    return {
        "id": identifier,
        "name": results["data"]["name"].replace("_", " "),
        "heading": facts.heading(results),
        "metric": facts.MAIN[facts.main_metric(results)],
        "scenario": SCENARIOS.get(scenario, scenario),
        "training_users": few,
        "results": results,
        "provenance": of_evaluation(results, runs, dataset),
        "findings": findings(results),
        "summary": summary(results),
        "tables": tables.all_tables(results),
        "bars": _bars(results),
        "paired": _paired(results),
        "speed": _speed(results),
        "about_speed": facts.is_speed(results),
        "budgets": tables.budgets(results) if "trainings" in results["runs"][0] else [],
        **_users(directory, results, dataset, users),
        "genres": results.get("examples", []),
        "steps": [_step_cells(step) for step in times.get("steps", [])],
        "details": [
            {"title": part.capitalize(), "tree": tree}
            for part in ("settings", "versions", "machine", "times")
            if (tree := {key: value for key, value in results.get(part, {}).items() if key != "steps"})
        ],
    }


def _users(directory: Path, results: Mapping[str, Any], dataset: Dataset | None, count: int) -> dict[str, Any]:
    """The browser of users, a few of them for those without JavaScript, and Hit@1 by popularity; or why not."""
    nothing: dict[str, Any] = {"users": [], "browser": None, "popularity": None, "asked": 0, "why_not": ""}
    if facts.main_metric(results) != "hit@1":
        return nothing
    if dataset is None:
        return nothing | {"why_not": "The data set was not named, so users cannot be shown with their titles (--data)."}
    if not (directory / "users.parquet").is_file():
        return nothing | {"why_not": "users.parquet is not beside results.json, so single users cannot be shown."}
    frame = read_answers(directory)
    drawn = sample_users(frame, count)
    if not drawn:
        return nothing | {"why_not": "No user was asked about by every system."}
    try:
        described = describe_users(frame, asked_dataset(results, dataset), drawn, results)
    except UserError as error:
        return nothing | {"why_not": f"Single users cannot be shown: {error}."}
    return {
        "users": described[:3],
        "browser": Markup(browser_data(described)),
        "asked": frame["user"].n_unique(),
        "drawn": len(described),
        "popularity": _popularity(frame, dataset, results),
        "why_not": "",
    }


def _popularity(frame: "pl.DataFrame", dataset: Dataset, results: Mapping[str, Any]) -> Markup | None:
    names = dict.fromkeys(["SASRec", str(results.get("best_baseline")), "A-LLMRec", "A-LLMRec (SBERT)"])
    chosen = [(name, line_tone(name)) for name in names if name in set(frame["system"].unique())]
    if not chosen:
        return None
    series = popularity(frame, dataset, chosen)
    alt = "Hit@1 by popularity decile of the true item: " + "; ".join(
        f"{each.label} " + ", ".join(f"{value:.2f}" for _, value, *_ in each.points) for each in series
    )
    marks = {float(place): str(place) for place in range(1, 11)}
    return figures.lines(
        series, alt, x_label="decile of items by training interactions, 10 the most", x_ticks=marks, from_zero=True
    )


def few_shot_curve(
    each: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], datasets: Mapping[str, Dataset]
) -> Markup | None:
    """Hit@1 over the number of training users, where several such evaluations of one data set are there."""
    if each["training_users"] is None:
        return None
    data = each["results"]["data"]["hash"]
    same = [other for other in evaluations if other["results"]["data"]["hash"] == data]
    points = {other["training_users"]: other["results"]["systems"] for other in same if other["training_users"]}
    whole = next((other for other in same if other["results"]["runs"][0]["scenario"] == "overall"), None)
    everybody = datasets[data].num_users if data in datasets else None
    if whole is not None and everybody:
        points.setdefault(everybody, whole["results"]["systems"])
    if len(points) < 2:
        return None
    series = []
    for number, name in enumerate(each["results"]["systems"]):
        line = [(k, *row[name]["all"]["hit@1"]) for k, row in sorted(points.items()) if name in row]
        series.append(figures.Series(name, line, line_tone(name, number)))
    alt = "Hit@1 over the number of training users: " + "; ".join(
        f"{one.label} " + ", ".join(f"{k}: {value:.3f}" for k, value, *_ in one.points) for one in series
    )
    marks = {float(k): f"{k:,}" for k in points}
    return figures.lines(series, alt, x_label="training users", log=True, x_ticks=marks, from_zero=True, height=260)


def _bars(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hit@1 of every system by slice."""
    systems, metric = results["systems"], facts.main_metric(results)
    label, chance = facts.MAIN[metric], CHANCE if metric == "hit@1" else None
    parts = [part for part in ("all", "warm", "cold") if any(metric in row.get(part, {}) for row in systems.values())]
    if not parts:
        return []
    limit = 1.16 * max(row[part][metric][2] for row in systems.values() for part in parts if part in row)
    drawn = []
    for part in parts:
        rows = [figures.Row(name, row[part][metric], tone(name)) for name, row in systems.items() if part in row]
        said = "; ".join(f"{row.label} {row.interval[0]:.3f}" for row in rows)
        svg = figures.bars(rows, f"{label}, {facts.SLICES[part].lower()}: {said}", limit=limit, chance=chance)
        drawn.append({"caption": facts.SLICES[part], "svg": svg})
    return drawn


def _paired(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every system against the reference, drawn by slice, and all pairs for a table."""
    paired, tests = results.get("paired", {}), results.get("tests", {})
    if not paired:
        return None
    base = facts.reference(results)
    parts = [part for part in facts.SLICES if any(part in row for row in paired.values())]
    drawn = []
    for part in parts:
        found = [(name, facts.pair_of(results, name, base, part)) for name in results["systems"] if name != base]
        rows = [figures.Row(name, pair[0], side_tone(pair[0])) for name, pair in found if pair]
        if rows:
            said = "; ".join(f"{row.label} {row.interval[0]:+.3f}" for row in rows)
            alt = f"{facts.MAIN[facts.main_metric(results)]} minus {base}’s, {facts.SLICES[part].lower()}: {said}"
            drawn.append({"caption": f"{facts.SLICES[part]}: minus {base}", "svg": figures.differences(rows, alt)})
    every = [
        {
            "name": pair.replace(" - ", " − "),
            "cells": [(row[part], tests.get(pair, {}).get(part)) if part in row else None for part in parts],
        }
        for pair, row in paired.items()
    ]
    generated = any(", generated - " in pair for pair in paired)
    heads = [facts.SLICES[part] for part in parts]
    return {"figures": drawn, "slices": heads, "rows": every, "generated": generated, "reference": base}


def _speed(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Quality against the time of training and of answering, for the table of speed."""
    if not facts.is_speed(results):
        return []
    first = min(run["seed"] for run in results["runs"])
    timed = [entry for entry in tables.speeds(results) if entry.seed == first]
    drawn = []
    for label, places in (
        ("minutes of training, CF not counted", [(each.system, each.minutes) for each in timed]),
        ("seconds a user is answered in", [(each.system, 1 / each.users_per_second) for each in timed]),
    ):
        rows = [(name, x, results["systems"][name]["all"]["hit@1"], tone(name)) for name, x in places if x is not None]
        if rows:
            alt = f"Hit@1 over {label}: " + "; ".join(f"{name} {x:.3g}, {hit[0]:.3f}" for name, x, hit, _ in rows)
            drawn.append({"caption": f"Hit@1 over {label}", "svg": figures.scatter(rows, alt, x_label=label)})
    return drawn


def _step_cells(step: Mapping[str, Any]) -> dict[str, str]:
    return {"name": step["name"], "seconds": f"{step['seconds']:,.0f}", "memory": f"{step['peak_mib']:,.0f} MiB"}
