"""Trained weights and data from and to the official PyTorch code, and out to other servers."""

import os
from collections.abc import Iterator
from pathlib import Path

from allmrec_jax.api.data import load_data
from allmrec_jax.api.runs import TrainedRun, find_run
from allmrec_jax.errors import UserError

Place = str | os.PathLike[str]
Run = TrainedRun | Place


def import_official(
    root: Place,
    name: str,
    data: Place,
    *,
    checkpoints: Place = "checkpoints",
    sentence_encoder: str = "sentence-transformers/nq-distilbert-base-v1",
    llm: str = "facebook/opt-6.7b",
    stage1_epoch: int = 10,
    stage2_epoch: int = 5,
) -> Iterator[Path]:
    """Turns the official code's files into a data set and finished runs; yields each as soon as it is made.

    Data and SASRec must be there; stage 1 and stage 2 are taken over where their files are. Nothing in the files is
    executed.

    Args:
        root: the official code's root.
        name: the data set's name there, e.g. ``"Movies_and_TV"``.
        data: where the data set goes.
        checkpoints: the folder of runs.
        sentence_encoder: what stage 1 started from, for configuration and tokenizer.
        llm: the language model of stage 2.
        stage1_epoch: the epoch in the names of stage 1's files.
        stage2_epoch: the epoch in the names of stage 2's files.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    from allmrec_jax.official import importing
    from allmrec_jax.official.layout import Layout

    layout, runs = Layout(Path(root), name, stage1_epoch, stage2_epoch), Path(checkpoints)
    dataset = importing.import_data(layout, Path(data))
    yield Path(data)
    cf = importing.import_cf(layout, dataset, runs)
    yield cf
    if not layout.stage1("mlp").exists():
        return
    stage1 = importing.import_stage1(layout, dataset, cf, sentence_encoder, runs)
    yield stage1
    if layout.stage2("log_proj").exists():
        yield importing.import_stage2(layout, dataset, cf, stage1, llm, runs)


def export_official(
    data: Place,
    out: Place,
    *,
    cf: Run | None = None,
    stage1: Run | None = None,
    stage2: Run | None = None,
    name: str | None = None,
    checkpoints: Place = "checkpoints",
    stage1_epoch: int = 10,
    stage2_epoch: int = 5,
) -> list[Path]:
    """Writes a data set and runs as the files that the official code loads.

    Args:
        data: the data set's directory.
        out: the official code's root, or any directory.
        cf: a CF run of SASRec.
        stage1: a stage-1 run built on ``cf``.
        stage2: a stage-2 run.
        name: the data set's name there, which decides the words of its prompts; the data set's own by default.
        checkpoints: the folder of runs in which names are looked up.
        stage1_epoch: in the names of stage 1's files.
        stage2_epoch: in the names of stage 2's files.

    Returns:
        the files written.

    Raises:
        UserError: the runs do not fit each other or the data, or a file of others is in the way.
    """
    from allmrec_jax.official import exporting
    from allmrec_jax.official.layout import Layout

    dataset = load_data(data)
    layout = Layout(Path(out), name or dataset.name, stage1_epoch, stage2_epoch)
    if stage1 is not None and cf is None:
        raise UserError("--stage1 needs the --cf that it was built on")
    given = {"cf": cf, "stage1": stage1, "stage2": stage2}
    places = {
        role: find_run(run, checkpoints, data=dataset, kind=role) for role, run in given.items() if run is not None
    }
    written = exporting.export_data(dataset, layout)
    if "cf" in places:
        written.append(exporting.export_cf(dataset, places["cf"], layout))
        if "stage1" in places:
            written += exporting.export_stage1(dataset, places["stage1"], places["cf"], layout)
    if "stage2" in places:
        written += exporting.export_stage2(dataset, places["stage2"], layout)
    return written


def export_serving(data: Place, stage1: Run, stage2: Run, out: Place, *, checkpoints: Place = "checkpoints") -> Path:
    """Writes item vectors and projector weights as safetensors, for serving the language model elsewhere.

    Args:
        data: the data set's directory.
        stage1: the stage-1 run that ``stage2`` was built on.
        stage2: a stage-2 run.
        out: the directory to write; replaced as a whole.
        checkpoints: the folder of runs in which names are looked up.

    Returns:
        the directory.
    """
    from allmrec_jax.official.serving import export_serving as write

    dataset = load_data(data)
    first = find_run(stage1, checkpoints, data=dataset, kind="stage1")
    second = find_run(stage2, checkpoints, data=dataset, kind="stage2")
    return write(dataset, first, second, Path(out))
