"""``allmrec synthesize``: write the embedded synthetic data as raw Amazon files."""

from pathlib import Path

import click

from allmrec_jax.embedded.synthetic import PRESETS, generate
from allmrec_jax.settings import resolve, settings_options


@click.command(
    name="synthesize",
    epilog="Example: allmrec synthesize --out raw --seed 1",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The directory to write the files into.")
@settings_options(PRESETS, default="demo")
@click.option("--seed", type=int, default=0, show_default=True)
def command(out: Path, preset: str, overrides: dict, seed: int) -> None:
    """Write two made-up domains in the raw form of Amazon Reviews 2018, and the probabilities they came from.

    Prints the reviews files; each is read together with the meta_ file beside it. The same seed gives the same bytes.
    """
    for path in generate(out, seed, resolve(PRESETS, preset, overrides)):
        print(path)


if __name__ == "__main__":
    command()
