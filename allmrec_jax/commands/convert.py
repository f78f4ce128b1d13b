"""``allmrec convert``: trained weights and data from and to the official PyTorch code, and out to other servers."""

from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.options import FOLDER, RUN, Command, Group, checkpoints_option, data_option, grouped

EPOCHS = grouped(
    "Names of files",
    click.option("--stage1-epoch", default=10, show_default=True, help="The epoch in the names of stage 1's files."),
    click.option("--stage2-epoch", default=5, show_default=True, help="The epoch in the names of stage 2's files."),
)


@click.group(cls=Group, short_help="weights and data from and to the official PyTorch code")
def command() -> None:
    """Carry trained weights and data over from the official PyTorch code, and back.

    \b
    Example:
      allmrec convert from-official ../A-LLMRec --name Movies --data data/Movies
    """


@command.command("from-official", cls=Command)
@click.argument("root", type=FOLDER)
@grouped(
    "Options",
    click.option("--name", required=True, help="The data set's name there, e.g. Movies_and_TV."),
    click.option("--data", type=FOLDER, required=True, help="Where the data set goes."),
    checkpoints_option,
    click.option(
        "--sentence-encoder",
        default="sentence-transformers/nq-distilbert-base-v1",
        show_default=True,
        help="What stage 1 started from: a directory or hub name, for configuration and tokenizer.",
    ),
    click.option("--llm", default="facebook/opt-6.7b", show_default=True, help="The language model of stage 2."),
)
@EPOCHS
def from_official(**given: Any) -> None:
    """Turn the official code's files below ROOT into a data set and finished runs.

    Data and SASRec must be there; stage 1 and stage 2 are taken over where their files are. Prints what was made.
    Nothing in the files is executed.

    \b
    Example:
      allmrec convert from-official ../A-LLMRec --name Movies --data data/Movies
    """
    from allmrec_jax.api.converting import import_official

    for path in import_official(**given):
        click.echo(path)


@command.command("to-official", cls=Command)
@grouped(
    "Options",
    data_option,
    click.option("--cf", type=RUN, help="A `train cf` run of SASRec."),
    click.option("--stage1", type=RUN, help="A `train stage1` run built on --cf."),
    click.option("--stage2", type=RUN, help="A `train stage2` run."),
    click.option("--out", type=FOLDER, required=True, help="The official code's root, or any directory."),
    click.option("--name", help="The data set's name there, which decides the words of its prompts.  [its own]"),
    checkpoints_option,
)
@EPOCHS
def to_official(**given: Any) -> None:
    """Write a data set and runs as the files that the official code loads.

    The default epochs are those that it looks for. Prints the files written.

    \b
    Example:
      allmrec convert to-official --data data/Movies --cf first --out ../A-LLMRec
    """
    from allmrec_jax.api.converting import export_official

    for file in export_official(**given):
        click.echo(file)


@command.command("export", cls=Command)
@grouped(
    "Options",
    data_option,
    click.option("--stage1", type=RUN, required=True, help="The `train stage1` run that --stage2 was built on."),
    click.option("--stage2", type=RUN, required=True, help="A `train stage2` run."),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="The directory to write."),
    checkpoints_option,
)
def export(**given: Any) -> None:
    """Write item vectors and projector weights as safetensors, for serving the language model elsewhere.

    \b
    Example:
      allmrec convert export --data data/ml --stage1 one --stage2 two --out out
    """
    from allmrec_jax.api.converting import export_serving

    click.echo(export_serving(**given))
