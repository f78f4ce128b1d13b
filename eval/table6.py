"""``allmrec experiment table6``: few training users (the paper's Table 6)."""

import dataclasses

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.data.scenarios import Scenario, few_shot
from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import FEW_SHOT, TALLREC, TEXT_SYSTEMS

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
    make_tables(options, plan_tables(options, users, sample_seed))


def plan_tables(options: Options, users: tuple[int, ...] = (256, 128), sample_seed: int = 0) -> list[Table]:
    """A table for each number of users."""
    dataset = load_dataset(options.data)
    out = options.folder("table6", dataset)

    def planned(where: Scenario, count: int) -> Table:
        own = dataclasses.replace(options, out=out / str(count))
        title, published = f"Table 6: trained on {count} users", f"table6_few_shot/{count}"
        return plan_table(own, "table6", title, SYSTEMS, scenario=lambda _: where, published=published, budget=FEW_SHOT)

    return [planned(few_shot(dataset, count, sample_seed), count) for count in users]


if __name__ == "__main__":
    command()
