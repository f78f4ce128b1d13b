"""``allmrec experiment NAME``: one command for each table, made of its record; all tables, the demo, and tuning."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    FOLDER,
    SEED,
    Command,
    Group,
    checkpoints_option,
    data_option,
    grouped,
    preset_option,
    seed_option,
)
from allmrec_jax.experiments.tables import PRESETS, TABLES, OwnOption, PaperTable

COUNT = click.IntRange(min=1)

TABLE_OPTIONS = (
    grouped(
        "Models and settings",
        click.option("--llm", help="A language model's directory, hub name or GGUF file, or opt-nano.  [the preset's]"),
        click.option("--sentence-encoder", help="A directory or hub name, or sbert-nano.  [the preset's]"),
        click.option("--longformer", help="RECFORMER's, a directory or hub name.  [the preset's]"),
        click.option("--style", type=click.Choice(["neutral", "movies", "games", "goods"]), help="Prompts' words."),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="KIND.SETTING=VALUE",
            help="Change a setting of a training; may be repeated.",
        ),
        click.option(
            "--whole-budget",
            is_flag=True,
            help="Train everything by the preset's own budget; preset small cuts that of ablations and of other "
            "backbones, and of an A-LLMRec to compare them with.",
        ),
    ),
    grouped(
        "Who is asked",
        click.option("--max-users", type=COUNT, help="Ask so many test users, a seeded sample.  [all]"),
        click.option("--llm-users", type=COUNT, help="Ask systems with an LLM about the first so many.  [all]"),
        click.option("--candidate-seed", type=SEED, default=0, show_default=True, help="Of the candidate file."),
        click.option("--batch-size", type=COUNT, help="Prompts read at once.  [4 on a CPU, 16 elsewhere]"),
        click.option("--generate/--no-generate", default=True, help="Let language models also write titles.  [yes]"),
    ),
    grouped(
        "Run",
        checkpoints_option,
        click.option("--mesh", metavar="AXES", help="Devices to use: see `allmrec train stage2 --help`."),
        click.option("--jobs", type=COUNT, default=1, show_default=True, help="Trainings at a time."),
        click.option("--slurm", type=FOLDER, help="Write what is missing as SLURM arrays into this folder and stop."),
    ),
)
"""The options of every table beside the first ones: with those, a field each of ``experiments.make.Options``."""


def _first_options(own: Sequence[OwnOption]) -> Callable[[Callable], Callable]:
    return grouped(
        "Options",
        data_option,
        *map(_own_option, own),
        preset_option(PRESETS),
        click.option("--systems", multiple=True, help="A system to compare; may be repeated.  [the table's own]"),
        click.option("--seeds", type=COUNT, default=1, show_default=True, help="Trainings of each system."),
        click.option("--llm-seeds", type=COUNT, help="The same for systems with an LLM.  [--seeds]"),
        click.option("--out", type=FOLDER, help="Where the results go.  [runs/TABLE/DATA]"),
        click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    )


def examples(line: str) -> str:
    """The end of a command's help."""
    return f"\b\nExamples:\n  allmrec experiment {line}".rstrip()


def _own_option(option: OwnOption) -> Callable[[Callable], Callable]:
    """The option of a single table."""
    flag, default = "--" + option.name.replace("_", "-"), option.default_value()
    if option.type is bool:
        return click.option(flag, is_flag=True, default=default, help=option.help)
    kind = FOLDER if option.type == "data" else SEED if option.name.endswith("seed") else option.type
    if option.minimum is not None:
        kind = click.IntRange(min=option.minimum)
    return click.option(
        flag, type=kind, default=default, multiple=option.multiple, show_default=default is not None, help=option.help
    )


def table_options(command: Callable, own: Sequence[OwnOption] = ()) -> Callable:
    """Gives a function the options of every table and those of its ``own``."""
    for options in reversed((_first_options(own), *TABLE_OPTIONS)):
        command = options(command)
    return command


def table_command(record: PaperTable) -> click.Command:
    """The command that makes a table."""

    def make(data: Path, **options: Any) -> None:
        from allmrec_jax.api.experiments import make_table

        for path in make_table(record.name, data, **options):
            click.echo(path)

    make.__doc__ = record.details
    return click.command(
        record.name,
        short_help=record.about,
        cls=Command,
        epilog=examples(f"{record.name} --data data/movies {record.example}"),
    )(table_options(make, record.options))


def all_command() -> click.Command:
    """The command that makes every table."""

    def make(data: Path, **options: Any) -> None:
        """Make every table, each in a folder of its own, and a report of them all.

        The whole plan comes first. A table that the data set cannot serve says why before anything trains, and the
        others go on; `tables.json` holds the reasons. What one table trained or asked, the next ones use.
        """
        from allmrec_jax.api.experiments import make_table

        for path in make_table("all", data, **options):
            click.echo(path)

    everywhere = [option for record in TABLES.values() for option in record.options if option.everywhere]
    return click.command(
        "all",
        short_help="every table that the data can serve",
        cls=Command,
        epilog=examples("all --data data/movies --target data/games"),
    )(table_options(make, everywhere))


