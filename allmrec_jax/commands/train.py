"""``allmrec train KIND``: one command for each kind of training, made of its record."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    RUN,
    Command,
    Group,
    checkpoints_option,
    data_option,
    grouped,
    mesh_options,
    preset_option,
    seed_option,
    settings_options,
)
from allmrec_jax.commands.train_embedded import opt_nano, sbert_nano
from allmrec_jax.errors import resumable
from allmrec_jax.trained.kinds import KINDS, TrainingKind, parse_changes

MODEL_OPTIONS = {
    "encoder": ("--sentence-encoder", "A sentence-transformers directory or hub name, or sbert-nano."),
    "llm": ("--llm", "A language model's directory, hub name or GGUF file, or opt-nano."),
    "longformer": ("--longformer", "A Longformer's directory or hub name; not read with --start scratch."),
}
"""The option that names a pretrained model, by its role."""

UPSTREAM_HELP = {
    "cf": "The CF run, or a folder of your own CF arrays.  [the only one there is]",
    "stage1": "The stage-1 run.  [the only one there is]",
}

SET_HELP = "Change a setting; may be repeated."


def model_option(role: str) -> Callable[[Callable], Callable]:
    """The option that names a pretrained model."""
    option, about = MODEL_OPTIONS[role]
    return click.option(option, help=f"{about}  [the preset's]")


def config_options(metavar: str) -> Callable[[Callable], Callable]:
    """``--config``, ``--set`` and ``--print-config``."""
    return grouped(
        "Settings from elsewhere",
        click.option(
            "--config", type=click.Path(path_type=Path), help="A YAML file of settings, or the run.json of a run."
        ),
        click.option("--set", "lines", multiple=True, metavar=metavar, help=SET_HELP),
        click.option("--print-config", is_flag=True, help="Print all settings as --config takes them, and stop."),
    )


def given_on_command_line(names: Sequence[str]) -> dict[str, Any]:
    """Those of the current command's options that the user gave, with their values."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP, None)
    return {name: context.params[name] for name in names if context.get_parameter_source(name) not in default}


def combine(
    kinds: Sequence[str], options: Mapping[str, Any], config: Path | None, lines: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A command's options with what a file and ``--set`` lines say: the file before defaults, the user before the file.

    Returns:
        the options, and settings by kind of training.
    """
    from allmrec_jax.api.config import Config, read_config

    said = Config({}, {}) if config is None else read_config(config, kinds)
    own = given_on_command_line(list(options))
    common = {name: value for name, value in said.common.items() if name in options and name not in own}
    settings = {kind: dict(said.settings.get(kind, {})) for kind in kinds}
    for kind, changes in parse_changes(lines, kinds).items():
        settings[kind] |= changes
    return {**options, **common}, settings


def make_command(record: TrainingKind) -> click.Command:
    """The command that trains a kind."""
    presets = record.load_presets()
    names = dict.fromkeys(name for each in presets.values() for name in each) if record.by_model else presets
    classes = record.settings_classes()
    hidden = set(record.fixed)
    model: list[Callable] = [
        click.option("--model", default="sasrec", show_default=True, help=f"One of {', '.join(presets)}.")
    ]
    upstream: list[Callable] = [
        click.option(f"--{role}", type=RUN, help=UPSTREAM_HELP.get(role, f"The {role} run."))
        for role in record.upstream
    ]
    pretrained: list[Callable] = [model_option(role) for role in record.models]
    name = click.option("--name", help="A name for the run, to be given in place of its directory.")
    first = [data_option, *(model if record.by_model else []), *upstream, *pretrained, preset_option(names), name]

    def run(
        overrides: dict[str, Any],
        config: Path | None,
        lines: tuple[str, ...],
        print_config: bool,
        **given: Any,
    ) -> None:
        from allmrec_jax.api.config import as_yaml
        from allmrec_jax.api.training import resolve_settings, train_model

        given, settings = combine([record.name], given, config, lines)
        changes = settings[record.name] | overrides
        if print_config:
            import dataclasses

            resolved = resolve_settings(record, given["preset"], changes, given.get("model"))
            keywords = {role: MODEL_OPTIONS[role][0][2:].replace("-", "_") for role in record.models}
            models = {word: given[word] or record.models[role][given["preset"]] for role, word in keywords.items()}
            common = {name: given[name] for name in ("preset", "seed", "model") if name in given} | models
            values = {name: value for name, value in dataclasses.asdict(resolved).items() if name != "model"}
            click.echo(as_yaml(common, {record.name: values}), nl=False)
            return
        with resumable():
            run = train_model(record.name, **given, **changes)
        click.echo(run.path)

    run.__doc__ = f"""Train {record.name}: {record.about}.

    Prints the run's directory last. A finished run of the same settings, data and upstream is found and not repeated.

    \b
    Examples:
      allmrec train {record.name} --data data/movies
      allmrec train {record.name} --data data/movies --preset paper --seed 1
    """
    decorated: Callable = run
    for decorator in (
        settings_options(*classes, hidden=hidden),
        mesh_options,
        config_options("SETTING=VALUE"),
        grouped(
            "Run",
            checkpoints_option,
            seed_option,
            click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run."),
        ),
        grouped("Options", *first),
    ):
        decorated = decorator(decorated)
    return click.command(record.name, cls=Command)(decorated)


EMBEDDED = {
    "sbert-nano": (sbert_nano, "the embedded sentence encoder, from generated text"),
    "opt-nano": (opt_nano, "the embedded language model, from generated text"),
}


class TrainGroup(Group):
    """``allmrec train``: the kinds that are registered, and the two embedded models."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Kinds of training in the registry's order, then the embedded models."""
        return [*KINDS, *EMBEDDED]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a kind, made when it is asked for."""
        if name in EMBEDDED:
            return EMBEDDED[name][0]()
        return make_command(KINDS[name]) if name in KINDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists all with their records' sentences."""
        rows = [(name, record.about) for name, record in KINDS.items()]
        rows += [(name, about) for name, (_, about) in EMBEDDED.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


command = TrainGroup(
    "train",
    help="Train one part. Each stage reads what an earlier one exported, and prints its run's directory last.",
    epilog="""\b
Examples:
  allmrec train cf --data data/movies
  allmrec train stage1 --data data/movies
  allmrec train stage2 --data data/movies --set steps=160 --name first
""",
)
