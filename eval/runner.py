"""The course that every table program takes, and its options: plan, train what is missing, ask all rows, write."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.data.scenarios import Scenario, overall
from allmrec_jax.eval.overall import progress
from allmrec_jax.evaluation.experiment import (
    Asking,
    Workplace,
    check_texts,
    evaluate_rows,
    held,
    parse_changes,
    plan,
    run_missing,
    show_plan,
    write_slurm,
)
from allmrec_jax.evaluation.results import table
from allmrec_jax.evaluation.rows import OTHER_PRESET, Recipes, at_seeds, choose, is_baseline
from allmrec_jax.evaluation.systems import EvaluationSettings
from allmrec_jax.fileio import write_text
from allmrec_jax.inference.decode import PRESETS as DECODING
from allmrec_jax.settings import resolve

_LONGFORMER = {"longformer": "allenai/longformer-base-4096"}
MODELS = {
    "paper": {"llm": "facebook/opt-6.7b", "encoder": "sentence-transformers/nq-distilbert-base-v1", **_LONGFORMER},
    "small": {"llm": "opt-nano", "encoder": "sbert-nano", **_LONGFORMER},
}
"""The pretrained models of each preset, as in the training commands."""

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
    candidate_seed: int
    max_users: int | None
    llm_users: int | None
    batch_size: int
    generate: bool
    checkpoints: Path
    mesh: str | None
    out: Path | None
    dry_run: bool
    jobs: int
    slurm: Path | None


def table_options(command: Callable) -> Callable:
    """The options of a table program; the command receives ``options``, an :class:`Options`, and options of its own."""
    folder = click.Path(path_type=Path)
    count = click.IntRange(min=1)

    def wrapped(**given: Any) -> Any:
        options = Options(**{field.name: given.pop(field.name) for field in dataclasses.fields(Options)})
        return command(options=options, **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    for option in reversed(
        (
            click.option("--data", type=folder, required=True, help="A data set made by `allmrec prepare`."),
            click.option("--preset", type=click.Choice(list(MODELS)), default="small", show_default=True),
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
            click.option("--candidate-seed", type=int, default=0, show_default=True, help="Of the candidate file."),
            click.option("--max-users", type=count, help="Ask so many test users, a seeded sample.  [all]"),
            click.option("--llm-users", type=count, help="Ask systems with an LLM about the first so many.  [all]"),
            click.option("--batch-size", type=count, default=16, show_default=True, help="Prompts read at once."),
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


def run_table(
    options: Options,
    name: str,
    title: str,
    systems: Sequence[str],
    *,
    scenario: Callable[[Dataset], Scenario] = overall,
    reference: str = "SASRec",
    published: str = "table1_overall",
) -> dict[str, Any] | None:
    """Plans, trains what is missing, asks every row, and writes ``results.json``, ``users.parquet`` and the tables.

    Args:
        options: of the command line.
        name: of the table, e.g. ``"table1"``.
        title: of the rendered table.
        systems: the table's own, where the user names none.
        scenario: who is trained on and who is asked about.
        reference: the row that every other one is tested against.
        published: the paper's table, see :func:`allmrec_jax.report.paper.hit_at_1`.

    Returns:
        ``results.json``; ``None`` after a dry run.
    """
    from allmrec_jax.report.page import Found, write_report
    from allmrec_jax.report.tables import markdown
    from allmrec_jax.sharding import parse_mesh, use_mesh

    dataset = load_dataset(options.data)
    where = scenario(dataset)
    named = {"llm": options.llm, "encoder": options.sentence_encoder, "longformer": options.longformer}
    models = MODELS[options.preset] | {role: name for role, name in named.items() if name}
    mesh = parse_mesh(options.mesh) if options.mesh else None
    work = Workplace(where.trained, options.checkpoints, models, mesh)
    given = parse_changes(options.changes)
    if options.style:
        for kind in STYLED:
            given.setdefault(kind, {}).setdefault("style", options.style)
    recipes = Recipes(options.preset, given)
    own = [system for system in systems if system != OTHER_PRESET[options.preset]]
    names = choose(own, options.systems)
    rows = at_seeds(recipes, names, options.seeds, options.few_seeds or options.seeds)
    check_texts(dataset, rows)
    settings = EvaluationSettings(
        options.candidate_seed,
        models["llm"] if any(row.few for row in rows) else None,
        options.batch_size,
        resolve(DECODING, options.preset),
        options.generate,
        recipes.wording(),
    )
    asking = Asking(where, options.candidate_seed, options.max_users, options.llm_users, settings)
    for row in rows:  # what candidates or models lack is said before anything trains
        asking.candidates(row)
    click.echo(show_plan(work, rows), err=True)
    if options.slurm:
        click.echo(write_slurm(work, rows, options.slurm / name))
    if options.slurm or options.dry_run:
        return None
    out = options.out or Path("runs") / name / dataset.name
    with held(out / ".lock"):
        run_missing(work, rows, options.jobs)
        with use_mesh(mesh):
            results = evaluate_rows(
                work,
                rows,
                asking,
                out,
                data={"name": dataset.name, "hash": dataset.hash},
                reference=reference,
                baselines=[name for name in names if is_baseline(name)],
                settings={
                    "table": name,
                    "title": title,
                    "reference": reference,
                    "published": published,
                    "preset": options.preset,
                    "systems": names,
                    **models,
                },
                advance=progress,
            )
        write_text(out / f"{name}.md", markdown(results))
        trained = [work.path(node) for node in plan(rows) if node.seed == 0]
        write_report(out / "report.html", Found([out], trained, [options.data]), title=title, models=False)
    click.echo(table(results["systems"]))
    click.echo(out)
    return results
