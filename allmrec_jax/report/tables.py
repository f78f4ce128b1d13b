"""The tables of an evaluation as cells, from ``results.json`` alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allmrec_jax.report import paper
from allmrec_jax.report.facts import (
    MAIN,
    NO_CONTEST,
    SLICES,
    about_scenario,
    compare,
    heading,
    is_speed,
    main_metric,
    of_batch,
    published,
    row_name,
    run_of,
    same_users,
    tested_against,
)

METRICS = {
    "ranking": {"hit@1": "Hit@1", "hit@3": "Hit@3", "hit@5": "Hit@5", "ndcg@10": "NDCG@10", "mrr": "MRR"},
    "generation": {
        "strict_hit@1": "Strict Hit@1",
        "valid_ratio": "ValidRatio",
        "official_hit@1": "Official Hit@1",
    },
    "catalogue": {
        "catalogue_recall@10": "Recall@10",
        "catalogue_recall@20": "Recall@20",
        "catalogue_ndcg@10": "NDCG@10",
        "catalogue_ndcg@20": "NDCG@20",
    },
    "genres": {"genre_hit": "Among the true", "first_hit": "First named", "valid_ratio": "Valid"},
}
"""Columns of the tables of metrics: of the candidates' order, of titles written, of the whole catalogue's order, and of
favourite genres written."""

REASONS = {
    "no-such-users": "no user who was asked has such a target",
    "not-asked": "no paired answers of these two systems are in the results",
    "not-timed": "trained by another command, which measured no time",
    "not-measured": "the results hold no such value",
}
"""Why a cell has no value, by the code that stands in it."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it says, empty where there is nothing to say.
        details: what stands under the value: its interval, for example.
        sort: what it is sorted by.
        best: whether it wins its column.
        run: identity of the run behind it.
        na: the code of :data:`REASONS` that says why it has no value.
    """

    text: str = ""
    details: Sequence[str] = ()
    sort: float | str | None = None
    best: bool = False
    run: str | None = None
    na: str | None = None


@dataclass(frozen=True)
class Column:
    """A column: its heading, a line under that, and whether it is of the paper."""

    label: str
    about: str = ""
    paper: bool = False


@dataclass(frozen=True)
class Line:
    """A row: what it is called, one cell for each column but the first, and its system."""

    name: str
    cells: Sequence[Cell]
    system: str


@dataclass(frozen=True)
class Table:
    """A table with what it is called and what is to be known about it."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Line]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def reasons(self) -> dict[str, str]:
        """Why cells of this table have no value."""
        codes = dict.fromkeys(cell.na for row in self.rows for cell in row.cells if cell.na)
        return {code: REASONS[code] for code in codes}


def hits(results: Mapping[str, Any]) -> Table:
    """Hit@1 with its interval, the paper's, and the paired tests against the reference and the best baseline.

    In the favourite-genre task, where the paper has no numbers, the share of users with a genre among the true ones.
    """
    systems, data, metric = results["systems"], results["data"]["name"], main_metric(results)
    key = published(results)
    against = tested_against(results)
    best = _best({name: row["all"].get(metric) for name, row in systems.items()})
    papers = {name: paper.hit_at_1(name, "all", key) if metric == "hit@1" else {} for name in systems}
    columns = [Column("Users"), Column(MAIN[metric], "95% interval")]
    if any(papers.values()):
        columns.append(Column("Paper", _whose_short(data), paper=True))
    for name in against:
        columns.append(Column(f"− {name}", "best baseline" if name == results.get("best_baseline") else "reference"))
    rows = []
    for name, row in systems.items():
        value = row["all"].get(metric)
        seeds = len({run["seed"] for run in results["runs"] if run["system"] == name})
        cells = [
            Cell(f"{row['all']['n']:,}", [f"{seeds} seeds"] if seeds > 1 else [], row["all"]["n"]),
            _value(value, name in best, run=run_of(results, name)),
        ]
        if any(papers.values()):
            cells.append(_papers(value, papers[name], data))
        cells += [_tested(results, name, other) for other in against]
        rows.append(Line(row_name(results, name), cells, name))
    notes = [_measured_on(results), _paired_note(results)]
    if any(papers.values()):
        notes.append(
            f"Paper: Hit@1 there, {_whose(data)} "
            "Beneath it, ours minus that value, or the distance to the nearest end of its range."
        )
    return Table("hits", heading(results), columns, rows, notes)