@click.command(name="demo", cls=Command, short_help="the whole pipeline on the embedded data", epilog=examples("demo"))
@click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True)
@checkpoints_option
@click.option("--data-seed", type=SEED, default=0, show_default=True, help="Seed of the synthetic data.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of training and evaluation.")
@click.option("--data-preset", default="demo", show_default=True, help="Size of the synthetic data (demo or tiny).")
@click.option("--llm", default="opt-nano", show_default=True, help="The language model: a directory or a name.")
@click.option("--sentence-encoder", default="sbert-nano", show_default=True, help="A directory or a name.")
@click.option("--max-users", type=int, default=1000, show_default=True, help="Test users to evaluate.")
@click.option("--mesh", metavar="AXES", help="Devices that training and evaluation use, see `train stage2 --help`.")
def demo(out: Path, checkpoints: Path, **given: Any) -> None:
    """Make data, train every stage, evaluate and write results.json, users.parquet and report.html into --out.

    A second call reuses what is trained already.
    """
    from allmrec_jax.api.experiments import make_demo

    steps, page = make_demo(out, checkpoints, **given)
    _show_demo(out, steps, page)


def _show_demo(out: Path, steps: Sequence[Any], page: Path) -> None:
    """Prints what each step took, and the table of systems."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from allmrec_jax.report.readers import read_results

    console = Console(width=None if sys.stdout.isatty() else 132)
    table = Table("step", title="Time and memory", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("seconds", "peak MiB"):
        table.add_column(heading, justify="right")
    for step in steps:
        table.add_row(step.name, f"{step.seconds:.1f}", f"{step.peak_mib:,.0f}")
    table.add_section()
    table.add_row("all", f"{sum(step.seconds for step in steps):.1f}", f"{max(step.peak_mib for step in steps):,.0f}")
    console.print(table)

    systems = read_results(out)["systems"]
    columns = (("all", "hit@1"), ("warm", "hit@1"), ("cold", "hit@1"), ("all", "strict_hit@1"), ("all", "valid_ratio"))
    table = Table("system", title="Hit@1 with 95% intervals", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("all", "warm", "cold", "strict", "ValidRatio"):
        table.add_column(heading)
    for name, slices in systems.items():
        cells = [slices.get(part, {}).get(metric) for part, metric in columns]
        table.add_row(
            name, *("" if cell is None else f"{cell[0]:.3f} ({cell[1]:.2f} to {cell[2]:.2f})" for cell in cells)
        )
    console.print(table)
    console.print(f"Report: {page}")


def tune_command() -> click.Command:
    """The command that chooses settings."""
    from allmrec_jax.experiments.tune import GRID

    @click.command(
        name="tune",
        short_help="choose settings on validation users",
        cls=Command,
        epilog=examples("tune --data data/movies --grid stage1.alpha=0.2,0.5"),
    )
    @data_option
    @click.option("--system", default="A-LLMRec", show_default=True, help="Whose Hit@1 on validation users chooses.")
    @click.option(
        "--grid",
        multiple=True,
        default=GRID,
        metavar="KIND.SETTING=V,V,…",
        help=f"Values to try, every combination of them.  [{' '.join(GRID)}]",
    )
    @click.option("--set", "changes", multiple=True, metavar="KIND.SETTING=VALUE", help="Hold a setting at a value.")
    @preset_option(PRESETS)
    @seed_option
    @click.option("--llm", help="A language model's directory, hub name or GGUF file, or opt-nano.  [the preset's]")
    @click.option("--sentence-encoder", help="A directory or hub name, or sbert-nano.  [the preset's]")
    @checkpoints_option
    @click.option("--out", type=FOLDER, help="Where tune.json goes.  [runs/tune/DATA]")
    @click.option("--jobs", type=COUNT, default=1, show_default=True, help="Trainings at a time.")
    @click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
    def command(data: Path, **given: Any) -> None:
        """Train every combination of settings and rank them by the system's Hit@1 on validation users.

        Each run exports its best step on validation, and that step's value counts. Prints the best as --set options.
        """
        from allmrec_jax.api.experiments import tune

        found = tune(data, **given)
        for each in found:
            click.echo(f"{each['hit@1']:.4f}  {' '.join(each['settings'])}")
        for best in found[:1]:
            click.echo(" ".join(f"--set {line}" for line in best["settings"]))

    return command


class ExperimentGroup(Group):
    """The commands of ``allmrec experiment``, each made when it is called; tables come from their registry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The demo, the tables in the paper's order, then all of them and tuning."""
        return list(self._described())

    def _described(self) -> dict[str, str]:
        tables = {name: record.about for name, record in TABLES.items()}
        return {
            "demo": "the whole pipeline on the embedded data",
            **tables,
            "all": "every table that the data can serve",
            "tune": "choose settings on validation users",
        }

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Makes the command called ``name``."""
        if name in TABLES:
            return table_command(TABLES[name])
        made = {"demo": lambda: demo, "all": all_command, "tune": tune_command}
        return made[name]() if name in made else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists all commands with their whole descriptions."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._described().items()))


experiment = ExperimentGroup(
    "experiment",
    short_help="train what is missing, then evaluate and report",
    help="Train what is missing, then evaluate and report.",
    epilog="\b\nExamples:\n  allmrec experiment demo\n  allmrec experiment table1 --data data/movies --dry-run",
)
