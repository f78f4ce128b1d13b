"""The options that commands share, and the form of their help: groups of options within 80 columns."""

import functools
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem

from allmrec_jax.errors import MAX_SEED, did_you_mean

FOLDER = click.Path(path_type=Path)

GROUP = "group"
"""The attribute of an option that names its group in ``--help``."""


class Command(click.Command):
    """A command whose options stand in groups in ``--help``: those without a group first, then the groups in order."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line.

        Raises:
            click.UsageError: an option that there is not; where it is another command's for what one here does, which.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name == "--out" and any("--checkpoints" in each.opts for each in self.params):
                raise click.UsageError("No such option '--out'; the folder of runs is --checkpoints", ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name = "Help" if "--help" in parameter.opts else getattr(parameter, GROUP, "Options")
                sections.setdefault(name, []).append(record)
        sections |= {"Help": sections.pop("Help", [])}
        for name, rows in sections.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows, col_max=26)


class Group(click.Group):
    """A group of commands that says which command a mistyped one is nearest to."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that ``args`` begin with.

        Raises:
            click.UsageError: there is none of that name.
        """
        known = self.list_commands(ctx)
        if args[0] in known or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"No such command {args[0]!r}{did_you_mean(args[0], known)}", ctx)


def grouped(name: str, *options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """A decorator: ``options`` in this order, as the group ``name`` of the help."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            before = len(getattr(command, "__click_params__", []))
            command = option(command)
            for parameter in command.__click_params__[before:]:  # type: ignore[attr-defined]
                setattr(parameter, GROUP, name)
        return command

    return decorate


class RunType(click.ParamType):
    """A run: its directory, its name, or the beginning of its identity. Completed from the runs that there are."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of runs, and directories."""
        from allmrec_jax.api.runs import list_runs

        root = ctx.params.get("checkpoints") or "checkpoints"
        names = [run.name for run in list_runs(root) if run.name]
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="dir")]


RUN = RunType()

data_option = click.option("--data", type=FOLDER, required=True, help="A data set made by `allmrec prepare`.")
checkpoints_option = click.option(
    "--checkpoints",
    type=FOLDER,
    default=Path("checkpoints"),
    show_default=True,
    help="The folder of runs.",
)
SEED = click.IntRange(0, MAX_SEED)
seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random draw.")
llm_weights_option = click.option(
    "--llm-weights",
    type=click.Choice(["dtype", "int8"]),
    help="The language model's kernels as trained with, or rounded to int8.  [as in training]",
)
mesh_options = grouped(
    "Devices",
    click.option(
        "--mesh",
        metavar="AXES",
        help="Devices to use, e.g. data=2,tensor=4 (axes data, fsdp, tensor), or auto.  [one device]",
    ),
    click.option(
        "--distributed",
        metavar="HOW",
        help="Join the processes started alike on several hosts: auto (SLURM, Open MPI, Kubernetes, TPU pods), or "
        "HOST:PORT,INDEX/COUNT.",
    ),
)


def preset_option(presets: typing.Iterable[str], default: str = "small", help: str = "") -> Callable:
    """``--preset``, of the presets given."""
    return click.option(
        "--preset",
        type=click.Choice(list(presets)),
        default=default,
        show_default=True,
        help=help or "Whose settings to take; `allmrec presets` shows them.",
    )


def settings_options(
    *settings: type, group: str = "Settings", hidden: Collection[str] = ()
) -> Callable[[Callable], Callable]:
    """One option for each field of the settings dataclasses; the command receives ``overrides``, what the user gave.

    Of several dataclasses a field of the same name is one option; those ``hidden`` have none.
    """
    from allmrec_jax.settings import choosable

    fields = {name: found for each in settings for name, found in choosable(each).items() if name not in hidden}
    options = [_option(name, field.metadata["help"], hint) for name, (field, hint) in fields.items()]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(**kwargs: Any) -> Any:
            overrides = {name: value for name in fields if (value := kwargs.pop(name)) is not None}
            return command(overrides=overrides, **kwargs)

        return grouped(group, *options)(wrapped)

    return decorate


def _option(name: str, help: str, hint: Any) -> Callable[[Callable], Callable]:
    flag = "--" + name.replace("_", "-")
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    kind = click.Choice(typing.get_args(hint)) if typing.get_origin(hint) is Literal else hint
    return click.option(flag, name, type=kind, default=None, help=help)