def slices(results: Mapping[str, Any]) -> Table | None:
    """Hit@1 on warm and cold items beside the paper's, with the same tests; ``None`` without slices."""
    systems, data, against = results["systems"], results["data"]["name"], tested_against(results)
    parts = [part for part in ("warm", "cold") if any(part in row for row in systems.values())]
    if not parts:
        return None
    columns: list[Column] = []
    cells: dict[str, list[Cell]] = {name: [] for name in systems}
    for part in parts:
        counts = sorted({row[part]["n"] for row in systems.values() if part in row}, reverse=True)
        users = " or ".join(f"{count:,}" for count in counts)
        columns += [Column(SLICES[part], f"{users} users"), Column("Paper", part, paper=True)]
        columns += [Column(f"− {other}", f"{part} items") for other in against]
        best = _best({name: row.get(part, {}).get("hit@1") for name, row in systems.items()})
        for name, row in systems.items():
            value = row.get(part, {}).get("hit@1")
            cells[name] += [
                _value(value, name in best, run=run_of(results, name), na="no-such-users"),
                _papers(value, paper.hit_at_1(name, part), data),
                *(_tested(results, name, other, part) for other in against),
            ]
    title = f"{heading(results)}: Hit@1 on warm and cold items"
    rows = [Line(row_name(results, name), cells[name], name) for name in systems]
    note = "Cold: the 35% of the items with the fewest training interactions; warm: the 35% with the most."
    return Table("slices", title, columns, rows, [note, _paired_note(results)])


def metrics(results: Mapping[str, Any], kind: str) -> Table | None:
    """The metrics of one kind of :data:`METRICS` with intervals, a row for each system that has any, if one has."""
    shown = [key for key in METRICS[kind] if any(key in row["all"] for row in results["systems"].values())]
    systems = {name: row for name, row in results["systems"].items() if any(key in row["all"] for key in shown)}
    if not systems:
        return None
    best = {key: _best({name: row["all"].get(key) for name, row in systems.items()}) for key in shown}
    rows = [
        Line(
            row_name(results, name),
            [_value(row["all"].get(key), name in best[key], run=run_of(results, name)) for key in shown],
            name,
        )
        for name, row in systems.items()
    ]
    title, note = {
        "ranking": ("ranking the candidates", "Language models rank by the likelihood of each title."),
        "generation": ("titles written", "Of all users who were asked. Systems that only rank have no row here."),
        "catalogue": (
            "ranking the whole catalogue",
            "Every item that the user has not met. Systems that score candidates only have no row here.",
        ),
        "genres": ("genres written", "True are the three genres that a user's items have most often."),
    }[kind]
    columns = [Column(METRICS[kind][key]) for key in shown]
    return Table(kind, f"{heading(results)}: {title}", columns, rows, [note])


def speed(results: Mapping[str, Any]) -> Table:
    """Time to train and to answer (the paper's Table 10), a row for each run."""
    theirs = paper.tables()["table10_speed"]["values"]
    columns = [
        Column("Training", "minutes, without CF"),
        Column("Paper", "minutes", paper=True),
        Column("Answering", "users per second"),
        Column("Answering", "seconds per user"),
        Column("Answering", "seconds per batch"),
        Column("Paper", "seconds per batch", paper=True),
    ]
    rows = []
    for entry in speeds(results):
        row = theirs.get(paper.NAMES.get(entry.system, entry.system), {})
        minutes = entry.minutes
        cells = [
            Cell("n/a", na="not-timed") if minutes is None else Cell(f"{minutes:.2f}", sort=minutes, run=entry.run),
            _plain(row.get("train_min"), "{:.1f}"),
            _plain(entry.users_per_second, "{:.1f}"),
            _plain(1 / entry.users_per_second, "{:.4f}"),
            _plain(entry.batch_seconds, "{:.3f}"),
            _plain(row.get("infer_s_per_batch"), "{:.2f}"),
        ]
        rows.append(Line(f"{entry.system}, seed {entry.seed}", cells, entry.system))
    size = results.get("settings", {}).get("batch_size")
    note = (
        f"A batch is {size} users here. Answering is ranking and, where a system writes titles, writing them, with the "
        "compiling. The paper's times are its own, on one A6000."
    )
    return Table("speed", heading(results), columns, rows, [note])


@dataclass(frozen=True)
class Speed:
    """How fast a run of a row was.

    Attributes:
        system: the row.
        seed: of the run.
        run: its identity.
        minutes: of training, the CF model's not counted; ``None`` where nobody measured.
        users_per_second: of answering.
        batch_seconds: of answering one batch of users.
    """

    system: str
    seed: int
    run: str
    minutes: float | None
    users_per_second: float
    batch_seconds: float


