"""``allmrec synthesize``: write the embedded synthetic data as raw Amazon files."""

from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import Command, grouped, preset_option, seed_option, settings_options
from allmrec_jax.embedded.synthetic import PRESETS, SyntheticSettings


@click.command(
    "synthesize",
    cls=Command,
    epilog="Example: allmrec synthesize --out raw --preset tiny",
)
@grouped(
    "Options",
    click.option(
        "--out", type=click.Path(path_type=Path), required=True, help="The directory to write the files into."
    ),
    preset_option(PRESETS, "demo", help="The size of the data; `allmrec presets synthesize` shows both."),
    seed_option,
)
@settings_options(SyntheticSettings)
def command(out: Path, preset: str, overrides: dict[str, Any], seed: int) -> None:
    """Write two made-up domains in the raw form of Amazon Reviews 2018, and the probabilities they came from.

    Prints the reviews files; each is read together with the meta_ file beside it. The same seed gives the same bytes.
    """
    from allmrec_jax.api.data import synthesize

    for path in synthesize(out, preset=preset, seed=seed, **overrides):
        click.echo(path)
