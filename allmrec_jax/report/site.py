"""The report: results in; one self-contained HTML page out, or a folder of pages with every table as a file.

What a page says of an evaluation comes from its ``results.json``; the browser of users and the popularity figure from
the ``users.parquet`` beside it and the data set; curves from the runs; the map of items and the attribution from the
models, where they are at hand. What is not at hand is left out, and the page says why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.outputs import Output
from allmrec_jax.report import export, provenance, tables
from allmrec_jax.report.evaluation_pages import evaluation_page, few_shot_curve
from allmrec_jax.report.model_sections import model_sections
from allmrec_jax.report.readers import read_results, read_run
from allmrec_jax.report.run_pages import find_runs, main_runs, portable_run_json, run_page
from allmrec_jax.report.words import number, plain, signed, systems_in_words, tone, verdict

REPORT = Output(
    "report",
    signs=("index.html", "report.css", "report.js"),
    names=(
        *("*.html", "report.css", "report.js", "tables/*.md", "tables/*.tex", "tables/*.json"),
        *("runs/*/index.html", "runs/*/run.json", "runs/*/metrics.jsonl"),
    ),
)

_PAGE_SIGNS = (b'<meta name="generator" content="allmrec">', b"A-LLMRec in JAX")
"""What a page of ours holds; the second one is in those made before the first was."""


@dataclass(frozen=True)
class ReportSources:
    """What a report is made of.

    Attributes:
        results: directories with ``results.json`` and ``users.parquet``, one per evaluation; none where the report is
            of trainings alone.
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
    out: Path,
    sources: ReportSources,
    *,
    title: str | None = None,
    users: int = 60,
    attributed: int = 3,
    models: bool = True,
) -> Path:
    """Write the page, or the folder.

    Args:
        out: an HTML file, or else a folder: an index, a page for each evaluation and each run, and every table in
            Markdown, LaTeX and JSON.
        sources: what it is made of.
        title: heading; made from the data sets' names by default.
        users: in each browser of users, a seeded sample.
        attributed: users whose soft tokens are weighed.
        models: whether to load models for the map of items and for that.

    Returns:
        the page to open.

    Raises:
        UserError: a directory holds no results or no run, a file in it is damaged, or a data set is another one.
    """
    if out.suffix == ".html":
        _refuse_foreign_page(out)
    else:
        REPORT.check(out)
    loaded = [read_results(path) for path in sources.results]
    datasets = {dataset.hash: dataset for dataset in map(load_dataset, sources.data)}
    abouts = [read_run(path) for path in sources.runs]
    _check_data(sources, datasets.values(), loaded, abouts)
    known = find_runs(sources.runs, sources.checkpoints, loaded)
    evaluations: list[dict[str, Any]] = []
    for path, results in zip(sources.results, loaded, strict=True):
        taken = {each["id"] for each in evaluations}
        evaluations.append(evaluation_page(path, results, datasets.get(results["data"]["hash"]), known, taken, users))
    for each in evaluations:
        each["few_shot"] = few_shot_curve(each, evaluations, datasets)
        each["short"] = _short_heading(each, evaluations)
    title = title or _title(evaluations, abouts)
    shown = list(sources.runs) or main_runs(loaded, known)
    runs = {path: run_page(path) for path in dict.fromkeys([*shown, *known.values()])}
    page = {
        "title": title,
        "provenance": provenance.merged([each["provenance"] for each in evaluations]) or provenance.of_runs(abouts),
        "evaluations": evaluations,
        "curves": [runs[path] for path in shown],
        "map": None,
        "attribution": None,
        "not_made": dict(sources.not_made),
        "cells": _count_cells(evaluations),
        "sources": ", ".join(dict.fromkeys(f"{path.name}/results.json" for path in sources.results))
        or ", ".join(f"{path.name}/run.json" for path in sources.runs),
    }
    if models and datasets and loaded:
        page |= model_sections(loaded, datasets, known, sources.results, attributed)
    if out.suffix == ".html":
        return _write_page(out, page, runs)
    return _write_folder(out, page, runs, loaded)


