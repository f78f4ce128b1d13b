"""The report: result directories in, one self-contained HTML page out.

A page has one section per evaluation and one for the training runs behind them. A new table adds its part to
:func:`_evaluation` and to ``templates/page.html``; numbers come from ``results.json`` alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.report import figures, paper
from allmrec_jax.report.examples import draw_examples

ABOUT = {
    "Oracle": "the generator’s own probabilities: the best that is possible",
    "Popularity": "training interactions of the item",
    "SASRec": "collaborative filtering, the frozen model inside A-LLMRec",
    "LLM-Only": "the frozen language model, titles only",
    "TALLRec (yes-no)": "LoRA on the language model, asked about one item at a time",
    "TALLRec (titles)": "LoRA on the language model, answers with a title",
    "MLP-LLM": "language model with the CF model’s own vectors, no stage 1",
    "A-LLMRec": "language model with aligned user and item vectors",
    "A-LLMRec (SBERT)": "the same, item vectors from text alone",
    "A-LLMRec_all": "trained on every position of the histories",
    "A-LLMRec, plain start": "projectors of stage 2 start at random",
    "A-LLMRec, items permuted": "control: item vectors swapped across items",
    "A-LLMRec, users swapped": "control: user vectors swapped across users",
}
"""What each system is, in a few words, under its name."""

METRICS = {
    "hit@1": "Hit@1",
    "strict_hit@1": "Strict Hit@1",
    "valid_ratio": "ValidRatio",
    "official_hit@1": "Official Hit@1",
    "hit@5": "Hit@5",
    "ndcg@10": "NDCG@10",
}
"""Columns of the table of systems, Hit@1 first: the paper's value stands beside it."""

SLICES = {"all": "All users", "warm": "Warm items", "cold": "Cold items"}
SCENARIOS = {
    "overall": "all test users",
    "cold users": "users with three interactions",
    "few-shot": "few training users",
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
}


def write_report(
    out: Path, results: Sequence[Path], runs: Sequence[Path] = (), *, data: Path | None = None, title: str | None = None
) -> None:
    """Write the page.

    Args:
        out: the HTML file.
        results: directories with ``results.json`` and ``users.parquet``, one per evaluation.
        runs: directories of training runs whose curves to show.
        data: the data set of the first evaluation, for its example prompts; without it they are left out.
        title: heading; made from the evaluations' names by default.

    Raises:
        UserError: a directory holds no results or no run, or a file in it is damaged.
    """
    evaluations = [_evaluation(path, data if number == 0 else None, number) for number, path in enumerate(results)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("allmrec_jax.report"),
        autoescape=True,
        trim_blocks=False,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=_number, plain=_plain, verdict=_verdict)
    page = environment.get_template("page.html").render(
        title=title or "Results on " + ", ".join(dict.fromkeys(evaluation["name"] for evaluation in evaluations)),
        evaluations=evaluations,
        curves=[_training(path) for path in runs],
        sources=", ".join(f"{path.name}/results.json" for path in results),
    )
    write_text(out, page)


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


def _evaluation(directory: Path, data: Path | None, number: int) -> dict[str, Any]:
    results = read_results(directory)
    systems: dict[str, Any] = results["systems"]
    name = results["data"]["name"]
    scenario = results["runs"][0]["scenario"]
    metrics = [key for key in METRICS if any(key in row["all"] for row in systems.values())]
    times = results.get("times", {})
    return {
        "id": f"results-{number + 1}",
        "name": name.replace("_", " "),
        "scenario": SCENARIOS.get(scenario, scenario),
        "findings": _findings(systems, results.get("paired", {})),
        "setting": _setting(results),
        "metrics": [{"key": key, "label": METRICS[key]} for key in metrics],
        "rows": [
            {
                "name": system,
                "about": ABOUT.get(system, ""),
                "tone": _tone(system),
                "paper": _paper(system, "all", name),
                "cells": [row["all"].get(key) for key in metrics],
            }
            for system, row in systems.items()
        ],
        "paper_note": _paper_note(name),
        **_slices(systems, name),
        "paired": _paired(results.get("paired", {})),
        "examples": draw_examples(directory, results, data) if data else [],
        "steps": [_step(step) for step in times.get("steps", [])],
        "details": [
            {"title": part.capitalize(), "tree": tree}
            for part in ("settings", "versions", "times")
            if (tree := {key: value for key, value in results.get(part, {}).items() if key != "steps"})
        ],
    }


