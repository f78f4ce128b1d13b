"""The report: results in; one self-contained HTML page out, or a folder of pages with every table as a file.

What a page says of an evaluation comes from its ``results.json``; the browser of users and the popularity figure from
the ``users.parquet`` beside it and the data set; curves from the runs; the map of items and the attribution from the
models, where they are at hand. What is not at hand is left out, and the page says why.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.report import figures, tables
from allmrec_jax.report.tables import SLICES, pair_of
from allmrec_jax.report.users import (
    asked_dataset,
    browser_data,
    describe_users,
    popularity,
    sample_users,
)

if TYPE_CHECKING:
    import polars as pl

ABOUT = {
    "Oracle": "the generator’s own probabilities: the best that is possible",
    "Popularity": "training interactions of the item",
    "NCF": "collaborative filtering by user and item index",
    "NextItNet": "collaborative filtering, convolutions over the history",
    "GRU4Rec": "collaborative filtering, a recurrent network",
    "SASRec": "collaborative filtering, the frozen model inside A-LLMRec",
    "MoRec": "SASRec over fine-tuned text vectors instead of item numbers",
    "CTRL": "SASRec aligned with a text encoder, answers without it",
    "RECFORMER": "a language model over key-value item texts",
    "RECFORMER (tiny)": "a small language model over key-value item texts, from scratch",
    "LLM-Only": "the frozen language model, titles only",
    "TALLRec (yes-no)": "LoRA on the language model, asked about one item at a time",
    "TALLRec (titles)": "LoRA on the language model, answers with a title",
    "MLP-LLM": "language model with the CF model’s own vectors, no stage 1",
    "A-LLMRec": "language model with aligned user and item vectors",
    "A-LLMRec (SBERT)": "the same, item vectors from text alone",
    "A-LLMRec_all": "trained on every position of the histories",
    "A-LLMRec, reduced": "trained as briefly as the rows beside it",
    "A-LLMRec (NCF)": "on NCF in SASRec’s place",
    "A-LLMRec (NextItNet)": "on NextItNet in SASRec’s place",
    "A-LLMRec (GRU4Rec)": "on GRU4Rec in SASRec’s place",
    "Majority genre": "the genre that training has most often, for everybody",
    "3 most frequent genres": "the three that training has most often, for everybody",
    "A-LLMRec, items permuted": "control: item vectors swapped across items",
    "A-LLMRec, users swapped": "control: user vectors swapped across users",
    "w/o L_matching": "stage 1 without the loss that joins both spaces",
    "w/o L_item-recon and L_text-recon": "stage 1 without both reconstructions",
    "w/o L_rec": "stage 1 without the recommendation loss",
    "frozen SBERT": "the sentence encoder is not trained",
    "w/o user representation": "prompts without the user’s vector",
    "w/o joint embedding": "prompts without item vectors",
    "random joint embedding": "noise in place of item vectors",
}
"""What each system is, in a few words, under its name."""

SCENARIOS = {
    "overall": "all test users",
    "cold users": "users with three interactions",
    "few-shot": "few training users",
    "cross-domain": "users of another data set",
}

LEFT_OUT = {"gradient_norm", "rec_accuracy", "hit@3", "hit@5", "hit@10", "ndcg@5", "mrr"} | {
    f"valid/{part}" for part in ("match", "item_recon", "text_recon", "rec")
}
"""Logged, but without a curve of their own: others say nearly the same."""

CURVES = {
    "match": "matching loss",
    "item_recon": "item reconstruction loss",
    "text_recon": "text reconstruction loss",
    "rec": "recommendation loss",
    "exact": "share of answers predicted exactly",
}
"""What logged metrics are called on the page, where their own name says too little."""

STAGES = {
    "cf": "Collaborative filtering",
    "stage1": "Stage 1: alignment",
    "stage2": "Stage 2: projection into the language model",
    "mlp-llm": "MLP-LLM",
    "tallrec-yes-no": "TALLRec (yes-no)",
    "tallrec-titles": "TALLRec (titles)",
    "morec": "MoRec",
    "ctrl": "CTRL",
    "recformer": "RECFORMER",
    "recformer-tiny": "RECFORMER (tiny)",
}

CHANCE = 1 / 20
"""Hit@1 of guessing among the candidates."""

LOG_LINES = 300
"""Lines of a run's log that a report carries at most; of a longer one every n-th and those with validation."""


