"""Writes README.md's table from the JSON in ``benchmarks/results``, and gives the site's pages theirs.

``--check`` only compares. The pages below ``docs/`` are committed without their tables: ``tools/docs_site.py`` fills
them in when the site is built.

The files of the demo are ``results.json`` of ``make demo ARGS="--data-seed S"``. Every file that
``tools/keep_results.py`` has written, a table of any data set, is found and shown with its commands on the page of
its data set, which its name begins with (``movielens_table4``); the overview has a line of each.

    python tools/readme_results.py
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from allmrec_jax.errors import STOPPED
from allmrec_jax.markdown import escaped
from allmrec_jax.report.export import table_markdown
from allmrec_jax.report.facts import OURS, compare, heading, is_speed, main_metric
from allmrec_jax.report.figures import Row, bars
from allmrec_jax.report.findings import findings
from allmrec_jax.report.paper import hit_at_1
from allmrec_jax.report.provenance import budget_words, machine_words, merged, of_evaluation
from allmrec_jax.report.tables import all_tables
from allmrec_jax.report.words import tone

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (0, 3, 4)

INTRODUCTION = """\
The language model here is `opt-nano` (3.4 million parameters, trained on generated lists), the sentence encoder
`sbert-nano`, so these tables show that the machinery works, not what OPT-6.7B would reach. Preset `small` also has two
settings that the paper does not have, both off in `paper` and `official`: see
[Embedded models](docs/embedded_models.md)."""

IN_SHORT = {
    "Oracle": ", a bound: it knows what the data were drawn from",
    "Popularity": "",
    "SASRec": ", the CF model",
    "LLM-Only": ", the language model alone",
    "A-LLMRec": "",
    "A-LLMRec (SBERT)": ": every item by its text",
}
"""The rows of README's table, and what they are."""

DATA = {
    "embedded": "The embedded data",
    "movielens": "MovieLens latest-small (610 users, 3,650 items)",
    "scientific": "Amazon Scientific (sequence JSON, 8,317 users, 4,344 items)",
}
"""The data sets: what their pages and files are called, and what they are."""