def _setting(results: Mapping[str, Any]) -> str:
    counts = sorted({row["all"]["n"] for row in results["systems"].values()}, reverse=True)
    users = f"{counts[0]:,} test users"
    if len(counts) > 1:
        fewer = " and ".join(f"{count:,}" for count in counts[1:])
        users += f", some systems the first {fewer} of them"
    seeds = sorted({run["seed"] for run in results["runs"]})
    files = sorted({run["candidates_sha"][:12] for run in results["runs"]})
    return (
        f"{users}; seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. Every system meets "
        f"the same users and the same candidates (candidate file {', '.join(files)})."
    )


def _findings(systems: Mapping[str, Any], paired: Mapping[str, Any]) -> list[str]:
    """Two to four sentences that say what the tables show."""
    ours, base = systems.get("A-LLMRec"), systems.get("SASRec")
    found = []
    if ours and "hit@1" in ours["all"]:
        value, low, high = (100 * part for part in ours["all"]["hit@1"])
        sentence = f"A-LLMRec ranks the true next item first for {value:.1f}% of users"
        sentence += f" (95% interval {low:.1f} to {high:.1f})"
        if base:
            sentence += f"; SASRec, the model inside it, for {_share(base['all']['hit@1'])}"
        found.append(sentence + ".")
    if ours and "valid_ratio" in ours["all"]:
        sentence = (
            f"Asked to write a title, A-LLMRec names exactly one candidate for {_share(ours['all']['valid_ratio'])}"
        )
        sentence += f" and the right one for {_share(ours['all']['strict_hit@1'])}."
        found.append(sentence)
    text = systems.get("A-LLMRec (SBERT)")
    if text and base and "cold" in text and "cold" in base:
        found.append(
            f"On cold items, A-LLMRec with item vectors from text is right for {_share(text['cold']['hit@1'])}; "
            f"SASRec for {_share(base['cold']['hit@1'])}."
        )
    if difference := paired.get("A-LLMRec - SASRec", {}).get("all"):
        value, low, high = map(_signed, difference)
        found.append(f"A-LLMRec against SASRec, user by user: {value} Hit@1 ({low} to {high}), {_verdict(difference)}.")
    if not found:
        best = max(
            (system for system in systems if system != "Oracle"),
            default="Oracle",
            key=lambda system: systems[system]["all"].get("hit@1", [0])[0],
        )
        found.append(f"Best Hit@1: {best}, {_share(systems[best]['all']['hit@1'])}.")
    return found


