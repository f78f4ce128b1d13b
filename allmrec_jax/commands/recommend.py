"""``allmrec recommend``: recommend items for a user or a history."""

import json
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.mesh import llm_of_runs, mesh_options
from allmrec_jax.errors import UserError

EPILOG = """\b
Examples:
  allmrec recommend --data data/movies --run checkpoints/movies/stage2/0a1b2c3d4e5f --user A3SGXH7AUHU8GW
  allmrec recommend --data data/movies --run RUN --item "The Matrix" --item B00005JKZY --items new.jsonl --json
"""


@click.command(epilog=EPILOG)
@mesh_options(lambda given: given["llm"] or llm_of_runs([given["run"]]))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The data set trained on.")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="A finished `train stage2` run.")
@click.option("--cf", type=click.Path(path_type=Path), help="The CF run or arrays, if not found beside the run.")
@click.option("--user", help="Id of a user of the data set.")
@click.option("--item", "history", multiple=True, help="Id or title of an item of a history, oldest first; repeat.")
@click.option("--items", type=click.Path(path_type=Path), help='New items, JSON lines: {"id", "title", "description"}.')
@click.option("--llm", help="Where the language model is, if not where the run found it.")
@click.option(
    "--llm-weights",
    type=click.Choice(["dtype", "int8"]),
    help="The language model's kernels in the type it was trained with, or rounded to int8.  [as in training]",
)
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many to recommend.")
@click.option("--retrieve", type=click.IntRange(1), default=20, show_default=True, help="How many to re-rank.")
@click.option("--json", "as_rows", is_flag=True, help="Print JSON.")
def command(
    data: Path,
    run: Path,
    cf: Path | None,
    user: str | None,
    history: tuple[str, ...],
    items: Path | None,
    llm: str | None,
    llm_weights: Any,
    count: int,
    retrieve: int,
    as_rows: bool,
) -> None:
    """Recommend items for a known user, or for a bare history.

    The CF model retrieves from the whole catalogue, and A-LLMRec re-ranks what it found by the titles' likelihood.
    New items need no training: their text is enough.
    """
    if (user is None) == (not history):
        raise UserError("give either --user or at least one --item")
    if count > retrieve:
        raise UserError(f"--count {count} is more than --retrieve {retrieve}; raise --retrieve")

    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.trained.recommend import as_json, find_user, load_recommender, read_new_items

    dataset = load_dataset(data)
    number = None if user is None else find_user(dataset, user)
    new = read_new_items(items) if items else ()
    recommender = load_recommender(dataset, run, new, cf=cf, llm=llm, llm_weights=llm_weights)
    find = recommender.catalogue.find
    past = [find(name) for name in history] if number is None else dataset.sequence(number).tolist()
    found = recommender.recommend(past, user=number, count=count, retrieve=retrieve)
    if as_rows:
        click.echo(json.dumps(as_json(found), indent=2, ensure_ascii=False))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    titles = [recommender.catalogue.titles[item] for item in past[-5:]]
    more = f"{len(past) - 5} earlier items, " if len(past) > 5 else ""
    table = Table(title=Text(f"After {more}{', '.join(titles)}"), title_justify="left")
    for heading in ("", "probability", "retrieved as"):
        table.add_column(heading, justify="right")
    for heading in ("title", "id"):
        table.add_column(heading)
    for rank, each in enumerate(found, start=1):
        place = f"{each.retrieved}{' (new)' if each.new else ''}"
        table.add_row(str(rank), f"{each.probability:.3f}", place, Text(each.title), Text(each.raw_id))
    Console().print(table)


if __name__ == "__main__":
    command()
