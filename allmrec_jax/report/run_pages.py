"""The pages of training runs: which runs stand behind some results, their settings, curves and logs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allmrec_jax.records import read_cost
from allmrec_jax.report import facts, figures, provenance
from allmrec_jax.report.readers import read_log, read_run
from allmrec_jax.report.words import CURVES, STAGES

LEFT_OUT = {"gradient_norm", "rec_accuracy", "hit@3", "hit@5", "hit@10", "ndcg@5", "mrr"} | {
    f"valid/{part}" for part in ("match", "item_recon", "text_recon", "rec")
}
"""Logged, but without a curve of their own: others say nearly the same."""

LOG_LINES = 300
"""Lines of a run's log that a report carries at most; of a longer one every n-th and those with validation."""


def find_runs(named: Iterable[Path], checkpoints: Path | None, loaded: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The directories of the runs behind the results and of those named, by identity."""
    known = {read_run(path)["identity"]: path for path in named}
    if checkpoints is None:
        return known
    lying = {path.parent.name: path.parent for path in sorted(checkpoints.glob("*/*/*/DONE"))}
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
        about = read_run(path)
        if about["identity"] == identity:
            known[identity] = path
            wanted += about["upstream"].values()
    return known


def main_runs(loaded: Sequence[Mapping[str, Any]], known: Mapping[str, Path]) -> list[Path]:
    """The CF model, stage 1 and stage 2 of the first A-LLMRec row whose runs are at hand, in this order."""
    for results in loaded:
        identity = facts.run_of(results, "A-LLMRec") or ""
        if identity in known:
            upstream = read_run(known[identity])["upstream"]
            chain = [upstream.get("cf"), upstream.get("stage1"), identity]
            return [known[each] for each in chain if each in known]
    return []


def run_page(directory: Path) -> dict[str, Any]:
    """A training run: what it is, its settings, its curves and its log."""
    about = read_run(directory)
    lines = read_log(directory)
    name = STAGES.get(about["kind"], about["kind"])
    if about["kind"] == "cf":
        name = f"{name}: {about['settings'].get('model', 'sasrec')}"
    thin = max(1, -(-len(lines) // LOG_LINES))
    kept = [line for n, line in enumerate(lines) if n % thin == 0 or any(key.startswith("valid/") for key in line)]
    return {
        "name": name,
        "kind": about["kind"],
        "identity": about["identity"],
        "id": about["identity"][:12],
        "seed": about["seed"],
        "figures": _curves(name, about["kind"], lines),
        "settings": about["settings"],
        "upstream": about.get("upstream", {}),
        "provenance": provenance.of_runs([about]),
        "record": {
            key: about[key] for key in ("data", "versions", "machine", "platform", "mesh", "commit") if about.get(key)
        },
        "cost": read_cost(directory),
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


def portable_run_json(path: Path) -> str:
    """A run's ``run.json`` for a report that is moved: of paths in its command, the last part only."""
    about = read_run(path)
    words = [Path(word).name if word.startswith("/") else word for word in about.get("command", ())]
    about["command"] = ["allmrec", *words[1:]]
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"