@dataclass(frozen=True)
class Found:
    """What a report is made of.

    Attributes:
        results: directories with ``results.json`` and ``users.parquet``, one per evaluation.
        runs: directories of training runs whose curves to show.
        data: data sets that were evaluated; they give titles to users, and categories to items.
        checkpoints: where trainings that the results name are looked for.
        not_made: why a table is not there, by its name.
    """

    results: Sequence[Path]
    runs: Sequence[Path] = ()
    data: Sequence[Path] = ()
    checkpoints: Path | None = None
    not_made: Mapping[str, str] = field(default_factory=dict)


def write_report(
    out: Path, found: Found, *, title: str | None = None, users: int = 60, attributed: int = 3, models: bool = True
) -> Path:
    """Write the page, or the folder.

    Args:
        out: an HTML file, or else a folder: an index, a page for each evaluation and each run, and every table in
            Markdown, LaTeX and JSON.
        found: what it is made of.
        title: heading; made from the data sets' names by default.
        users: in each browser of users, a seeded sample.
        attributed: users whose soft tokens are weighed.
        models: whether to load models for the map of items and for that.

    Returns:
        the page to open.

    Raises:
        UserError: a directory holds no results or no run, a file in it is damaged, or a data set is another one.
    """
    loaded = [read_results(path) for path in found.results]
    datasets = {dataset.hash: dataset for dataset in map(load_dataset, found.data)}
    hashes = {results["data"]["hash"] for results in loaded}
    for dataset in datasets.values():
        if dataset.hash not in hashes:
            name, measured = loaded[0]["data"]["name"], loaded[0]["data"]["hash"]
            raise UserError(
                f"{found.results[0]}/results.json: measured on data set {name} (hash {measured[:12]}), but "
                f"{dataset.path} has hash {dataset.hash[:12]}; name the one that was evaluated"
            )
    known = _find_runs(found, loaded)
    evaluations: list[dict[str, Any]] = []
    for path, results in zip(found.results, loaded, strict=True):
        taken = {each["id"] for each in evaluations}
        evaluations.append(_evaluation(path, results, datasets.get(results["data"]["hash"]), taken, users))
    for each in evaluations:
        each["few_shot"] = _few_shot(each, evaluations, datasets)
        begin = each["heading"].split(":")[0]
        alone = sum(other["heading"].startswith(f"{begin}:") for other in evaluations) == 1
        each["short"] = begin if alone else each["heading"]
    title = title or "Results on " + ", ".join(dict.fromkeys(each["name"] for each in evaluations))
    shown = list(found.runs) or _main_runs(loaded, known)
    runs = {path: _run(path, known) for path in dict.fromkeys([*shown, *known.values()])}
    page = {
        "title": title,
        "evaluations": evaluations,
        "curves": [runs[path] for path in shown],
        "map": None,
        "attribution": None,
        "not_made": dict(found.not_made),
        "cells": _count_cells(evaluations),
        "sources": ", ".join(dict.fromkeys(f"{path.name}/results.json" for path in found.results)),
    }
    if models and datasets:
        page |= _models(loaded, datasets, known, found.results, attributed)
    if out.suffix == ".html":
        return _write_page(out, page, runs)
    return _write_folder(out, page, runs, loaded)


def read_results(directory: Path) -> dict[str, Any]:
    """``results.json`` of an evaluation.

    Raises:
        UserError: it is missing, not JSON, or of another schema.
    """
    path = directory / "results.json"
    if not path.is_file():
        raise UserError(f"{directory}: no results.json; run `allmrec eval overall --out {directory}` first")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run the evaluation again") from error
    if not isinstance(results, dict) or results.get("schema") != 1:
        raise UserError(f"{path}: not results of schema 1; run the evaluation again with this version")
    for key in ("data", "runs", "systems"):
        if not results.get(key):
            raise UserError(f"{path}: {key!r} is missing or empty; run the evaluation again")
    return results


