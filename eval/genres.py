"""``allmrec experiment genres``: the favourite-genre task (the paper's Figures 4 and 5).

Language models are shown a history alone, A-LLMRec with the items' vectors, and are asked in words for the user's
favourite genres. The score is in :mod:`allmrec_jax.evaluation.genres`.
"""

from typing import Any

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.evaluation.genres import MAJORITY, Genres, genre_markdown
from allmrec_jax.evaluation.systems import WRITERS
from allmrec_jax.fileio import write_text
from allmrec_jax.prompts import GENRE_QUESTION


@click.command(
    name="genres",
    short_help="favourite genres in free text (Figures 4 and 5)",
    epilog="Example: allmrec experiment genres --data data/Movies --llm-users 500",
)
@click.option(
    "--question", default=GENRE_QUESTION, show_default=True, help="What stands behind the history's closing quote."
)
@table_options
def command(options: Options, question: str) -> None:
    """Ask language models for users' favourite genres, on data with genres."""
    make_tables(options, plan_tables(options, question))


def plan_tables(options: Options, question: str = GENRE_QUESTION) -> list[Table]:
    """The task."""
    Genres.of(load_dataset(options.data))  # refuses data without genres
    title = "Figures 4 and 5: favourite genres"
    systems = list(WRITERS)
    return [plan_table(options, "genres", title, systems, reference=MAJORITY, question=question, render=render)]


def render(made: Table, results: dict[str, Any]) -> None:
    """The table and the examples as Markdown."""
    page = genre_markdown(results, made.title)
    write_text(made.out / "genres.md", page)
    click.echo(page)


if __name__ == "__main__":
    command()
