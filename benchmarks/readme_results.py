"""Writes the README's results section from the JSON files in ``benchmarks/results``; ``--check`` only compares.

The files of the demo are ``results.json`` of ``make demo ARGS="--data-seed S"``. Every file that
``benchmarks/keep_results.py`` has written, a table of any data set, is found and shown with its commands.

    python benchmarks/readme_results.py
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allmrec_jax.report.tables import all_tables, heading, table_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (0, 3, 4)
START, END = "<!-- results -->\n", "<!-- /results -->"

INTRODUCTION = """\
The language model here is `opt-nano` (3.4 million parameters, trained on generated lists), the sentence encoder
`sbert-nano`, so these tables show that the machinery works, not what OPT-6.7B would reach. Preset `small` also has two
settings that the paper does not have, both off in `paper` and `official`: see
[docs/embedded_models.md](docs/embedded_models.md). This section is written by `python benchmarks/readme_results.py`."""

DATA = {
    "Scientific": "Amazon Scientific (sequence JSON, 8,317 users, 4,344 items)",
    "ml-latest-small": "MovieLens latest-small (610 users, 3,650 items)",
}
"""What data sets are called, by their name."""


def load(name: str) -> dict[str, Any]:
    """``benchmarks/results/{name}.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def section() -> str:
    """The section in Markdown, without its markers."""
    demos = {seed: load(f"demo_seed{seed}") for seed in SEEDS}
    parts = [INTRODUCTION, "### The embedded data", embedded(demos[0]), figures(demos)]
    for data, tables in kept_tables().items():
        parts += [f"### {DATA.get(data, data.replace('_', ' '))}"]
        parts += [kept_table(name, results, folded=place > 0) for place, (name, results) in enumerate(tables)]
    return "\n\n".join(parts) + "\n"


def embedded(results: Mapping[str, Any]) -> str:
    """The demo's table on data seed 0."""
    slices = results["systems"]["SASRec"]
    return (
        f"`make demo` on data seed 0: {slices['all']['n']:,} seeded test users, {slices['warm']['n']} with a warm and "
        f"{slices['cold']['n']} with a cold target,\n20 candidates ([JSON](benchmarks/results/demo_seed0.json)).\n\n"
        f"{systems_table(results['systems'])}\n\n"
        "Strict Hit@1 and ValidRatio are of the titles that the language model writes, Hit@1 of its likelihood "
        "ranking.\n"
        "The last two rows are controls: item vectors permuted across items, user vectors swapped across users.\n\n"
        f"{times(results['times']['steps'])}"
    )


def times(steps: Iterable[Mapping[str, Any]]) -> str:
    """Seconds and peak memory of the demo's steps."""
    steps = list(steps)
    total, peak = sum(step["seconds"] for step in steps), max(step["peak_mib"] for step in steps)
    each = ", ".join(f"{step['name']} {step['seconds']:.0f} s" for step in steps)
    return f"It took {total / 60:.1f} minutes and at most {peak / 1024:.1f} GiB on two CPU cores:\n{each}."


def figures(demos: Mapping[int, Mapping[str, Any]]) -> str:
    """What the demo must show, on every data seed."""

    def row(label: str, values: Iterable[str]) -> str:
        return f"| {label} | " + " | ".join(values) + " |"

    def metric(system: str, name: str, part: str = "all") -> list[str]:
        return [f"{demo['systems'][system][part][name][0]:.3f}" for demo in demos.values()]

    def paired(key: str, part: str) -> list[str]:
        return [interval(demo["paired"][key][part]) for demo in demos.values()]

    def ratio(demo: Mapping[str, Any]) -> float:
        warm = [demo["systems"][system]["warm"]["hit@1"][0] for system in ("SASRec", "Oracle")]
        return warm[0] / warm[1]

    lines = [
        row("figure", [f"data seed {seed}" for seed in demos]),
        row("---", ["---"] * len(demos)),
        row("SASRec / Oracle, Hit@1, warm items", [f"{ratio(demo):.3f}" for demo in demos.values()]),
        row("A-LLMRec, Hit@1", metric("A-LLMRec", "hit@1")),
        row("SASRec, Hit@1", metric("SASRec", "hit@1")),
        row("A-LLMRec − SASRec, user by user", paired("A-LLMRec - SASRec", "all")),
        row("A-LLMRec (SBERT) − SASRec, cold items", paired("A-LLMRec (SBERT) - SASRec", "cold")),
        row("A-LLMRec, strict Hit@1", metric("A-LLMRec", "strict_hit@1")),
        row("A-LLMRec, ValidRatio", metric("A-LLMRec", "valid_ratio")),
        row("LLM-Only, ValidRatio", metric("LLM-Only", "valid_ratio")),
        row("items permuted − A-LLMRec", paired("A-LLMRec, items permuted - A-LLMRec", "all")),
        row("users swapped − A-LLMRec", paired("A-LLMRec, users swapped - A-LLMRec", "all")),
    ]
    return (
        'Data seeds 3 and 4 were not tuned on (`make demo ARGS="--data-seed 3"`):\n\n' + "\n".join(lines) + "\n\n"
        "Differences are of Hit@1, with 95% bootstrap intervals over users."
    )