def _slices(systems: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Figures and table of Hit@1 by slice, empty where only all users were measured."""
    slices = [s for s in SLICES if any(s in row and "hit@1" in row[s] for row in systems.values())]
    if slices == ["all"]:
        return {"figures": [], "slices": [], "slice_rows": []}
    limit = 1.16 * max(row[s]["hit@1"][2] for row in systems.values() for s in slices if s in row)
    drawn = []
    for s in sorted(slices, key=("warm", "cold", "all").index):
        rows = [figures.Row(system, row[s]["hit@1"], _tone(system)) for system, row in systems.items() if s in row]
        said = "; ".join(f"{row.label} {row.interval[0]:.3f}" for row in rows)
        drawn.append(
            {
                "caption": f"Hit@1, {SLICES[s].lower()}",
                "svg": figures.bars(rows, f"Hit@1, {SLICES[s].lower()}: {said}", limit=limit),
            }
        )
    rows_table = [
        {
            "name": system,
            "tone": _tone(system),
            "cells": [{"ours": row.get(s, {}).get("hit@1"), "paper": _paper(system, s, name)} for s in slices],
        }
        for system, row in systems.items()
    ]
    counts = next(iter(systems.values()))
    return {
        "figures": drawn,
        "slices": [{"label": SLICES[s], "users": f"{counts[s]['n']:,}" if s in counts else "?"} for s in slices],
        "slice_rows": rows_table,
    }


def _paired(paired: Mapping[str, Any]) -> dict[str, Any] | None:
    if not paired:
        return None
    slices = [s for s in SLICES if any(s in row for row in paired.values())]
    drawn = []
    for s in slices:
        rows = [
            figures.Row(
                pair.replace(" - ", "\n− "), row[s], "ours" if row[s][1] > 0 else "cf" if row[s][2] < 0 else "other"
            )
            for pair, row in paired.items()
            if s in row
        ]
        said = "; ".join(
            f"{pair.replace(' - ', ' minus ')} {_signed(row[s][0])}" for pair, row in paired.items() if s in row
        )
        alt = f"Difference in Hit@1, {SLICES[s].lower()}: {said}"
        drawn.append({"caption": f"Difference in Hit@1, {SLICES[s].lower()}", "svg": figures.differences(rows, alt)})
    rows_table = [
        {"name": pair.replace(" - ", " − "), "cells": [row.get(s) for s in slices]} for pair, row in paired.items()
    ]
    generated = any(", generated - " in pair for pair in paired)
    return {"figures": drawn, "slices": [SLICES[s] for s in slices], "rows": rows_table, "generated": generated}


def _training(directory: Path) -> dict[str, Any]:
    """Curves of one training run from its ``metrics.jsonl``."""
    from allmrec_jax.training.metrics import read_lines
    from allmrec_jax.training.run import load_run

    about = load_run(directory)
    lines = read_lines(directory / "metrics.jsonl")
    name = STAGES.get(about["kind"], about["kind"])
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
        tone = "cf" if about["kind"] == "cf" else "ours"
        drawn.append(
            {
                "caption": CURVES.get(key, key.replace("_", " ").replace("valid/", "validation ")),
                "svg": figures.curve(steps, values, said, unit="epoch" if about["kind"] == "cf" else "step", tone=tone),
            }
        )
    return {"name": name, "id": about["identity"][:12], "figures": drawn, "settings": about["settings"]}


def _paper(system: str, slice_name: str, data: str) -> str:
    """The paper's Hit@1: its value on this data set, or the range over its own data sets."""
    values = paper.hit_at_1(system, slice_name)
    if not values:
        return ""
    if data in values:
        return f"{values[data]:.3f}"
    low, high = min(values.values()), max(values.values())
    return f"{low:.3f}" if low == high else f"{low:.2f} to {high:.2f}"


def _paper_note(data: str) -> str:
    if data in paper.DATASETS:
        return (
            f"The paper’s values are its own for {paper.DATASETS[data]}, with OPT-6.7B, measured by the official test."
        )
    names = ", ".join(paper.DATASETS.values())
    return (
        f"The paper’s column shows the range over its data sets ({names}), with OPT-6.7B, measured by the official "
        "test. These are other data and another language model: compare the order of systems, not the values."
    )


def _tone(system: str) -> str:
    if system in ("A-LLMRec", "A-LLMRec (SBERT)", "A-LLMRec_all"):
        return "ours"
    return "cf" if system == "SASRec" else "other"


def _step(step: Mapping[str, Any]) -> dict[str, str]:
    return {"name": step["name"], "seconds": f"{step['seconds']:,.0f}", "memory": f"{step['peak_mib']:,.0f} MiB"}


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _share(interval: Sequence[float]) -> str:
    value, low, high = (100 * part for part in interval)
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


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