def load(name: str) -> dict[str, Any]:
    """``benchmarks/results/{name}.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def section() -> str:
    """Every data set at a glance."""
    demos = {seed: load(f"demo_seed{seed}") for seed in SEEDS}
    parts = [INTRODUCTION]
    for data, title in DATA.items():
        parts += [f"## {title}", measured([results for _, results in tables_of(data)])]
        parts += [embedded(demos[0]), figures(demos)] if data == "embedded" else []
        parts += [overview(results) for _, results in tables_of(data) if results["settings"].get("table") == "table1"]
        parts += [at_a_glance(data)]
    return "\n\n".join(parts) + "\n"


def overview(results: Mapping[str, Any]) -> str:
    """Table 1 in a few columns, with the range of the paper's values over its four data sets."""
    lines = [
        "| system | trainings | users | Hit@1 (95% interval) | warm items | cold items "
        "| paper: four other data sets, OPT-6.7B |",
        "|---|---|---|---|---|---|---|",
    ]
    for system, row in results["systems"].items():
        printed = hit_at_1(system, "all").values()
        runs = [run for run in results["runs"] if run["system"] == system and run["trainings"]]
        cells = [str(len(runs) or ""), f"{row['all']['n']:,}"]
        cells += [with_interval(row[part]["hit@1"]) for part in ("all", "warm", "cold")]
        cells.append(f"{min(printed):.2f} to {max(printed):.2f}" if printed else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n\n".join([f"{heading(results)}:", "\n".join(lines), *claim(results)])


def at_a_glance(data: str) -> str:
    """A line for each table of a data set; A-LLMRec and SASRec on the users of both."""
    lines = ["| | users | A-LLMRec | SASRec | A-LLMRec − SASRec | best |", "|---|---|---|---|---|---|"]
    timed = []
    for _, results in tables_of(data):
        if is_speed(results):
            timed += [f"{heading(results)}: {' '.join(findings(results))}"]
            continue
        hits = {name: row["all"][main_metric(results)] for name, row in results["systems"].items()}
        best = max(hits, key=lambda name: hits[name][0])
        own = next(name for name in OURS if name in hits)
        pair = compare(results, own, "SASRec")
        cells = [f"{results['systems'][own]['all']['n']:,}", f"{hits[own][0]:.3f}"]
        cells += [f"{pair.other:.3f}", interval(pair.difference)] if pair else ["", ""]
        lines.append(f"| {heading(results)} | " + " | ".join([*cells, f"{best}, {hits[best][0]:.3f}"]) + " |")
    return "\n\n".join(
        [
            "The paper's tables on this data: Hit@1, of genres the share of users with one among their true three; "
            "SASRec's on\nthe users whom A-LLMRec was asked about, the best system's on its own. The\n"
            "paper has A-LLMRec above SASRec in all that have both, except in Table 1 on Video Games. Commands, rows:\n"
            f"[the page of this data](docs/results/{data}.md).",
            "\n".join(lines),
            *timed,
        ]
    )


def in_short() -> str:
    """README's six rows: the demo over its data seeds and machines, and what of the paper's claim they show."""
    demos, machines = [load(f"demo_seed{seed}") for seed in SEEDS], load("demo_machines")["machines"]
    lines = ["| system | Hit@1, all users | warm items | cold items |", "|---|---|---|---|"]
    for system, about in IN_SHORT.items():
        cells = []
        for part in ("all", "warm", "cold"):
            values = [demo["systems"][system][part]["hit@1"][0] for demo in demos]
            if part == "all":
                values += [machine["systems"][system] for machine in machines if system in machine["systems"]]
            low, high = f"{min(values):.2f}", f"{max(values):.2f}"
            cells.append(low if low == high else f"{low}–{high}")
        lines.append(f"| {system}{about} | " + " | ".join(cells) + " |")
    pairs = [demo["paired"]["A-LLMRec - SASRec"]["all"] for demo in demos]
    pairs += [machine["paired"]["A-LLMRec - SASRec"] for machine in machines]
    cold = [demo["paired"]["A-LLMRec - SASRec"]["cold"] for demo in demos]
    above = sum(low > 0 for _, low, _ in pairs)
    return (
        "\n".join(lines) + "\n\n"
        f"Lowest to highest of {len(pairs)} runs: data seeds {', '.join(map(str, SEEDS))} on an Intel Xeon, "
        f"and seed 0 on {' and '.join(machine['processor'] for machine in machines)} "
        "(all users only, read from its report: its results.json was not kept).\n"
        f"A-LLMRec − SASRec, user by user: {span(pairs)} on all users, above zero beyond chance in {above} of "
        f"{len(pairs)};\n{span(cold)} on cold items, in {sum(low > 0 for _, low, _ in cold)} of {len(cold)}.\n"
    )


def span(differences: Iterable[Iterable[float]]) -> str:
    """The lowest and the highest of some differences."""
    values = [value for value, _, _ in differences]
    return f"{min(values):+.3f} to {max(values):+.3f}"


def tables_of(data: str) -> list[tuple[str, dict[str, Any]]]:
    """The tables of a data set."""
    return [(name, results) for name, results in kept_tables() if name.startswith(f"{data}_")]


def page(data: str) -> str:
    """The tables of a data set in full; commands that several share in a row once."""
    parts, said = [measured([results for _, results in tables_of(data)])], None
    for name, results in tables_of(data):
        commands, said = results["commands"] if results["commands"] != said else (), results["commands"]
        parts.append("## " + kept_table(name, {**results, "commands": commands}))
    return "\n\n".join(parts) + "\n"


def drawn(data: str) -> str:
    """Table 1 as bars with their intervals: all users, warm and cold items, along one axis."""
    (results,) = [results for _, results in tables_of(data) if results["settings"].get("table") == "table1"]
    systems, titles = results["systems"], {"all": "all users", "warm": "warm items", "cold": "cold items"}
    limit = max(row[part]["hit@1"][2] for row in systems.values() for part in titles if part in row)
    panels = []
    for part, title in titles.items():
        rows = [Row(name, row[part]["hit@1"], tone(name)) for name, row in systems.items() if part in row]
        svg = bars(rows, f"Hit@1 of each system, {title}", limit=limit, chance=0.05)
        panels.append(f"<figure><figcaption>{heading(results)}, Hit@1, {title}</figcaption>{svg}</figure>")
    return '<div class="panels">' + "".join(panels) + "</div>\n"


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


def kept_tables() -> list[tuple[str, dict[str, Any]]]:
    """Names and results of the files that hold a table and its commands, in the paper's order."""
    found = [(path.stem, load(path.stem)) for path in sorted(RESULTS.glob("*.json"))]
    tables = [(name, results) for name, results in found if "commands" in results and "systems" in results]
    figures = [heading(results).startswith("Figure") for _, results in tables]
    numbers = [[int(number) for number in re.findall(r"\d+", heading(results))] for _, results in tables]
    order = sorted(range(len(tables)), key=lambda place: (figures[place], numbers[place]))
    return [tables[place] for place in order]


def kept_table(name: str, results: Mapping[str, Any]) -> str:
    """The main table of some results, the budgets left to the JSON, and the commands that made it."""
    main = all_tables(results)[0]
    commands = "\n".join(["```bash", *results["commands"], "```"]) if results["commands"] else ""
    budget = f"Budget: {budget_words(results, {})[0]}."
    parts = [
        escaped(main.title),
        commands,
        table_markdown(main, {}),
        *claim(results),
        *map(escaped, main.notes),
        budget,
    ]
    return "\n\n".join([*filter(None, parts), f"[JSON](benchmarks/results/{name}.json)"])


def measured(evaluations: Iterable[Mapping[str, Any]]) -> str:
    """On what data, with which models and on which machine some results were measured, as a list."""
    parts = merged([of_evaluation(results, {}, None) for results in evaluations])
    return "\n".join(f"- **{label}**: {'; '.join(texts)}" for label, texts in parts.items() if label != "Budget")


def claim(results: Mapping[str, Any]) -> list[str]:
    """Whether the paper's claim, A-LLMRec above SASRec, shows in these results; nothing where they do not ask it."""
    words = {"all": "all users", "warm": "warm items", "cold": "cold items"}
    verdicts = {1: "above SASRec", 0: "not distinguishable from SASRec", -1: "below SASRec"}
    said, signs = [], set()
    for part, name in words.items():
        found = compare(results, "A-LLMRec", "SASRec", part)
        if found is not None:
            _, low, high = found.difference
            signs.add(sign := (low > 0) - (high < 0))
            said.append(
                f"{verdicts[sign]} on {name} ({found.value:.3f} and {found.other:.3f} of the same {found.users:,})"
            )
    if not said:
        return []
    shown = "this run shows" if signs == {1} else "this run does not show"
    parts = "on all of these" if len(said) > 1 else "there"
    but = ", except on Video Games overall" if heading(results).startswith("Table 1:") else ""
    where = machine_words(results.get("machine"))
    return [f"A-LLMRec is {', '.join(said)}. The paper has it above SASRec {parts}{but}: {shown} that ({where})."]


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


def parity_table() -> str:
    """A line for each component, with the tensor nearest to its tolerance; and why rows are partial."""
    results = load("parity")
    lines = [
        "| component | compared with | SHA-256 | tensors | worst: tensor, shape | max \\|a−b\\| | relative | tolerance "
        "| verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for row in results["rows"]:
        worst = worst_of(row)
        shape = "×".join(map(str, worst["shape"])) or "scalar"
        lines.append(
            f"| {row['component']} | {row['reference']}: {row['file']} | {row['sha256'][:12]} | {len(row['tensors'])} "
            f"| {worst['name']}, {shape} | {worst['absolute']:.1e} | {worst['relative']:.1e} "
            f"| {worst['tolerance']:.0e} | {row['verdict']} |"
        )
        for reason in row["stood_in"].split("; ") if row["stood_in"] else ():
            reasons.setdefault(reason, []).append(row["component"])
    lines += ["", "What was replaced in partial rows (what: by what):", ""]
    lines += [f"- {reason} ({' · '.join(dict.fromkeys(components))})" for reason, components in reasons.items()]
    return "\n".join(lines) + "\n"


def worst_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensor nearest to its tolerance."""
    return max(row["tensors"], key=lambda t: t["relative"] / t["tolerance"] if t["tolerance"] else t["relative"] * 1e30)


def selftest() -> str:
    """What was altered in each component, and whether its row turned red."""
    altered = load("parity")["selftest"]
    if not altered:
        return "The figures above were recorded without it.\n"
    lines = ["| component | compared with | altered on our side | its row |", "|---|---|---|---|"]
    for one in altered:
        turned = "red" if one["red"] else "**not red**"
        lines.append(f"| {one['component']} | {one['reference']} | {one['alteration']} | {turned} |")
    return "\n".join(lines) + "\n"


SAME_PROTOCOL = {
    ("cf", "test"): {"hit@1": "Hit@1", "ndcg@10": "NDCG@10"},
    ("stage1", "first validation"): {
        "hit@1": "Hit@1",
        "own text hit@1": "own text nearest of all",
        "text_recon": "text reconstruction",
    },
    ("stage1", "test"): {
        "hit@1": "Hit@1",
        "ndcg@10": "NDCG@10",
        "own text hit@1": "own text nearest of 20",
        "rec": "recommendation loss",
        "match": "matching",
        "item_recon": "item reconstruction",
        "text_recon": "text reconstruction",
    },
}
"""Rows of the comparison of trainings: half, moment and measure."""


def same_protocol() -> str:
    """What ``benchmarks/same_protocol.py`` found on each data set and on average."""
    if not (RESULTS / "same_protocol.json").is_file():
        return "`benchmarks/same_protocol.py` has not been run to its end yet.\n\n" + longer_protocol()
    results = load("same_protocol")
    sets = results["sets"]
    heads = [f"{name} ({one['data']['tested']:,} test users)" for name, one in sets.items()]
    lines = [f"| ours − official | {' | '.join(heads)} | mean |", "|---|" + "---|" * (len(heads) + 1)]
    for (half, moment), measures in SAME_PROTOCOL.items():
        title = "SASRec" if half == "cf" else "stage 1"
        title += ", first validation" if moment != "test" else ""
        for measure, words in measures.items():
            if not any(half in one for one in sets.values()):
                continue
            found = [one[half]["summary"][moment][measure] if half in one else {} for one in sets.values()]
            cells = [
                f"{one['ours']:.4f} − {one['official']:.4f} = {narrow(one['difference'])}"
                if "difference" in one
                else ""
                for one in found
            ]
            mean = results["pooled"].get(half, {}).get(moment, {}).get(measure)
            cells.append(narrow(mean) if mean else "")
            lines.append(f"| {title}: {words} | {' | '.join(cells)} |")
    notes = []
    for name, one in sets.items():
        halves = [
            f"{title} {one[half]['seeds']} seeds, {one[half]['rule']['epochs']} epochs, "
            f"first validation after {one[half]['runs']['ours'][0]['validations'][0]['epoch']}"
            for half, title in (("cf", "SASRec"), ("stage1", "stage 1"))
            if half in one
        ]
        costs = [
            f"{title} {one[half]['summary']['cpu_ratio']:.1f}"
            for half, title in (("cf", "SASRec"), ("stage1", "stage 1"))
            if half in one
        ]
        notes.append(f"- {name}: {'; '.join(halves)}. CPU time of an epoch, official over ours: {', '.join(costs)}.")
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n\n" + longer_protocol()


def same_expectation() -> str:
    """What ``benchmarks/same_expectation.py`` found on each data set."""
    lines = [
        "| data | | draws | loss | official | ours | z | gradients: z² | official against itself |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in load("same_expectation")["sets"].items():
        for half, title in (("cf", "SASRec"), ("stage1", "stage 1")):
            if half not in one:
                continue
            spans = []
            for measure in ("z²", "z² of the official halves"):
                values = [gradient[measure] for gradient in one[half]["gradients"].values()]
                low, middle, high = (f"{value:.2f}" for value in (min(values), median(values), max(values)))
                spans.append(f"{middle} ({low} to {high})")
            for number, (loss, found) in enumerate(one[half]["losses"].items()):
                cells = [f"{found[system][0]:.4f} ± {found[system][1]:.4f}" for system in ("official", "ours")]
                first = [name, title, f"{one[half]['draws']}"] if number == 0 else [""] * 3
                rest = spans if number == 0 else [""] * 2
                lines.append("| " + " | ".join([*first, loss, *cells, f"{found['z']:+.1f}", *rest]) + " |")
    starts = {
        name: [abs(found["z"]) for found in one["start"]["losses"].values()]
        for name, one in load("same_expectation")["sets"].items()
        if "start" in one
    }
    notes = [
        f"- {name}: of {len(values)} statistics of initial parameters the farthest apart differs by {max(values):.1f} "
        f"standard errors, {sum(value > 1.96 for value in values)} by more than 1.96."
        for name, values in starts.items()
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def longer_protocol() -> str:
    """An earlier run of the program, of more epochs and fewer seeds."""
    results = load("same_protocol_40_epochs")
    found = []
    for half, title in (("cf", "SASRec"), ("stage1", "stage 1")):
        hits = results[half]["summary"]["hit@1"]
        found.append(
            f"{title} {hits['ours']:.4f} − {hits['official']:.4f} = {narrow(hits['difference (95% over seeds)'])}, "
            f"{results[half]['rule']['epochs']} epochs, {results[half]['seeds']} seeds"
        )
    return (
        f"An earlier run with more epochs and fewer seeds, {results['data']['name']}, Hit@1, ours − official: "
        f"{'; '.join(found)} ([JSON](benchmarks/results/same_protocol_40_epochs.json)).\n"
    )


def narrow(value: Iterable[float]) -> str:
    """A small difference and its interval, with signs."""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*value)


def kills() -> str:
    """A line for each job of ``tests/campaigns/kills.py`` that was killed so far; nothing before it was run."""
    if not (RESULTS / "campaign_kills.json").is_file():
        return "`tests/campaigns/kills.py` has not been run yet.\n"
    results = load("campaign_kills")
    lines = [
        "| command | changes of files | kills | SIGKILL, SIGTERM, SIGINT | ended by it | saved first | finished before "
        "| faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    every = []
    for name, job in results["jobs"].items():
        if not (made := job["kills"]):
            continue
        every += made
        lines.append(f"| {name} | {job['changes']:,} | " + " | ".join(_kills(made)) + " |")
    lines.append("| **all** | | " + " | ".join(_kills(every)) + " |")
    rest = f" So far; {results['asked']} are asked for." if len(every) < results["asked"] else ""
    return (
        "\n".join(lines) + "\n\n"
        f"`{results['command']}`, seed {results['seed']}, on {results['machine']['processor']} "
        f"([JSON](benchmarks/results/campaign_kills.json)). *Saved first*: exit code 75.{rest}\n"
    )


def damage() -> str:
    """A line for each kind of file of ``tests/campaigns/mutations.py``."""
    results = load("campaign_mutations")
    lines = [
        "| files | inputs | refused in one line | no difference | read as something else | slowest, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in results["kinds"].items():
        counts = [kind.get(outcome, 0) for outcome in ("refused", "harmless", "accepted")]
        shown = [f"{sum(counts):,}", *(f"{count:,}" for count in counts)]
        if kind["hashed"]:
            shown[3] += " (hashes)"
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {kind['slowest_seconds']:.1f} |")
    total = [results[outcome] for outcome in ("refused", "harmless", "accepted")]
    cells = [f"**{count:,}**" for count in (sum(total), *total)]
    slowest = max(kind["slowest_seconds"] for kind in results["kinds"].values())
    lines.append("| **all** | " + " | ".join(cells) + f" | {slowest:.1f} |")
    faults = results["traceback"] + results["hang"]
    wrong = sum(kind.get("accepted", 0) for kind in results["kinds"].values() if kind["hashed"])
    return (
        "\n".join(lines) + "\n\n"
        f"Tracebacks or hangs: {faults}; damaged files with hashes taken as good: {wrong}. `{results['command']}`, "
        f"seed {results['seed']}, on {results['machine']['processor']} with other work on it "
        "([JSON](benchmarks/results/campaign_mutations.json)).\n"
    )


def _kills(made: Sequence[Mapping[str, Any]]) -> list[str]:
    by = [sum(each["signal"] == name for each in made) for name in ("SIGKILL", "SIGTERM", "SIGINT")]
    finished, saved = (sum(each["code"] == code for each in made) for code in (0, STOPPED))
    faults = sum(len(each["faults"]) for each in made)
    ended = len(made) - finished - saved
    return [str(len(made)), ", ".join(map(str, by)), *map(str, (ended, saved, finished, faults))]


def places() -> str:
    """A line for each job of ``tests/campaigns/places.py``; nothing before it was run."""
    if not (RESULTS / "campaign_places.json").is_file():
        return "`tests/campaigns/places.py` has not been run to its end yet.\n"
    results = load("campaign_places")
    lines = [
        "| command | full disk | read-only | no memory | clock | output | refused | went on | ended by a library "
        "| faults |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    every = []
    for name, job in results["jobs"].items():
        every += job["met"]
        lines.append(f"| {name} | " + " | ".join(_places(job["met"])) + " |")
    lines.append("| **all** | " + " | ".join(_places(every)) + " |")
    return (
        "\n".join(lines) + "\n\n"
        f"`{results['command']}`, on {results['machine']['processor']} "
        "([JSON](benchmarks/results/campaign_places.json)).\n"
        "*Went on*: the fault came too late, or did no harm, and the result is the undisturbed one; with the clock it\n"
        "must. *Ended by a library*: XLA or another, at the limit of the address space. A command that never comes to\n"
        "such a moment has no number there; one that is not in the table has not been run in the long form yet.\n"
    )


def _places(made: Sequence[Mapping[str, Any]]) -> list[str]:
    met = [each for each in made if "none" not in each]
    kinds = (("full",), ("read-only", "read-only from the start"), ("memory", "address space"), ("clock",), ("output",))
    cells = [sum(each["fault"] in kind for each in met) for kind in kinds]
    cells += [sum(each["code"] == 2 for each in met), sum(each["code"] == 0 for each in met)]
    cells += [sum(each["code"] < 0 for each in met), sum(len(each["faults"]) for each in met)]
    return [str(cell or "") if place < len(kinds) else str(cell) for place, cell in enumerate(cells)]


def mutants() -> str:
    """What became of the mutants of ``tests/campaigns/mutants.py``: by module, every survivor, and those by hand."""
    found = load("campaign_mutants")
    low, high = found["interval"]
    lines = [
        f"{found['killed']} of the {found['mutants']} mutants run are killed: {found['rate']:.1%} (95% interval "
        f"{low:.1%} to {high:.1%}; seed {found['seed']}; {found['not_run']} more are drawn and not run yet; "
        "[JSON](benchmarks/results/campaign_mutants.json)).\n",
        "| module | places | mutants | killed |",
        "|---|---|---|---|",
    ]
    for name, module in found["modules"].items():
        lines.append(f"| `{name}` | {module['places']} | {module['mutants']} | {module['killed']} |")
    lines += ["", "Survivors, and why each is harmless:", ""]
    for one in found["survivors"]:
        lines.append(f"- `{one['module']}`: `{one['before']}` → `{one['after']}`: {one['reason']}.")
    lines += ["", "Alterations by hand, which once no test noticed, and the test that notices now:", ""]
    for one in found["by_hand"]:
        lines.append(f"- {one['what']}: " + (f"`{one['by']}`" if one["killed"] else "**none**"))
    return "\n".join(lines) + "\n"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": in_short},
    "docs/results/index.md": {"results": section},
    **{
        f"docs/results/{data}.md": {"figures": functools.partial(drawn, data), "tables": functools.partial(page, data)}
        for data in DATA
    },
    "docs/faults.md": {"kills": kills, "damage": damage, "places": places},
    "docs/parity.md": {
        "parity": parity_table,
        "selftest": selftest,
        "same-protocol": same_protocol,
        "same-expectation": same_expectation,
    },
    "docs/tests.md": {"mutants": mutants},
}
"""What stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` on each page; links are from the repository's root."""


def filled(place: str, text: str) -> str:
    """The text of the repository's page ``place`` with its tables in, its links as seen from there."""
    up = "../" * place.count("/")
    for name, body in PAGES.get(place, {}).items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = text.split(start)
        linked = re.sub(r"\]\((?=benchmarks/|docs/)", f"]({up}", body())
        text = before + start + linked + end + rest.split(end)[1]
    return text


def main() -> int:
    """Writes README.md, or with ``--check`` says whether it is what the files give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if README.md is out of date")
    check, readme = parser.parse_args().check, ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = filled("README.md", text)
    if check:
        print("up to date" if new == text else "README.md is out of date: python tools/readme_results.py")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
