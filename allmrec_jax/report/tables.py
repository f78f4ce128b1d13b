"""A table of systems as Markdown, from ``results.json`` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from allmrec_jax.report import paper

COLUMNS = {
    "hit@1": "Hit@1 (95% interval)",
    "hit@5": "Hit@5",
    "ndcg@10": "NDCG@10",
    "strict_hit@1": "Strict Hit@1",
    "valid_ratio": "ValidRatio",
    "catalogue_recall@20": "Whole catalogue: Recall@20",
    "catalogue_ndcg@20": "NDCG@20",
}
PARTS = {"all": "", "warm": "Warm: Hit@1", "cold": "Cold: Hit@1"}


def markdown(
    results: Mapping[str, Any],
    title: str,
    *,
    slices: Sequence[str] = ("all", "warm", "cold"),
    reference: str = "SASRec",
    published: str = "table1_overall",
) -> str:
    """The whole table with what it was measured on, one line per system, and the budgets of the rows below.

    Args:
        results: ``results.json``.
        title: heading.
        slices: shown; those that no system has are left out.
        reference: the system that the others are tested against.
        published: the paper's table, a key of :func:`allmrec_jax.report.paper.tables`.
    """
    systems: Mapping[str, Any] = results["systems"]
    shown = [key for key in COLUMNS if any(key in row.get("all", {}) for row in systems.values())]
    parts = [part for part in slices if part != "all" and any(part in row for row in systems.values())]
    data = results["data"]["name"]
    heads = ["System", "Users", "Seeds", *(COLUMNS[key] for key in shown), *(PARTS[part] for part in parts)]
    heads += [f"Minus {reference}", "p", "Paper"]
    lines = [f"# {title}", "", _measured_on(results), "", _line(heads), _line("---" for _ in heads)]
    for name, row in systems.items():
        seeds = {run["seed"] for run in results["runs"] if run["system"] == name}
        cells = [name, f"{row['all']['n']:,}", str(len(seeds))]
        cells += [_value(row["all"].get(key), interval=key == "hit@1") for key in shown]
        cells += [_value(row.get(part, {}).get("hit@1")) for part in parts]
        pair = f"{name} - {reference}"
        cells += [_difference(results["paired"].get(pair, {}).get("all"))]
        cells += [_probability(results.get("tests", {}).get(pair, {}).get("all"))]
        cells += [_range(paper.hit_at_1(name, "all", published), data)]
        lines.append(_line(cells))
    lines += ["", "p: sign-flip test over users, two-sided, each on its own. Paper: Hit@1 there, " + _whose(data), ""]
    return "\n".join([*lines, "## Budgets", "", *_budgets(results), ""])


def _measured_on(results: Mapping[str, Any]) -> str:
    files = sorted({run["candidates_sha"][:12] for run in results["runs"]})
    return (
        f"Data set {results['data']['name']} (hash {results['data']['hash'][:12]}), 20 candidates a user; candidate "
        f"file {', '.join(files)} (a system asked about fewer users has the first so many of the same file). Values of "
        "several seeds are means over them; intervals resample users."
    )


def _budgets(results: Mapping[str, Any]) -> list[str]:
    """Each row's trainings: what, how long, with which batch, and the run."""
    lines = []
    for name in results["systems"]:
        parts = []
        for run in results["runs"]:
            if run["system"] != name:
                continue
            for node in run["trainings"]:
                changes = "".join(f", {key} {value}" for key, value in node["changes"].items())
                took = "" if node["seconds"] is None else f", {node['seconds']:,.0f} s"
                parts.append(
                    f"{node['kind']} {node['identity'][:12]} (preset {node['preset']}{changes}, seed {node['seed']}): "
                    f"{node['steps']:,} {node['unit']} of batch {node['batch_size']}{took}"
                )
        asked = sum(run.get("seconds", 0.0) for run in results["runs"] if run["system"] == name)
        lines.append(
            f"- **{name}**: {'; '.join(dict.fromkeys(parts)) or 'nothing is trained'}; asked in {asked:,.0f} s"
        )
    return lines


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _value(cell: Sequence[float] | None, *, interval: bool = False) -> str:
    if cell is None:
        return ""
    return f"{cell[0]:.3f} ({cell[1]:.3f}–{cell[2]:.3f})" if interval else f"{cell[0]:.3f}"


def _difference(cell: Sequence[float] | None) -> str:
    return "" if cell is None else f"{cell[0]:+.3f} ({cell[1]:+.3f} to {cell[2]:+.3f})"


def _probability(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _range(values: Mapping[str, float], data: str) -> str:
    if not values:
        return ""
    if data in values:
        return f"{values[data]:.3f}"
    low, high = min(values.values()), max(values.values())
    return f"{low:.3f}" if low == high else f"{low:.2f}–{high:.2f}"


def _whose(data: str) -> str:
    if data in paper.DATASETS:
        return f"on {paper.DATASETS[data]}, with OPT-6.7B, by the official test."
    return f"the range over its data sets ({', '.join(paper.DATASETS.values())}), with OPT-6.7B, by the official test."
