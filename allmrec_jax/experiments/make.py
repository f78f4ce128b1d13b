"""The course of every table: plan, train what is missing, ask all rows, write."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.progress import progress
from allmrec_jax.evaluation.results import RESULTS, data_record
from allmrec_jax.evaluation.systems import is_baseline
from allmrec_jax.experiments.answers import EvaluationProtocol, check_texts, evaluate_rows
from allmrec_jax.experiments.execute import run_missing
from allmrec_jax.experiments.graph import Row, Workplace
from allmrec_jax.experiments.plan import show_plan, write_slurm
from allmrec_jax.experiments.rows import Recipes, at_seeds, choose
from allmrec_jax.experiments.tables import TABLES, Case, PaperTable
from allmrec_jax.fileio import file_lock, write_text
from allmrec_jax.inference.decode import PRESETS as DECODING
from allmrec_jax.outputs import Output
from allmrec_jax.settings import resolve
from allmrec_jax.sharding import parse_mesh, use_mesh
from allmrec_jax.trained.kinds import parse_changes, preset_models
from allmrec_jax.trained.sources import EvaluationSettings, prompts_at_once

log = logging.getLogger(__name__)

OF_ALL = Output("folder of results", signs=("*/results.json", "*/users.parquet"))
"""Where all tables go, a folder each."""

STYLED = ("stage2", "mlp-llm", "tallrec")
"""Kinds of training whose prompts ``style`` words."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What an experiment is asked for.

    Attributes:
        data: the data set's directory.
        preset: of every training.
        seeds: trainings of each system.
        llm_seeds: the same for systems with a language model; ``None`` is ``seeds``.
        systems: names of the rows; none are the table's own.
        llm: language model in place of the preset's.
        sentence_encoder: likewise.
        longformer: likewise, RECFORMER's.
        style: of the prompts' words.
        changes: ``KIND.SETTING=VALUE`` lines.
        whole_budget: train everything by the preset's own budget.
        candidate_seed: of the candidate file.
        max_users: users asked at most; ``None`` is all.
        llm_users: of these, the first so many for systems with a language model.
        batch_size: prompts read at once; ``None`` is by the platform.
        generate: whether language models also write titles.
        checkpoints: the folder of runs.
        mesh: devices to use.
        out: where the results go; ``None`` is ``runs/TABLE/DATA``.
        dry_run: print the plan and stop.
        jobs: trainings at a time.
        slurm: write what is missing as SLURM arrays into this folder and stop.
    """

    data: Path
    preset: str = "small"
    seeds: int = 1
    llm_seeds: int | None = None
    systems: tuple[str, ...] = ()
    llm: str | None = None
    sentence_encoder: str | None = None
    longformer: str | None = None
    style: str | None = None
    changes: tuple[str, ...] = ()
    whole_budget: bool = False
    candidate_seed: int = 0
    max_users: int | None = None
    llm_users: int | None = None
    batch_size: int | None = None
    generate: bool = True
    checkpoints: Path = Path("checkpoints")
    mesh: str | None = None
    out: Path | None = None
    dry_run: bool = False
    jobs: int = 1
    slurm: Path | None = None

    def folder(self, name: str, dataset: Dataset) -> Path:
        """Where a table's results go."""
        return self.out or Path("runs") / name / dataset.name


@dataclasses.dataclass(frozen=True)
class PlannedTable:
    """A case of a table that is planned: what it lacks of data, models or candidates has been said.

    Attributes:
        name: e.g. ``"table1"``.
        title: of the rendered table.
        options: of the experiment.
        dataset: that results are filed under: the one named, or the one asked about in its place.
        work: where its rows are trained.
        rows: to ask.
        protocol: how they are asked.
        out: where the results go.
        reference: the row that every other one is tested against.
        record: for ``results.json``.
    """

    name: str
    title: str
    options: Options
    dataset: Dataset
    work: Workplace
    rows: Sequence[Row]
    protocol: EvaluationProtocol
    out: Path
    reference: str
    record: dict[str, Any]

    def train(self) -> None:
        """Trains what is missing."""
        run_missing(self.work, self.rows, self.options.jobs)

    def ask(self, publisher: "Publisher") -> None:
        """Asks every row, all of them trained, and writes the results into :attr:`out`."""
        with use_mesh(self.work.mesh):
            results = evaluate_rows(
                self.work,
                self.rows,
                self.protocol,
                self.out,
                data=data_record(self.dataset),
                reference=self.reference,
                baselines=[row.name for row in self.rows if is_baseline(row.name)],
                settings=self.record,
                advance=progress,
            )
            publisher.table(self, results)


class Publisher(NamedTuple):
    """What writes results for people; the layer above hands it in.

    Attributes:
        table: writes a table beside its results, given ``results.json``.
        site: writes one site of several tables into a folder, with the reasons why others were not made, by name.
    """

    table: Callable[[PlannedTable, dict[str, Any]], None]
    site: Callable[[Path, Sequence[PlannedTable], Mapping[str, str]], None]


def plan_tables(options: Options, name: str, **own: Any) -> list[PlannedTable]:
    """The cases of a table, planned and checked; nothing is trained.

    Args:
        options: of the experiment.
        name: of the table.
        own: the table's own options.

    Raises:
        UserError: something that it needs is not there.
    """
    record = TABLES.find(name)
    own = {option.name: own.get(option.name, option.default_value()) for option in record.options}
    dataset = load_dataset(options.data)
    return [_plan_case(options, record, case, dataset) for case in record.cases(dataset, **own)]


