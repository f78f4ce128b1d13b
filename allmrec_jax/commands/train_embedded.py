"""``allmrec train opt-nano`` and ``sbert-nano``: the embedded models, from generated text alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    Command,
    checkpoints_option,
    grouped,
    seed_option,
    settings_options,
)
from allmrec_jax.errors import resumable


def _options(settings: type, what: str) -> Callable[[Callable], Callable]:
    export = click.option(
        "--export-to", type=click.Path(path_type=Path), help=f"Also write the finished {what} to this folder."
    )
    resume = click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run.")
    run = grouped("Options", seed_option, checkpoints_option, resume, export)
    return lambda command: run(settings_options(settings)(command))


def opt_nano() -> click.Command:
    """The command that trains the embedded language model."""
    from allmrec_jax.embedded.opt_nano import OptNanoSettings

    @click.command("opt-nano", cls=Command)
    @_options(OptNanoSettings, "model")
    def command(overrides: dict[str, Any], **given: Any) -> None:
        """Train the embedded language model; about an hour on two cores.

        \b
        Example:
          allmrec train opt-nano --export-to allmrec_jax/assets/opt-nano
        """
        from allmrec_jax.api.embedded import train_embedded_model

        with resumable():
            run = train_embedded_model("opt-nano", **given, **overrides)
        click.echo(run)

    return command


def sbert_nano() -> click.Command:
    """The command that trains the embedded sentence encoder."""
    from allmrec_jax.embedded.sbert_nano import SbertNanoSettings

    @click.command("sbert-nano", cls=Command)
    @_options(SbertNanoSettings, "encoder")
    def command(overrides: dict[str, Any], **given: Any) -> None:
        """Train the embedded sentence encoder; about ten minutes on two cores.

        \b
        Example:
          allmrec train sbert-nano --export-to allmrec_jax/assets/sbert-nano
        """
        from allmrec_jax.api.embedded import train_embedded_model

        with resumable():
            run = train_embedded_model("sbert-nano", **given, **overrides)
        click.echo(run)

    return command
