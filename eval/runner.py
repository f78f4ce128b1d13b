"""The course that every table program takes, and its options: plan, train what is missing, ask all rows, write."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from allmrec_jax.api.evaluating import progress
from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.data.scenarios import Scenario, overall
from allmrec_jax.evaluation.results import RESULTS, data_record, table
from allmrec_jax.experiments.experiment import (
    Asking,
    Row,
    Workplace,
    check_texts,
    evaluate_rows,
    parse_changes,
    plan,
    run_missing,
    show_plan,
    write_slurm,
)
from allmrec_jax.experiments.rows import (
    OTHER_PRESET,
    REDUCED,
    REDUCED_ROW,
    Budget,
    Recipes,
    at_seeds,
    choose,
    is_baseline,
)
from allmrec_jax.fileio import held, write_text
from allmrec_jax.inference.decode import PRESETS as DECODING
from allmrec_jax.settings import resolve
from allmrec_jax.trained.kinds import preset_models
from allmrec_jax.trained.sources import EvaluationSettings, prompts_at_once

STYLED = ("stage2", "mlp-llm", "tallrec")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a table program was asked for on the command line."""

    data: Path
    preset: str
    seeds: int
    few_seeds: int | None
    systems: tuple[str, ...]
    llm: str | None
    sentence_encoder: str | None
    longformer: str | None
    style: str | None
    changes: tuple[str, ...]
    whole_budget: bool
    candidate_seed: int
    max_users: int | None
    llm_users: int | None
    batch_size: int | None
    generate: bool
    checkpoints: Path
    mesh: str | None
    out: Path | None
    dry_run: bool
    jobs: int
    slurm: Path | None
    target: Path | None = None

    def folder(self, name: str, dataset: Dataset) -> Path:
        """Where a table's results go."""
        return self.out or Path("runs") / name / dataset.name