def _plan_case(options: Options, record: PaperTable, case: Case, dataset: Dataset) -> PlannedTable:
    where = case.scenario
    named = {"llm": options.llm, "encoder": options.sentence_encoder, "longformer": options.longformer}
    models = preset_models(options.preset) | {role: name for role, name in named.items() if name}
    work = Workplace(where.trained, options.checkpoints, models, parse_mesh(options.mesh) if options.mesh else None)
    given = parse_changes(options.changes)
    if options.style:
        for kind in STYLED:
            given.setdefault(kind, {}).setdefault("style", options.style)
    recipes = Recipes(options.preset, given, options.whole_budget)
    names = choose([each for each in record.systems() if recipes.stands_by_itself(each)], options.systems)
    rows = at_seeds(recipes.at(record.budget), names, options.seeds, options.llm_seeds or options.seeds)
    check_texts(dataset, rows)
    settings = EvaluationSettings(
        options.candidate_seed,
        models["llm"] if any(row.llm for row in rows) else None,
        options.batch_size or prompts_at_once(),
        resolve(DECODING, options.preset),
        options.generate,
        recipes.wording(),
    )
    protocol = EvaluationProtocol(
        where, options.candidate_seed, options.max_users, options.llm_users, settings, case.question
    )
    for row in rows:  # what candidates or models lack is said before anything trains
        protocol.candidates(row.llm)
        for node in row.nodes():
            work.identity(node)
    reduced = record.budget == "reduced" and recipes.is_cut(record.budget)
    title = case.title + (", at a reduced budget" if reduced else "")
    about = {
        "table": record.name,
        "title": title,
        "reference": record.reference,
        "published": case.published,
        "preset": options.preset,
        "reduced": reduced,
        "systems": names,
        **models,
    }
    out = options.folder(record.name, dataset) / case.folder
    asked = where.asked if where.transferred else dataset
    return PlannedTable(record.name, title, options, asked, work, rows, protocol, out, record.reference, about)


def only_planned(options: Options, tables: Sequence[PlannedTable]) -> list[Path] | None:
    """Tells the plan of all tables. Where that was all, what was written: nothing in a dry run, or SLURM scripts."""
    log.info(show_plan([(table.work, table.rows, table.protocol) for table in tables]))
    if options.slurm is None:
        return [] if options.dry_run else None
    scripts = []
    for number, each in enumerate(tables):
        place = options.slurm / (each.name if len(tables) == 1 else f"{number:02}-{each.name}")
        scripts.append(write_slurm(each.work, each.rows, place))
    return scripts


@contextlib.contextmanager
def locked(tables: Iterable[PlannedTable]) -> Iterator[None]:
    """Holds the folders of all results, from the first training to the last answer."""
    with contextlib.ExitStack() as stack:
        for each in tables:
            RESULTS.claim(each.out)
            stack.enter_context(file_lock(each.out / ".lock"))
        yield


def make_tables(options: Options, name: str, publisher: Publisher, **own: Any) -> list[Path]:
    """Makes a table: all of its cases.

    Everything is trained before anything is asked: a GPU's memory that this process has had, it keeps from trainings.

    Args:
        options: of the experiment.
        name: of the table, one of :data:`allmrec_jax.experiments.tables.TABLES`.
        publisher: what writes the results for people.
        own: the table's own options.

    Returns:
        the folders of results, or the SLURM scripts.

    Raises:
        UserError: something that it needs is not there, or a training failed.
    """
    tables = plan_tables(options, name, **own)
    if (planned := only_planned(options, tables)) is not None:
        return planned
    with locked(tables):
        for each in tables:
            each.train()
        for each in tables:
            log.info(each.title)
            each.ask(publisher)
    return [each.out for each in tables]


def make_all(options: Options, publisher: Publisher, **own: Any) -> list[Path]:
    """Makes every table, each in a folder of its own, and a report of them all.

    A table that the data set cannot serve says why before anything trains, and the others go on; ``tables.json`` holds
    the reasons. What one table trained or asked, the next ones use.

    Args:
        options: of the experiment.
        publisher: what writes the results for people.
        own: options of single tables.

    Returns:
        the folders of results, or the SLURM scripts.

    Raises:
        UserError: in the end, where a table was not made.
    """
    out = options.out or Path("runs") / "all" / load_dataset(options.data).name
    tables: dict[str, list[PlannedTable]] = {}
    reasons: dict[str, str] = {}
    for name in TABLES:
        try:
            tables[name] = plan_tables(dataclasses.replace(options, out=out / name), name, **own)
        except UserError as error:
            reasons[name] = str(error)
            log.info(f"{name} cannot be made: {error}")
    every = [table for each in tables.values() for table in each]

    def ask(each: PlannedTable) -> None:
        each.ask(publisher)

    written = only_planned(options, every)
    if written is None:
        OF_ALL.claim(out)
        with file_lock(out / ".lock"), locked(every):
            trained = [name for name, each in tables.items() if _done(name, each, PlannedTable.train, reasons)]
            made = [name for name in trained if _done(name, tables[name], ask, reasons)]
            write_text(out / "tables.json", json.dumps({"made": made, "not_made": reasons}, indent=2) + "\n")
            if shown := [table for name in made for table in tables[name]]:
                publisher.site(out / "report", shown, reasons)
            written = [table.out for name in made for table in tables[name]]
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"{len(reasons)} of {len(TABLES)} tables were not made; {first}: {reason}")
    return written


def _done(name: str, tables: list[PlannedTable], step: Callable[[PlannedTable], None], reasons: dict[str, str]) -> bool:
    """Whether a step was done with all cases of a table; the reason why not is logged and added to ``reasons``."""
    try:
        for each in tables:
            log.info(f"\n{each.title}")
            step(each)
    except UserError as error:
        reasons[name] = str(error)
        log.info(f"{name}: {error}")
        return False
    return True
