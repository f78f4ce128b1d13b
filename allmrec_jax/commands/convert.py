"""``allmrec convert``: trained weights and data from and to the official PyTorch code, and out to other servers."""

from pathlib import Path

import click

from allmrec_jax.commands.options import checkpoints_option

DIRECTORY = click.Path(path_type=Path)


@click.group(short_help="weights and data from and to the official PyTorch code")
def command() -> None:
    """Carry trained weights and data over from the official PyTorch code, and back.

    \b
    Example:
      allmrec convert from-official ../A-LLMRec --name Movies --data data/Movies
    """


@command.command("from-official")
@click.argument("root", type=DIRECTORY)
@click.option("--name", required=True, help="The data set's name there, e.g. Movies_and_TV.")
@click.option("--data", type=DIRECTORY, required=True, help="Where the data set goes.")
@checkpoints_option
@click.option(
    "--sentence-encoder",
    default="sentence-transformers/nq-distilbert-base-v1",
    show_default=True,
    help="What stage 1 started from: a directory or hub name, for configuration and tokenizer.",
)
@click.option("--llm", default="facebook/opt-6.7b", show_default=True, help="The language model of stage 2.")
@click.option("--stage1-epoch", default=10, show_default=True, help="The epoch in the names of stage 1's files.")
@click.option("--stage2-epoch", default=5, show_default=True, help="The epoch in the names of stage 2's files.")
def from_official(
    root: Path,
    name: str,
    data: Path,
    checkpoints: Path,
    sentence_encoder: str,
    llm: str,
    stage1_epoch: int,
    stage2_epoch: int,
) -> None:
    """Turn the official code's files below ROOT into a data set and finished runs.

    Data and SASRec must be there; stage 1 and stage 2 are taken over where their files are. Prints what was made.
    Nothing in the files is executed.

    \b
    Example:
      allmrec convert from-official ../A-LLMRec --name Movies --data data/Movies
    """
    from allmrec_jax.official import importing
    from allmrec_jax.official.layout import Layout

    layout = Layout(root, name, stage1_epoch, stage2_epoch)
    dataset = importing.import_data(layout, data)
    print(data)
    cf = importing.import_cf(layout, dataset, checkpoints)
    print(cf)
    if not layout.stage1("mlp").exists():
        return
    stage1 = importing.import_stage1(layout, dataset, cf, sentence_encoder, checkpoints)
    print(stage1)
    if layout.stage2("log_proj").exists():
        print(importing.import_stage2(layout, dataset, cf, stage1, llm, checkpoints))


@command.command("to-official")
@click.option("--data", type=DIRECTORY, required=True, help="A data set made by `allmrec prepare`.")
@click.option("--cf", type=DIRECTORY, help="A `train cf` run of SASRec.")
@click.option("--stage1", type=DIRECTORY, help="A `train stage1` run built on --cf.")
@click.option("--stage2", type=DIRECTORY, help="A `train stage2` run.")
@click.option("--out", type=DIRECTORY, required=True, help="The official code's root, or any directory.")
@click.option("--name", help="The data set's name there, which decides the words of its prompts.  [the data set's]")
@click.option("--stage1-epoch", default=10, show_default=True, help="In the names of stage 1's files.")
@click.option("--stage2-epoch", default=5, show_default=True, help="In the names of stage 2's files.")
def to_official(
    data: Path,
    cf: Path | None,
    stage1: Path | None,
    stage2: Path | None,
    out: Path,
    name: str | None,
    stage1_epoch: int,
    stage2_epoch: int,
) -> None:
    """Write a data set and runs as the files that the official code loads.

    The default epochs are those that it looks for. Prints the files written.

    \b
    Example:
      allmrec convert to-official --data data/Movies --cf checkpoints/Movies/cf/0a1b2c3d4e5f --out ../A-LLMRec
    """
    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.errors import UserError
    from allmrec_jax.official import exporting
    from allmrec_jax.official.layout import Layout

    dataset = load_dataset(data)
    layout = Layout(out, name or dataset.name, stage1_epoch, stage2_epoch)
    if stage1 is not None and cf is None:
        raise UserError("--stage1 needs the --cf that it was built on")
    written = exporting.export_data(dataset, layout)
    if cf is not None:
        written.append(exporting.export_cf(dataset, cf, layout))
        if stage1 is not None:
            written += exporting.export_stage1(dataset, stage1, cf, layout)
    if stage2 is not None:
        written += exporting.export_stage2(dataset, stage2, layout)
    for file in written:
        print(file)


@command.command("export")
@click.option("--data", type=DIRECTORY, required=True, help="A data set made by `allmrec prepare`.")
@click.option("--stage1", type=DIRECTORY, required=True, help="The `train stage1` run that --stage2 was built on.")
@click.option("--stage2", type=DIRECTORY, required=True, help="A `train stage2` run.")
@click.option("--out", type=DIRECTORY, required=True, help="The directory to write; replaced as a whole.")
def export(data: Path, stage1: Path, stage2: Path, out: Path) -> None:
    """Write item vectors and projector weights as safetensors, for serving the language model elsewhere.

    \b
    Example:
      allmrec convert export --data data/Movies --stage1 checkpoints/Movies/stage1/0a1b2c3d4e5f
      --stage2 checkpoints/Movies/stage2/5f4e3d2c1b0a --out serving
    """
    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.official.serving import export_serving

    print(export_serving(load_dataset(data), stage1, stage2, out))
