"""``allmrec fit``: all stages of A-LLMRec, what is missing of them."""

import shlex
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    Command,
    checkpoints_option,
    data_option,
    grouped,
    mesh_options,
    preset_option,
    seed_option,
)
from allmrec_jax.commands.train import combine, config_options, given_on_command_line, model_option
from allmrec_jax.errors import resumable
from allmrec_jax.trained.kinds import setting_lines

STAGES = ("cf", "stage1", "stage2")


class FitCommand(Command):
    """A command that knows the settings of its trainings when one is given as an option, as in RecBole."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line.

        Raises:
            click.UsageError: an option that there is not; where a setting has its name, with the line to write.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            lines = setting_lines(error.option_name.lstrip("-"), "…", STAGES)
            if not lines:
                raise
            raise click.UsageError(
                f"No such option {error.option_name!r}; it is a setting: --set {' or '.join(lines)}", ctx
            ) from None


@click.command(
    "fit",
    cls=FitCommand,
    epilog="""\b
Examples:
  allmrec fit --data data/movies
  allmrec fit --data data/movies --until cf --model gru4rec
  allmrec fit --data data/movies --set stage2.steps=160 --name first
""",
)
@grouped(
    "Options",
    data_option,
    preset_option(["paper", "official", "small"]),
    click.option("--until", type=click.Choice(STAGES), default="stage2", show_default=True, help="The last stage."),
    click.option("--model", default="sasrec", show_default=True, help="The CF model; `allmrec presets cf` lists them."),
    model_option("encoder"),
    model_option("llm"),
    click.option("--name", help="A name for the last run, to be given in place of its directory."),
)
@grouped("Run", checkpoints_option, seed_option)
@config_options("STAGE.SETTING=VALUE")
@mesh_options
def command(config: Path | None, lines: tuple[str, ...], print_config: bool, **given: Any) -> None:
    """Train A-LLMRec: the CF model, stage 1 and stage 2, of these what is missing.

    Finished stages are found by their settings, data and upstream; an interrupted one goes on. Prints the last run's
    directory, and the line to try next.
    """
    given, settings = combine(STAGES, given, config, lines)
    if print_config:
        _print(given, settings)
        return
    from allmrec_jax.api.data import load_data
    from allmrec_jax.api.training import fit

    dataset = load_data(given.pop("data"))
    with resumable():
        run = fit(dataset, **given, settings=settings)
    click.echo(run.path)
    named = given["name"] or run.path
    where = "".join(f" --checkpoints {place}" for place in given_on_command_line(["checkpoints"]).values())
    next_line = {
        "cf": f"allmrec train stage1 --data {dataset.path} --cf {named}{where}",
        "stage1": f"allmrec train stage2 --data {dataset.path} --stage1 {named}{where}",
        "stage2": f"allmrec recommend --run {named}{where} --item {shlex.quote(dataset.titles[1])}",
    }[given["until"]]
    click.echo(f"next: {next_line}")


def _print(given: dict[str, Any], settings: dict[str, dict[str, Any]]) -> None:
    import dataclasses

    from allmrec_jax.api.config import as_yaml
    from allmrec_jax.api.training import resolve_settings
    from allmrec_jax.trained.kinds import KINDS

    preset, shown = given["preset"], {}
    for stage in STAGES[: STAGES.index(given["until"]) + 1]:
        resolved = resolve_settings(KINDS[stage], preset, settings[stage], given["model"] if stage == "cf" else None)
        shown[stage] = {name: value for name, value in dataclasses.asdict(resolved).items() if name != "model"}
    models = {
        "sentence_encoder": given["sentence_encoder"] or KINDS["stage1"].models["encoder"][preset],
        "llm": given["llm"] or KINDS["stage2"].models["llm"][preset],
    }
    click.echo(as_yaml({name: given[name] for name in ("preset", "seed", "model")} | models, shown), nl=False)
