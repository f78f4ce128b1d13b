"""``allmrec experiment table6``: few training users (the paper's Table 6)."""

import dataclasses
import functools
from pathlib import Path

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.data.scenarios import few_shot
from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import TALLREC, TEXT_SYSTEMS

SYSTEMS = ("SASRec", *sorted({"MoRec"} & set(TEXT_SYSTEMS)), *TALLREC, "A-LLMRec", "A-LLMRec (SBERT)")


@click.command(
    name="table6",
    short_help="few training users (Table 6)",
    epilog="Example: allmrec experiment table6 --data data/Movies --users 256 --users 128",
)
@click.option(
    "--users", type=click.IntRange(min=2), multiple=True, default=(256, 128), show_default=True, help="To train on."
)
@click.option("--sample-seed", type=int, default=0, show_default=True, help="Of the sample of training users.")
@table_options
def command(options: Options, users: tuple[int, ...], sample_seed: int) -> None:
    """Train every system on so many users and ask about all users; a folder of results for each number."""
    run(options, users, sample_seed)


def run(options: Options, users: tuple[int, ...] = (256, 128), sample_seed: int = 0) -> None:
    """The table for each number of users."""
    dataset = load_dataset(options.data)
    scenarios = {count: few_shot(dataset, count, sample_seed) for count in users}
    out = options.out or Path("runs") / "table6" / dataset.name
    for count, where in scenarios.items():
        run_table(
            dataclasses.replace(options, out=out / str(count)),
            "table6",
            f"Table 6: trained on {count} users",
            SYSTEMS,
            scenario=functools.partial(lambda where, _: where, where),
            published=f"table6_few_shot/{count}",
        )


if __name__ == "__main__":
    command()