# Writing.


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("allmrec_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=_number, plain=_plain, verdict=_verdict)
    environment.globals.update(about=ABOUT, tone=_tone)
    return environment


def _asset(name: str) -> str:
    return files("allmrec_jax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _write_page(out: Path, page: Mapping[str, Any], runs: Mapping[Path, Mapping[str, Any]]) -> Path:
    shown = {run["identity"]: f"#run-{run['id']}" for run in page["curves"]}
    inline = {"css": Markup(_asset("report.css")), "js": Markup(_asset("report.js"))}
    write_text(out, _environment().get_template("page.html").render(**page, links=shown, root="", inline=inline))
    return out


def _write_folder(
    out: Path, page: Mapping[str, Any], runs: Mapping[Path, Mapping[str, Any]], loaded: Sequence[Mapping[str, Any]]
) -> Path:
    environment = _environment()
    pages = {run["identity"]: f"runs/{run['id']}/index.html" for run in runs.values()}
    common = {"inline": None, "evaluations": page["evaluations"], "report": page["title"]}
    for name in ("report.css", "report.js"):
        write_text(out / name, _asset(name))
    for results, each in zip(loaded, page["evaluations"], strict=True):
        to_runs = {identity: f"../{path}" for identity, path in pages.items()}
        write_text(out / "tables" / f"{each['id']}.md", tables.markdown(results, to_runs))
        write_text(out / "tables" / f"{each['id']}.tex", tables.latex(results))
        write_text(out / "tables" / f"{each['id']}.json", tables.as_json(results))
        body = environment.get_template("evaluation.html").render(**common, e=each, links=pages, root="")
        write_text(out / f"{each['id']}.html", body)
    for path, run in runs.items():
        to_runs = {identity: f"../{run['id']}/index.html" for identity, run in _by_identity(runs).items()}
        body = environment.get_template("run.html").render(**common, run=run, links=to_runs, root="../../")
        write_text(out / "runs" / run["id"] / "index.html", body)
        write_text(out / "runs" / run["id"] / "run.json", _run_json(path))
        write_text(out / "runs" / run["id"] / "metrics.jsonl", run["log"])
    body = environment.get_template("index.html").render(**{**page, **common}, links=pages, root="")
    write_text(out / "index.html", body)
    _remove_others(out, {each["id"] for each in page["evaluations"]}, {run["id"] for run in runs.values()})
    return out / "index.html"


def _remove_others(out: Path, evaluations: set[str], runs: set[str]) -> None:
    """Removes what an earlier report left in the folder of tables and runs that this one has not."""
    for table in (out / "tables").glob("*.json"):
        if table.stem not in evaluations:
            for path in (out / f"{table.stem}.html", *(table.with_suffix(end) for end in (".md", ".tex", ".json"))):
                path.unlink(missing_ok=True)
    for run in (out / "runs").glob("*/run.json"):
        if run.parent.name not in runs:
            for name in ("index.html", "metrics.jsonl", "run.json"):
                (run.parent / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder with something else in it stays
                run.parent.rmdir()


def _by_identity(runs: Mapping[Path, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {run["identity"]: run for run in runs.values()}


def _run_json(path: Path) -> str:
    """A run's ``run.json`` for a report that is moved: of paths in its command, the last part only."""
    about = json.loads((path / "run.json").read_text(encoding="utf-8"))
    words = [Path(word).name if word.startswith("/") else word for word in about.get("command", ())]
    about["command"] = ["allmrec", *words[1:]]
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


# Evaluations.


def _evaluation(
    directory: Path, results: Mapping[str, Any], dataset: Dataset | None, taken: Iterable[str], users: int
) -> dict[str, Any]:
    settings = results.get("settings", {})
    times = results.get("times", {})
    scenario = results["runs"][0]["scenario"]
    few = tables.about_scenario(results).get("training_users")
    base = "-".join(str(part) for part in (settings.get("table", "results"), few) if part is not None)
    identifier = next(
        name for n in range(len(set(taken)) + 1) if (name := f"{base}-{n + 1}" if n else base) not in taken
    )
    return {
        "id": identifier,
        "name": results["data"]["name"].replace("_", " "),
        "heading": tables.heading(results),
        "metric": tables.MAIN[tables.main_metric(results)],
        "scenario": SCENARIOS.get(scenario, scenario),
        "training_users": few,
        "results": results,
        "findings": _findings(results),
        "summary": _summary(results),
        "tables": tables.all_tables(results),
        "bars": _bars(results),
        "paired": _paired(results),
        "speed": _speed(results),
        "budgets": tables.budgets(results) if "trainings" in results["runs"][0] else [],
        **_users(directory, results, dataset, users),
        "genres": results.get("examples", []),
        "steps": [_step(step) for step in times.get("steps", [])],
        "details": [
            {"title": part.capitalize(), "tree": tree}
            for part in ("settings", "versions", "times")
            if (tree := {key: value for key, value in results.get(part, {}).items() if key != "steps"})
        ],
    }


def _users(directory: Path, results: Mapping[str, Any], dataset: Dataset | None, count: int) -> dict[str, Any]:
    """The browser of users, a few of them for those without JavaScript, and Hit@1 by popularity; or why not."""
    nothing: dict[str, Any] = {"users": [], "browser": None, "popularity": None, "asked": 0, "why_not": ""}
    if tables.main_metric(results) != "hit@1":
        return nothing
    if dataset is None:
        return nothing | {"why_not": "The data set was not named, so users cannot be shown with their titles (--data)."}
    if not (directory / "users.parquet").is_file():
        return nothing | {"why_not": "users.parquet is not beside results.json, so single users cannot be shown."}
    from allmrec_jax.evaluation.results import read_users

    frame = read_users(directory)
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
    chosen = [(name, _line_tone(name)) for name in names if name in set(frame["system"].unique())]
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


def _few_shot(
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
        series.append(figures.Series(name, line, _line_tone(name, number)))
    alt = "Hit@1 over the number of training users: " + "; ".join(
        f"{one.label} " + ", ".join(f"{k}: {value:.3f}" for k, value, *_ in one.points) for one in series
    )
    marks = {float(k): f"{k:,}" for k in points}
    return figures.lines(series, alt, x_label="training users", log=True, x_ticks=marks, from_zero=True, height=260)


def _bars(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hit@1 of every system by slice."""
    systems, metric = results["systems"], tables.main_metric(results)
    label, chance = tables.MAIN[metric], CHANCE if metric == "hit@1" else None
    parts = [part for part in ("all", "warm", "cold") if any(metric in row.get(part, {}) for row in systems.values())]
    if not parts:
        return []
    limit = 1.16 * max(row[part][metric][2] for row in systems.values() for part in parts if part in row)
    drawn = []
    for part in parts:
        rows = [figures.Row(name, row[part][metric], _tone(name)) for name, row in systems.items() if part in row]
        said = "; ".join(f"{row.label} {row.interval[0]:.3f}" for row in rows)
        svg = figures.bars(rows, f"{label}, {SLICES[part].lower()}: {said}", limit=limit, chance=chance)
        drawn.append({"caption": SLICES[part], "svg": svg})
    return drawn


def _paired(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every system against the reference, drawn by slice, and all pairs for a table."""
    paired, tests = results.get("paired", {}), results.get("tests", {})
    if not paired:
        return None
    base = tables.reference(results)
    parts = [part for part in SLICES if any(part in row for row in paired.values())]
    drawn = []
    for part in parts:
        found = [(name, pair_of(results, name, base, part)) for name in results["systems"] if name != base]
        rows = [figures.Row(name, pair[0], _sided(pair[0])) for name, pair in found if pair]
        if rows:
            said = "; ".join(f"{row.label} {row.interval[0]:+.3f}" for row in rows)
            alt = f"{tables.MAIN[tables.main_metric(results)]} minus {base}’s, {SLICES[part].lower()}: {said}"
            drawn.append({"caption": f"{SLICES[part]}: minus {base}", "svg": figures.differences(rows, alt)})
    every = [
        {
            "name": pair.replace(" - ", " − "),
            "cells": [(row[part], tests.get(pair, {}).get(part)) if part in row else None for part in parts],
        }
        for pair, row in paired.items()
    ]
    generated = any(", generated - " in pair for pair in paired)
    heads = [SLICES[part] for part in parts]
    return {"figures": drawn, "slices": heads, "rows": every, "generated": generated, "reference": base}


def _speed(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Quality against the time of training and of answering, for the table of speed."""
    if results.get("settings", {}).get("table") != "table10":
        return []
    drawn = []
    for key, label in (("minutes", "minutes of training, CF not counted"), ("batch", "seconds a batch of answers")):
        rows = [
            (entry["system"], entry[key], results["systems"][entry["system"]]["all"]["hit@1"], _tone(entry["system"]))
            for entry in tables.speeds(results)
            if entry[key] is not None and entry["seed"] == 0
        ]
        if rows:
            alt = f"Hit@1 over {label}: " + "; ".join(f"{name} {x:.3g}, {hit[0]:.3f}" for name, x, hit, _ in rows)
            drawn.append({"caption": f"Hit@1 over {label}", "svg": figures.scatter(rows, alt, x_label=label)})
    return drawn


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation in one line of the overview."""
    systems, best = results["systems"], results.get("best_baseline")
    ours = next((name for name in ("A-LLMRec", "A-LLMRec, reduced") if name in systems), None)
    metric = tables.main_metric(results)
    valued = {name: row["all"][metric] for name, row in systems.items() if metric in row["all"]}
    contend = {name: value[0] for name, value in valued.items() if name not in tables.NO_CONTEST}
    winner = max(contend, key=lambda name: contend[name], default=None)
    against = {
        name: pair_of(results, ours, name) if ours and name in systems and name != ours else None
        for name in ("SASRec", best)
        if name
    }
    return {
        "users": max(row["all"]["n"] for row in systems.values()),
        "ours": valued.get(ours or ""),
        "best": best,
        "best_value": valued.get(best or ""),
        "sasrec": valued.get("SASRec"),
        "against_sasrec": against.get("SASRec"),
        "against_best": against.get(best) if best else None,
        "winner": winner,
        "winner_value": valued.get(winner or ""),
    }


def _findings(results: Mapping[str, Any]) -> list[str]:
    """A few sentences that say what the tables show."""
    systems, base = results["systems"], tables.reference(results)
    ours, best, metric = systems.get("A-LLMRec"), results.get("best_baseline"), tables.main_metric(results)
    label, found = tables.MAIN[metric], []
    if ours and "hit@1" in ours["all"]:
        sentence = f"A-LLMRec ranks the true next item first for {_share(ours['all']['hit@1'])} of users"
        if base in systems and base != "A-LLMRec":
            sentence += f"; {base} for {_share(systems[base]['all']['hit@1'])}"
        found.append(sentence + ".")
    for other in dict.fromkeys(name for name in ("SASRec", best) if name):
        if ours and (pair := pair_of(results, "A-LLMRec", other)):
            named = f"{other}, the best baseline here" if other == best else other
            found.append(f"Against {named}, user by user: {_told(pair, label)}.")
    variants = [(name, pair_of(results, name, base)) for name in systems if base != "SASRec"]
    tested = [(name, pair) for name, pair in variants if pair and name in _ablations()]
    if tested:
        lower = [f"{name} ({_signed(pair[0][0])})" for name, pair in tested if pair[0][2] < 0]
        found.append(
            f"Of {len(tested)} ablations, {len(lower)} fall below {base} beyond chance{': ' if lower else ''}"
            f"{', '.join(lower)}."
        )
    if ours and metric == "genre_hit":
        found.append(f"A genre that A-LLMRec names is among the user’s true ones for {_share(ours['all'][metric])}.")
        if pair := pair_of(results, "A-LLMRec", base):
            found.append(f"Against {base}, user by user: {_told(pair, label)}.")
    if ours and "strict_hit@1" in ours["all"]:
        found.append(
            f"Asked to write a title, A-LLMRec names exactly one candidate for {_share(ours['all']['valid_ratio'])} "
            f"and the right one for {_share(ours['all']['strict_hit@1'])}."
        )
    text, cf = systems.get("A-LLMRec (SBERT)"), systems.get("SASRec")
    if text and cf and "cold" in text and "cold" in cf:
        found.append(
            f"On cold items, A-LLMRec with item vectors from text is right for {_share(text['cold']['hit@1'])}; "
            f"SASRec for {_share(cf['cold']['hit@1'])}."
        )
    contend = [name for name, row in systems.items() if name not in tables.NO_CONTEST and metric in row["all"]]
    if not found and contend:
        winner = max(contend, key=lambda name: systems[name]["all"][metric][0])
        found.append(f"Best {label}: {winner}, {_share(systems[winner]['all'][metric])}.")
    return found


def _ablations() -> set[str]:
    from allmrec_jax.experiments.rows import STAGE1_ABLATIONS, STAGE2_ABLATIONS

    return {*STAGE1_ABLATIONS, *STAGE2_ABLATIONS}


def _count_cells(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many cells of all tables have no value, and why; the paper's columns are not ours to fill."""
    total, reasons = 0, dict[str, int]()
    for each in evaluations:
        for table in each["tables"]:
            for row in table.rows:
                for cell, column in zip(row.cells, table.columns, strict=True):
                    total += not column.paper
                    if cell.na:
                        reasons[cell.na] = reasons.get(cell.na, 0) + 1
    told = [(code, count, tables.REASONS[code]) for code, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return {"total": total, "na": sum(reasons.values()), "reasons": told}


# Runs.


def _find_runs(found: Found, loaded: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The directories of the runs behind the results and of those named, by identity."""
    from allmrec_jax.runs import load_run

    known = {load_run(path)["identity"]: path for path in found.runs}
    if found.checkpoints is None:
        return known
    lying = {path.parent.name: path.parent for path in sorted(found.checkpoints.glob("*/*/*/DONE"))}
    wanted = [
        identity
        for results in loaded
        for run in results["runs"]
        for identity in (*(node["identity"] for node in run.get("trainings", ())), run["id"])
    ]
    while wanted:
        identity = wanted.pop(0)
        path = lying.get(identity[:12])
        if identity in known or path is None:
            continue
        about = load_run(path)
        if about["identity"] == identity:
            known[identity] = path
            wanted += about["upstream"].values()
    return known


def _main_runs(loaded: Sequence[Mapping[str, Any]], known: Mapping[str, Path]) -> list[Path]:
    """The CF model, stage 1 and stage 2 of the first A-LLMRec row whose runs are at hand, in this order."""
    from allmrec_jax.runs import load_run

    for results in loaded:
        identity = tables.run_of(results, "A-LLMRec") or ""
        if identity in known:
            upstream = load_run(known[identity])["upstream"]
            chain = [upstream.get("cf"), upstream.get("stage1"), identity]
            return [known[each] for each in chain if each in known]
    return []


def _run(directory: Path, known: Mapping[str, Path]) -> dict[str, Any]:
    """A training run: what it is, its settings, its curves and its log."""
    from allmrec_jax.runs import load_run
    from allmrec_jax.training.metrics import read_lines

    about = load_run(directory)
    lines = read_lines(directory / "metrics.jsonl")
    name = STAGES.get(about["kind"], about["kind"])
    if about["kind"] == "cf":
        name = f"{name}: {about['settings'].get('model', 'sasrec')}"
    thin = max(1, -(-len(lines) // LOG_LINES))
    kept = [line for n, line in enumerate(lines) if n % thin == 0 or any(key.startswith("valid/") for key in line)]
    cost = directory / "cost.json"
    return {
        "name": name,
        "kind": about["kind"],
        "identity": about["identity"],
        "id": about["identity"][:12],
        "seed": about["seed"],
        "figures": _curves(name, about["kind"], lines),
        "settings": about["settings"],
        "upstream": about.get("upstream", {}),
        "record": {key: about[key] for key in ("data", "versions", "platform", "mesh", "commit") if about.get(key)},
        "cost": json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else None,
        "log": "".join(json.dumps(line) + "\n" for line in kept),
        "lines": (len(kept), len(lines)),
    }


def _curves(name: str, kind: str, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(
        key for line in lines for key in line if key != "step" and not {key, key.split("/")[-1]} & LEFT_OUT
    )
    drawn = []
    for key in sorted(names, key=lambda key: key != "loss"):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if len(points) < 2:
            continue
        steps, values = zip(*points, strict=True)
        said = f"{name}, {key}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}"
        unit = "epoch" if kind == "cf" else "step"
        svg = figures.curve(steps, values, said, unit=unit, tone="cf" if kind == "cf" else "ours")
        caption = CURVES.get(key, key.replace("_", " ").replace("valid/", "validation "))
        drawn.append({"caption": caption, "svg": svg})
    return drawn


# What models say.


def _models(
    loaded: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, Dataset],
    known: Mapping[str, Path],
    directories: Sequence[Path],
    attributed: int,
) -> dict[str, Any]:
    """The map of items and the attribution, of the first A-LLMRec row whose runs and data set are at hand."""
    from allmrec_jax.runs import load_run

    ready = [
        (directory, results, identity, datasets[results["data"]["hash"]])
        for directory, results in zip(directories, loaded, strict=True)
        if (identity := tables.run_of(results, "A-LLMRec") or "") in known
        and results["data"]["hash"] in datasets
        and results["runs"][0]["scenario"] == "overall"
        and tables.main_metric(results) == "hit@1"
    ]
    if not ready:
        return {}
    directory, results, identity, dataset = ready[0]
    upstream = load_run(known[identity])["upstream"]
    cf, stage1 = known.get(upstream.get("cf", "")), known.get(upstream.get("stage1", ""))
    drawn: dict[str, Any] = {}
    if cf and stage1:
        from allmrec_jax.report.latents import item_map

        drawn["map"] = _or_why(lambda: item_map(dataset, stage1, cf))
    if attributed and (directory / "users.parquet").is_file():
        drawn["attribution"] = _or_why(lambda: _attribution(directory, results, dataset, known[identity], attributed))
    return drawn


def _or_why(make: Any) -> dict[str, Any]:
    """What ``make`` gives, or why it gives nothing."""
    try:
        return {"made": make(), "why_not": ""}
    except UserError as error:
        return {"made": None, "why_not": str(error)}


def _attribution(
    directory: Path, results: Mapping[str, Any], dataset: Dataset, stage2: Path, count: int
) -> list[dict[str, Any]]:
    import polars as pl

    from allmrec_jax.evaluation.results import read_users
    from allmrec_jax.report.attribution import attribute_users

    frame = read_users(directory).filter(pl.col("system") == "A-LLMRec")
    frame = frame.filter(pl.col("seed") == pl.col("seed").min())
    drawn = [frame.filter(pl.col("user") == user).to_dicts()[0] for user in sample_users(frame, count)]
    rows = [(row["user"], row["target"], row["candidates"]) for row in drawn]
    found = []
    for row, tokens in zip(
        drawn, attribute_users(dataset, stage2, rows, llm=results["settings"].get("llm")), strict=True
    ):
        most = max(abs(token.value) for token in tokens) or 1.0
        found.append(
            {
                "user": row["user"],
                "rank": row["rank"],
                "target": dataset.titles[row["target"]],
                "tokens": [
                    {
                        "kind": token.kind,
                        "title": dataset.titles[token.item] if token.item else "the user’s vector",
                        "true": token.kind == "candidate" and token.item == row["target"],
                        "value": token.value,
                        "width": round(50 * abs(token.value) / most, 1),
                    }
                    for token in tokens
                ],
            }
        )
    return found


# Words.


def _tone(system: str) -> str:
    if system in ("A-LLMRec", "A-LLMRec (SBERT)", "A-LLMRec_all", "A-LLMRec, reduced"):
        return "ours"
    return "cf" if system == "SASRec" else "other"


def _line_tone(system: str, number: int = 0) -> str:
    """A colour for a line, each system's own where it is one of the few."""
    fixed = {"A-LLMRec": "ours", "SASRec": "cf", "A-LLMRec (SBERT)": "c3"}
    return fixed.get(system, ("c4", "c5", "c6", "other")[number % 4])


def _sided(interval: Sequence[float]) -> str:
    return "ours" if interval[1] > 0 else "cf" if interval[2] < 0 else "other"


def _step(step: Mapping[str, Any]) -> dict[str, str]:
    return {"name": step["name"], "seconds": f"{step['seconds']:,.0f}", "memory": f"{step['peak_mib']:,.0f} MiB"}


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _share(interval: Sequence[float]) -> str:
    value, low, high = (100 * round(part, 3) for part in interval)  # the tables' three digits
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


def _told(pair: tuple[Sequence[float], float | None], metric: str) -> str:
    """A paired difference in words."""
    (value, low, high), p = pair
    test = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return f"{_signed(value)} {metric} ({_signed(low)} to {_signed(high)}{test}), {_verdict((value, low, high))}"


def _verdict(interval: Sequence[float]) -> str:
    _, low, high = interval
    if low > 0:
        return "higher, beyond chance"
    return "lower, beyond chance" if high < 0 else "within chance"


def _plain(value: Any) -> str | Markup:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