def _check_data(
    sources: ReportSources,
    datasets: Iterable[Dataset],
    loaded: Sequence[Mapping[str, Any]],
    abouts: Sequence[Mapping[str, Any]],
) -> None:
    """Refuses a data set that neither a result nor a run of the report is of."""
    files = [path / "results.json" for path in sources.results] + [path / "run.json" for path in sources.runs]
    measured = [each["data"] for each in (*loaded, *abouts) if each.get("data")]
    for dataset in datasets:
        if measured and dataset.hash not in {data["hash"] for data in measured}:
            raise UserError(
                f"{files[0]}: measured on data set {measured[0]['name']} (hash {measured[0]['hash'][:12]}), but "
                f"{dataset.path} has hash {dataset.hash[:12]}; name the one that was evaluated"
            )


def _short_heading(each: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """What the navigation calls an evaluation: its table's number where that is enough."""
    begin = each["heading"].split(":")[0]
    same = [other for other in evaluations if other["heading"].startswith(f"{begin}:")]
    if len(same) < 2:
        return begin
    few = [other["training_users"] for other in same]
    return f"{begin}, {each['training_users']:,}" if None not in few and len(set(few)) == len(few) else each["heading"]


def _title(evaluations: Sequence[Mapping[str, Any]], abouts: Sequence[Mapping[str, Any]]) -> str:
    if evaluations:
        return "Results on " + ", ".join(dict.fromkeys(each["name"] for each in evaluations))
    names = dict.fromkeys(about["data"]["name"].replace("_", " ") for about in abouts if about.get("data"))
    return "Training" + (" on " + ", ".join(names) if names else "")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("allmrec_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, plain=plain, signed=signed, verdict=verdict)
    environment.globals.update(about=systems_in_words(), tone=tone)
    return environment


def _asset(name: str) -> str:
    return files("allmrec_jax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _refuse_foreign_page(out: Path) -> None:
    if out.is_dir() or (out.exists() and not any(sign in out.read_bytes() for sign in _PAGE_SIGNS)):
        raise UserError(f"{out}: is there already and is no report; choose another --out or move it away")


def _write_page(out: Path, page: Mapping[str, Any], runs: Mapping[Path, Mapping[str, Any]]) -> Path:
    shown = {run["identity"]: f"#run-{run['id']}" for run in page["curves"]}
    inline = {"css": Markup(_asset("report.css")), "js": Markup(_asset("report.js"))}
    write_text(out, _environment().get_template("page.html").render(**page, links=shown, root="", inline=inline))
    return out


def _write_folder(
    out: Path, page: Mapping[str, Any], runs: Mapping[Path, Mapping[str, Any]], loaded: Sequence[Mapping[str, Any]]
) -> Path:
    with REPORT.replacing(out) as new:
        _write_files(new, page, runs, loaded)
    return out / "index.html"


def _write_files(
    out: Path, page: Mapping[str, Any], runs: Mapping[Path, Mapping[str, Any]], loaded: Sequence[Mapping[str, Any]]
) -> None:
    environment = _environment()
    pages = {run["identity"]: f"runs/{run['id']}/index.html" for run in runs.values()}
    common = {"inline": None, "evaluations": page["evaluations"], "report": page["title"]}
    for name in ("report.css", "report.js"):
        write_text(out / name, _asset(name))
    for results, each in zip(loaded, page["evaluations"], strict=True):
        to_runs = {identity: f"../{path}" for identity, path in pages.items()}
        write_text(out / "tables" / f"{each['id']}.md", export.markdown(results, to_runs))
        write_text(out / "tables" / f"{each['id']}.tex", export.latex(results))
        write_text(out / "tables" / f"{each['id']}.json", export.as_json(results))
        body = environment.get_template("evaluation.html").render(**common, e=each, links=pages, root="")
        write_text(out / f"{each['id']}.html", body)
    for path, run in runs.items():
        to_runs = {identity: f"../{run['id']}/index.html" for identity, run in _by_identity(runs).items()}
        body = environment.get_template("run.html").render(**common, run=run, links=to_runs, root="../../")
        write_text(out / "runs" / run["id"] / "index.html", body)
        write_text(out / "runs" / run["id"] / "run.json", portable_run_json(path))
        write_text(out / "runs" / run["id"] / "metrics.jsonl", run["log"])
    body = environment.get_template("index.html").render(**{**page, **common}, links=pages, root="")
    write_text(out / "index.html", body)


def _by_identity(runs: Mapping[Path, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {run["identity"]: run for run in runs.values()}


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