def kept_tables() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Names and results of the files that hold a table and its commands, by data set, in the paper's order."""
    found = [(path.stem, load(path.stem)) for path in sorted(RESULTS.glob("*.json"))]
    tables = [(name, results) for name, results in found if "commands" in results and "systems" in results]
    tables.sort(key=lambda each: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", heading(each[1]))])
    by_data: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, results in tables:
        by_data.setdefault(results["data"]["name"], []).append((name, results))
    return by_data


def kept_table(name: str, results: Mapping[str, Any], *, folded: bool) -> str:
    """The main table of some results, the budgets left to the JSON, and the commands that made it."""
    main = all_tables(results)[0]
    commands = "\n".join(f"    {line}" for line in results["commands"])
    parts = [commands, table_markdown(main, {}), *claim(results), *main.notes]
    body = "\n\n".join([*parts, f"[JSON](benchmarks/results/{name}.json)"])
    if folded:
        return f"<details><summary>{main.title}</summary>\n\n{body}\n\n</details>"
    return f"{main.title}\n\n{body}"


def claim(results: Mapping[str, Any]) -> list[str]:
    """Whether the paper's claim, A-LLMRec above SASRec, shows in these results; nothing where they do not ask it."""
    words = {"all": "all users", "warm": "warm items", "cold": "cold items"}
    pairs = results.get("paired", {}).get("A-LLMRec - SASRec", {})
    signs = {words[part]: (low > 0) - (high < 0) for part, (_, low, high) in pairs.items() if part in words}
    verdicts = {1: "above SASRec", 0: "not distinguishable from SASRec", -1: "below SASRec"}
    said = [f"{verdicts[sign]} on {part}" for part, sign in signs.items()]
    if not said:
        return []
    shown = "this run shows" if set(signs.values()) == {1} else "this run does not show"
    return [f"A-LLMRec is {', '.join(said)}. The paper has it above SASRec on all of them: {shown} that."]


def systems_table(systems: Mapping[str, Any]) -> str:
    """Hit@1 with its interval on all, warm and cold items, and what was generated."""
    parts = [part for part in ("all", "warm", "cold") if any(part in row for row in systems.values())]
    heads = {"all": "Hit@1 (95% interval)", "warm": "warm items", "cold": "cold items"}
    lines = [
        "| system | " + " | ".join(heads[part] for part in parts) + " | strict Hit@1 | ValidRatio |",
        "|---|" + "---|" * (len(parts) + 2),
    ]
    for system, row in systems.items():
        cells = [with_interval(row[part]["hit@1"]) if part in row else "" for part in parts]
        for metric in ("strict_hit@1", "valid_ratio"):
            cells.append(f"{row['all'][metric][0]:.3f}" if metric in row["all"] else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_interval(value: Iterable[float]) -> str:
    """A value and its interval."""
    return "{:.3f} ({:.3f}–{:.3f})".format(*value)


def interval(value: Iterable[float]) -> str:
    """A difference and its interval, with signs."""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*value)


def main() -> int:
    """Writes the section, or with ``--check`` says whether it is what the files give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the README is out of date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    new = before + START + section() + END + rest.split(END)[1]
    if check:
        print("up to date" if new == text else "README.md is out of date: python benchmarks/readme_results.py")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
