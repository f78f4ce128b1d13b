"""``allmrec eval overall``: every system on all test users and one candidate file (the paper's Table 1)."""

from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import (
    RUN,
    Command,
    checkpoints_option,
    data_option,
    grouped,
    llm_weights_option,
    mesh_options,
    preset_option,
    seed_option,
    settings_options,
)
from allmrec_jax.inference.decode import PRESETS, DecodeSettings


@click.command(
    "overall",
    cls=Command,
    short_help="all test users on one candidate file (Table 1)",
    epilog="""\b
Examples:
  allmrec eval overall --data data/movies --runs first --out runs/movies
  allmrec eval overall --data data/movies --runs first --out few
""",
)
@grouped(
    "Options",
    data_option,
    click.option(
        "--runs",
        type=RUN,
        multiple=True,
        help="A finished run, or a directory of your own CF arrays; may be repeated. What a stage-2 run was built on "
        "is found beside it.",
    ),
    click.option("--systems", multiple=True, help="A system to ask; may be repeated.  [all that the runs allow]"),
    click.option("--max-users", type=click.IntRange(min=1), help="Ask so many users, a seeded sample.  [all]"),
    click.option(
        "--out", type=click.Path(path_type=Path), required=True, help="Where results.json and users.parquet go."
    ),
)
@grouped(
    "Models",
    click.option(
        "--llm", help="The language model: where stage 2's lies now, or LLM-Only's where there is no stage 2."
    ),
    llm_weights_option,
    click.option("--chat/--no-chat", default=False, help="Put LLM-Only's prompts in the tokenizer's chat template."),
    click.option("--oracle", type=click.Path(path_type=Path), help="oracle.npz of synthetic data, for the Oracle row."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Prompts read at once.  [4 on a CPU, 16 elsewhere]"),
)
@grouped("Run", checkpoints_option, seed_option)
@grouped(
    "Generation",
    click.option("--generate/--no-generate", default=True, help="Let language models also write titles.  [yes]"),
    preset_option(PRESETS, help="How titles are generated; `allmrec presets eval` shows them."),
)
@settings_options(DecodeSettings, group="Generation")
@mesh_options
def command(
    data: Path,
    runs: tuple[str, ...],
    systems: tuple[str, ...],
    max_users: int | None,
    overrides: dict[str, Any],
    **given: Any,
) -> None:
    """Rank and generate with every system on the same users and candidates, and write the results.

    Warm and cold items (Table 4) are slices of the same answers. Nothing is trained.
    """
    from allmrec_jax.api.evaluating import evaluate
    from allmrec_jax.evaluation.results import table

    results = evaluate(data, systems, runs=runs, every=not systems, users=max_users, **given, **overrides)
    click.echo(table(results.results["systems"]))
    click.echo(results.path)