def table_options(command: Callable) -> Callable:
    """The options of a table program; the command receives ``options``, an :class:`Options`, and options of its own."""
    folder = click.Path(path_type=Path)
    count = click.IntRange(min=1)

    def wrapped(**given: Any) -> Any:
        # The trainings, processes of their own, want a GPU's memory too.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        known = {field.name for field in dataclasses.fields(Options)} & set(given)
        return command(options=Options(**{name: given.pop(name) for name in known}), **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    for option in reversed(
        (
            click.option("--data", type=folder, required=True, help="A data set made by `allmrec prepare`."),
            click.option("--preset", type=click.Choice(["paper", "small"]), default="small", show_default=True),
            click.option("--seeds", type=count, default=1, show_default=True, help="Trainings of each system."),
            click.option("--llm-seeds", "few_seeds", type=count, help="The same for systems with an LLM.  [--seeds]"),
            click.option("--systems", multiple=True, help="A system to compare; may be repeated.  [the table's own]"),
            click.option("--llm", help="OPT as a directory or hub name, or opt-nano.  [the preset's]"),
            click.option("--sentence-encoder", help="A directory or hub name, or sbert-nano.  [the preset's]"),
            click.option("--longformer", help="RECFORMER's, a directory or hub name.  [allenai/longformer-base-4096]"),
            click.option("--style", type=click.Choice(["neutral", "movies", "games", "goods"]), help="Prompts' words."),
            click.option(
                "--set", "changes", multiple=True, metavar="KIND.SETTING=VALUE", help="Change a setting of a training."
            ),
            click.option(
                "--whole-budget",
                is_flag=True,
                help="Train everything by the preset's own budget; preset small cuts that of ablations and of other "
                "backbones, and of an A-LLMRec to compare them with.",
            ),
            click.option("--candidate-seed", type=int, default=0, show_default=True, help="Of the candidate file."),
            click.option("--max-users", type=count, help="Ask so many test users, a seeded sample.  [all]"),
            click.option("--llm-users", type=count, help="Ask systems with an LLM about the first so many.  [all]"),
            click.option("--batch-size", type=count, help="Prompts read at once.  [4 on a CPU, 16 elsewhere]"),
            click.option(
                "--generate/--no-generate", default=True, help="Let language models also write titles.  [yes]"
            ),
            click.option("--checkpoints", type=folder, default=Path("checkpoints"), show_default=True),
            click.option(
                "--mesh", metavar="AXES", help="Devices to use, e.g. data=2,tensor=4: see `train stage2 --help`."
            ),
            click.option("--out", type=folder, help="Where the results go.  [runs/TABLE/DATA]"),
            click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
            click.option("--jobs", type=count, default=1, show_default=True, help="Trainings at a time."),
            click.option(
                "--slurm", type=folder, help="Write what is missing as SLURM arrays into this folder and stop."
            ),
        )
    ):
        wrapped = option(wrapped)
    return wrapped


target_option = click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="Another data set, whose users and items systems are asked about without being trained on it (Table 7).",
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that is planned: what it lacks of data, models or candidates has been said.

    Attributes:
        name: e.g. ``"table1"``.
        title: of the rendered table.
        options: of the command line.
        dataset: that results are filed under: the one named, or the one asked about in its place.
        work: where its rows are trained.
        rows: to ask.
        asking: how.
        out: where the results go.
        reference: the row that every other one is tested against.
        record: for ``results.json``.
        render: writes the table and what belongs beside it, given ``results.json``.
    """

    name: str
    title: str
    options: Options
    dataset: Dataset
    work: Workplace
    rows: Sequence[Row]
    asking: Asking
    out: Path
    reference: str
    record: dict[str, Any]
    render: "Callable[[Table, dict[str, Any]], None]"

    def train(self) -> None:
        """Trains what is missing."""
        run_missing(self.work, self.rows, self.options.jobs)

    def make(self) -> None:
        """Asks every row, all of them trained, and writes the results into :attr:`out`."""
        from allmrec_jax.sharding import use_mesh

        with use_mesh(self.work.mesh):
            results = evaluate_rows(
                self.work,
                self.rows,
                self.asking,
                self.out,
                data=data_record(self.dataset),
                reference=self.reference,
                baselines=[row.name for row in self.rows if is_baseline(row.name)],
                settings=self.record,
                advance=progress,
            )
            self.render(self, results)
        click.echo(self.out)


def plan_table(
    options: Options,
    name: str,
    title: str,
    systems: Sequence[str],
    *,
    scenario: Callable[[Dataset], Scenario] = overall,
    budget: Budget | None = None,
    reference: str = "SASRec",
    published: str = "table1_overall",
    question: str | None = None,
    render: "Callable[[Table, dict[str, Any]], None] | None" = None,
) -> Table:
    """A table, planned and checked; nothing is trained.

    Args:
        options: of the command line.
        name: of the table, e.g. ``"table1"``.
        title: of the rendered table.
        systems: the table's own, where the user names none.
        scenario: who is trained on and who is asked about.
        budget: of its rows, where it is not the preset's own.
        reference: the row that every other one is tested against.
        published: the paper's table, see :func:`allmrec_jax.report.paper.hit_at_1`.
        question: see :class:`allmrec_jax.experiments.experiment.Asking`.
        render: see :class:`Table`; by default :func:`render_table`.

    Raises:
        UserError: something that it needs is not there.
    """
    from allmrec_jax.sharding import parse_mesh

    dataset = load_dataset(options.data)
    where = scenario(dataset)
    named = {"llm": options.llm, "encoder": options.sentence_encoder, "longformer": options.longformer}
    models = preset_models(options.preset) | {role: name for role, name in named.items() if name}
    work = Workplace(where.trained, options.checkpoints, models, parse_mesh(options.mesh) if options.mesh else None)
    given = parse_changes(options.changes)
    if options.style:
        for kind in STYLED:
            given.setdefault(kind, {}).setdefault("style", options.style)
    recipes = Recipes(options.preset, given, options.whole_budget)
    cut = bool(REDUCED[options.preset]) and not options.whole_budget
    unfit = {OTHER_PRESET[options.preset], *(() if cut else (REDUCED_ROW,))}
    names = choose([system for system in systems if system not in unfit], options.systems)
    few_seeds = options.few_seeds or options.seeds
    rows = at_seeds(recipes if budget is None else recipes.at(budget), names, options.seeds, few_seeds)
    check_texts(dataset, rows)
    settings = EvaluationSettings(
        options.candidate_seed,
        models["llm"] if any(row.few for row in rows) else None,
        options.batch_size or prompts_at_once(),
        resolve(DECODING, options.preset),
        options.generate,
        recipes.wording(),
    )
    asking = Asking(where, options.candidate_seed, options.max_users, options.llm_users, settings, question)
    for row in rows:  # what candidates or models lack is said before anything trains
        asking.candidates(row)
        for node in row.nodes():
            work.identity(node)
    reduced = budget is REDUCED and cut
    title += ", at a reduced budget" if reduced else ""
    record = {
        "table": name,
        "title": title,
        "reference": reference,
        "published": published,
        "preset": options.preset,
        "reduced": reduced,
        "systems": names,
        **models,
    }
    out = options.folder(name, dataset)
    told = where.asked if where.transferred else dataset
    return Table(name, title, options, told, work, rows, asking, out, reference, record, render or render_table)


def render_table(made: Table, results: dict[str, Any]) -> None:
    """The table as Markdown and on a page."""
    from allmrec_jax.report.export import markdown
    from allmrec_jax.report.site import ReportSources, write_report

    write_text(made.out / f"{made.name}.md", markdown(results))
    trained = [made.work.path(node) for node in plan(made.rows) if node.seed == 0]
    sources = ReportSources([made.out], trained, [made.dataset.path])
    write_report(made.out / "report.html", sources, title=made.title, models=False)
    click.echo(table(results["systems"]))


def only_planned(options: Options, tables: Sequence[Table]) -> bool:
    """Prints the plan of all tables; whether that was all: ``--dry-run``, or ``--slurm``, which writes its files."""
    click.echo(show_plan([(table.work, table.rows, table.asking) for table in tables]), err=True)
    if options.slurm is None:
        return options.dry_run
    for number, each in enumerate(tables):
        place = options.slurm / (each.name if len(tables) == 1 else f"{number:02}-{each.name}")
        click.echo(write_slurm(each.work, each.rows, place))
    return True


@contextlib.contextmanager
def locked(tables: Iterable[Table]) -> Iterator[None]:
    """Holds the folders of all results, from the first training to the last answer."""
    with contextlib.ExitStack() as stack:
        for each in tables:
            RESULTS.claim(each.out)
            stack.enter_context(held(each.out / ".lock"))
        yield


def make_tables(options: Options, tables: Sequence[Table]) -> None:
    """Plans all tables and makes them.

    Everything is trained before anything is asked: a GPU's memory that this process has had, it keeps from trainings.
    """
    if only_planned(options, tables):
        return
    with locked(tables):
        for each in tables:
            each.train()
        for each in tables:
            click.secho(each.title, bold=True, err=True)
            each.make()