def speeds(results: Mapping[str, Any]) -> list[Speed]:
    """The speed of each run of the results that was timed."""
    size, found = results.get("settings", {}).get("batch_size") or 1, []
    for run in results["runs"]:
        if "trainings" not in run or not run.get("seconds") or not run.get("users"):
            continue
        stages = [node["seconds"] for node in run["trainings"] if node["kind"] != "cf"]
        minutes = None if None in stages else sum(stages) / 60
        batches = -(-run["users"] // size)
        rate = run["users"] / run["seconds"]
        found.append(Speed(run["system"], run["seed"], run["id"], minutes, rate, run["seconds"] / batches))
    return found


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """The tables of an evaluation, what it is about first."""
    table = results.get("settings", {}).get("table")
    kinds = ["genres"] if main_metric(results) == "genre_hit" else [kind for kind in METRICS if kind != "genres"]
    found = [hits(results), slices(results), *(metrics(results, kind) for kind in kinds)]
    if table == "table4":
        found[:2] = found[1::-1]
    if is_speed(results):
        found.insert(0, speed(results))
    return [each for each in found if each is not None]


def budgets(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Each row's trainings in words: what, how long, with which batch, and the run; then how long it answered."""
    rows = []
    for name in results["systems"]:
        runs = [run for run in results["runs"] if run["system"] == name]
        parts = [training_words(node) for run in runs for node in run.get("trainings", ())]
        asked = sum(run.get("seconds", 0.0) for run in runs)
        rows.append((name, [*(dict.fromkeys(parts) or ["nothing is trained"]), f"asked in {asked:,.0f} s"]))
    return rows


def training_words(node: Mapping[str, Any]) -> str:
    """One training of a budget."""
    changes = "".join(f", {key} {value}" for key, value in node["changes"].items())
    took = "" if node["seconds"] is None else f", {node['seconds']:,.0f} s"
    return (
        f"{node['kind']} {node['identity'][:12]} (preset {node['preset']}{changes}, seed {node['seed']}): "
        f"{node['steps']:,} {node['unit']}{of_batch(node)}{took}"
    )


def _best(values: Mapping[str, Sequence[float] | None]) -> set[str]:
    """The names with the highest value, of those that contend; none where only one does."""
    contending = {name: value[0] for name, value in values.items() if value and name not in NO_CONTEST}
    if len(contending) < 2:
        return set()
    return {name for name, value in contending.items() if value == max(contending.values())}


def _value(
    cell: Sequence[float] | None, best: bool = False, *, run: str | None = None, na: str = "not-measured"
) -> Cell:
    if cell is None:
        return Cell("n/a", na=na)
    return Cell(f"{cell[0]:.3f}", [f"{cell[1]:.3f} to {cell[2]:.3f}"], cell[0], best, run)


def _plain(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(form.format(value), sort=value)


def _tested(results: Mapping[str, Any], name: str, other: str, part: str = "all") -> Cell:
    """A system's difference to another, the two values where they are not in their rows, interval and p-value."""
    if name == other:
        return Cell()
    found = compare(results, name, other, part)
    if found is None:
        asked = part in results["systems"][name] and part in results["systems"][other]
        return Cell("n/a", na="not-asked" if asked else "no-such-users")
    value, low, high = found.difference
    lines = [] if same_users(results) else [f"{found.value:.3f} − {found.other:.3f}"]
    lines.append(f"{_signed(low)} to {_signed(high)}")
    if found.p is not None:
        lines.append("p <0.001" if found.p < 0.001 else f"p {found.p:.3f}")
    return Cell(_signed(value), lines, value)


def _paired_note(results: Mapping[str, Any]) -> str:
    note = (
        "Differences are paired, over users, with their 95% intervals; p: sign-flip test, two-sided, each on its own."
    )
    if same_users(results):
        return note
    return (
        f"{note} Some systems were asked about a part of the users only: a difference is over the users of both, and "
        "the two values above its interval are those of these users."
    )


def _papers(value: Sequence[float] | None, theirs: Mapping[str, float], data: str) -> Cell:
    """The paper's value on this data set, or the range over its own; beneath it how far ours is from that."""
    if not theirs:
        return Cell()
    low, high = (theirs[data],) * 2 if data in theirs else (min(theirs.values()), max(theirs.values()))
    text = f"{theirs[data]:.3f}" if data in theirs else f"{low:.3f}" if low == high else f"{low:.2f} to {high:.2f}"
    if value is None:
        return Cell(text, sort=(low + high) / 2)
    distance = value[0] - min(max(value[0], low), high)
    ours = "within" if low < high and not distance else _signed(distance)
    return Cell(text, [f"ours {ours}"], (low + high) / 2)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _measured_on(results: Mapping[str, Any]) -> str:
    files = sorted({run["candidates_sha"][:12] for run in results["runs"]})
    data = f"{results['data']['name']} (hash {results['data']['hash'][:12]})"
    other = about_scenario(results).get("trained_on")
    data += f", trained on {other}" if other else ""
    counts = sorted({row["all"]["n"] for row in results["systems"].values()}, reverse=True)
    few = "" if len(counts) == 1 else ", some systems the first " + " and ".join(f"{count:,}" for count in counts[1:])
    seeds = sorted({run["seed"] for run in results["runs"]})
    return (
        f"Data set {data}, {counts[0]:,} users{few}; candidate file {', '.join(files)}, 20 for each user; trained at "
        f"seed {', '.join(map(str, seeds))}. "
        "Values of several seeds are means over them; intervals resample users."
    )


def _whose_short(data: str) -> str:
    return "same data" if data in paper.DATASETS else "other data, other LLM"


def _whose(data: str) -> str:
    if data in paper.DATASETS:
        return f"on {paper.DATASETS[data]}, with OPT-6.7B, by the official test."
    return (
        f"the range over its data sets ({', '.join(paper.DATASETS.values())}), with OPT-6.7B, by the official test: "
        "other data and another language model, so compare the order of systems, not the values."
    )
