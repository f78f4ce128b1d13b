"""``allmrec recommend``: recommend items for users or for a history."""

import functools
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    FOLDER,
    RUN,
    Command,
    checkpoints_option,
    grouped,
    llm_weights_option,
    mesh_options,
)
from allmrec_jax.commands.show import show
from allmrec_jax.errors import UserError

EPILOG = """\b
Examples:
  allmrec recommend --run first --item "The Matrix" --item "Alien" --count 5
  allmrec recommend --run first --user A3SGXH7AUHU8GW --items new.jsonl --json
  allmrec recommend --run first --all --out lists.parquet
"""


@click.command("recommend", cls=Command, epilog=EPILOG)
@grouped(
    "Options",
    click.option("--run", type=RUN, required=True, help="A finished stage-2 run: a directory, or its name."),
    click.option("--user", help="Id of a user of the data set."),
    click.option("--item", "history", multiple=True, help="Id or title of an item of a history, oldest first; repeat."),
    click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many to recommend."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
@grouped(
    "Many users",
    click.option(
        "--users",
        type=click.Path(path_type=Path),
        help="Ids of users: a text file, one a line, or a column of a CSV or Parquet file (FILE:COLUMN).",
    ),
    click.option("--all", "everyone", is_flag=True, help="All users of the data set."),
    click.option("--out", type=click.Path(path_type=Path), help="Write a .csv, .jsonl or .parquet file."),
)
@grouped(
    "Items and models",
    click.option(
        "--items", type=click.Path(path_type=Path), help='New items, JSON lines: {"id", "title", "description"}.'
    ),
    click.option("--retrieve", type=click.IntRange(1), default=20, show_default=True, help="How many to re-rank."),
    click.option("--data", type=FOLDER, help="The data set trained on.  [where it was in training]"),
    click.option("--cf", type=RUN, help="The CF run or arrays, if not found beside the run."),
    click.option("--stage1", type=RUN, help="The stage-1 run, if not found beside the run."),
    click.option("--llm", help="Where the language model is, if not where the run found it."),
    llm_weights_option,
    checkpoints_option,
)
@mesh_options
def command(
    run: str,
    user: str | None,
    history: tuple[str, ...],
    count: int,
    as_json: bool,
    users: Path | None,
    everyone: bool,
    out: Path | None,
    items: Path | None,
    retrieve: int,
    data: Path | None,
    checkpoints: Path,
    mesh: str | None,
    distributed: str | None,
    **where: Any,
) -> None:
    """Recommend items for known users, or for a bare history.

    The CF model retrieves from the whole catalogue, and A-LLMRec re-ranks what it found by the titles' likelihood.
    New items need no training: their text is enough.
    """
    if sum((user is not None, bool(history), users is not None, everyone)) != 1:
        raise UserError("give one of --user, --item (may be repeated), --users and --all")

    from allmrec_jax.api.devices import devices
    from allmrec_jax.api.recommending import ALLMRec, Recommendations, Recommended, read_users
    from allmrec_jax.api.training import load
    from allmrec_jax.evaluation.progress import progress
    from allmrec_jax.trained.recommend import read_new_items

    @functools.cache
    def opened() -> ALLMRec:
        system = load(run, data=data, checkpoints=checkpoints)
        if not isinstance(system, ALLMRec):
            raise UserError(f"--run {run}: a {system.kind} run; a stage2 run recommends")
        return system

    wanted: dict[str, Any] = {"count": count, "retrieve": retrieve, **where}
    # The mesh first: one that does not fit is told before anything is read.
    with devices(mesh, distributed, lambda: where["llm"] or opened().llm):
        system = opened()
        wanted["new_items"] = read_new_items(items) if items else ()
        if users is None and not everyone:
            found = system.recommend(history=history, user=user, **wanted)
        else:
            ids = None if users is None else read_users(users)
            total = len((system.dataset or system.load_data()).users_raw) if ids is None else len(ids)
            rows: list[Recommended] = []
            with progress("users", total) as advance:
                for each in system.recommend_all(ids, **wanted):
                    rows += each
                    advance(1)
            found = Recommendations(rows)
    if out is None:
        show(found, as_json=as_json, numbers=("rank", "probability", "log_likelihood", "retrieved"))
        return
    found.write(out)
    click.echo(out)
