"""Experiments: the paper's tables on a data set, the demo, and the choice of settings."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allmrec_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from allmrec_jax.experiments.demo import Step

PathLike = str | os.PathLike[str]


def make_table(name: str, data: PathLike, **options: Any) -> list[Path]:
    """Makes a table or figure of the paper: trains what is missing, asks every system, and writes results and a page.

    Trainings run as processes of their own, told by the logger ``allmrec_jax``. Interrupted, the same call goes on.

    Args:
        name: ``"table1"`` to ``"table11"``, ``"genres"``, or ``"all"``, which makes every one that the data can serve.
        data: the data set's directory.
        options: as the options of ``allmrec experiment NAME``, with underscores: ``preset``, ``seeds``, ``llm_seeds``,
            ``systems``, ``llm``, ``sentence_encoder``, ``changes``, ``llm_users``, ``checkpoints``, ``jobs``, ``out``
            and so on, and the table's own, e.g. ``target`` of Table 7.

    Returns:
        the folders of results; with ``slurm`` the scripts that submit what is missing.

    Raises:
        UserError: there is no such table or option, something that it needs is not there, or a training failed.

    Example:
        >>> ar.make_table("table1", "data/movies", seeds=3, llm_users=500)
    """
    from allmrec_jax.experiments.make import Options, make_all, make_tables
    from allmrec_jax.experiments.tables import TABLES
    from allmrec_jax.report.experiments import PUBLISHER

    # The trainings, processes of their own, want a GPU's memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    records = list(TABLES.values()) if name == "all" else [TABLES.find(name)]
    own = {option.name for record in records for option in record.options if name != "all" or option.everywhere}
    common = {field.name for field in dataclasses.fields(Options)} - {"data"}
    for each in options:
        if each not in own | common:
            raise UserError(f"{name} has no option {each!r}{did_you_mean(each, own | common)}")
    chosen = {each: _typed(each, value) for each, value in options.items() if each in common}
    rest = {each: value for each, value in options.items() if each in own}
    if name == "all":
        return make_all(Options(Path(data), **chosen), PUBLISHER, **rest)
    return make_tables(Options(Path(data), **chosen), name, PUBLISHER, **rest)


def _typed(name: str, value: Any) -> Any:
    """Paths may be text, and several values a list."""
    if name in ("checkpoints", "out", "slurm") and value is not None:
        return Path(value)
    return tuple(value) if name in ("systems", "changes") else value


def make_demo(
    out: PathLike = "runs/demo", checkpoints: PathLike = "checkpoints", **options: Any
) -> "tuple[list[Step], Path]":
    """Makes the demo: generated data, every training, an evaluation and a report.

    Args:
        out: where ``results.json``, ``users.parquet`` and ``report.html`` go.
        checkpoints: the folder of runs.
        options: ``data_seed``, ``seed``, ``data_preset`` (``"demo"`` or ``"tiny"``), ``llm``, ``sentence_encoder``,
            ``max_users`` and ``mesh``.

    Returns:
        what each step took, and the page to open.

    Raises:
        UserError: a step failed.
    """
    from allmrec_jax.experiments.demo import make_demo as make

    return make(Path(out), Path(checkpoints), **options)


def tune(
    data: PathLike,
    *,
    grid: Sequence[str] = (),
    changes: Sequence[str] = (),
    checkpoints: PathLike = "checkpoints",
    out: PathLike | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Trains every combination of settings and ranks them by a system's Hit@1 on validation users.

    Args:
        data: the data set's directory.
        grid: ``KIND.SETTING=V,V,…`` lines; by default the learning rates and weights that the paper tunes.
        changes: ``KIND.SETTING=VALUE`` lines that hold for all.
        checkpoints: the folder of runs.
        out: where ``tune.json`` goes; ``runs/tune/DATA`` by default.
        options: ``system``, ``preset``, ``seed``, ``llm``, ``sentence_encoder``, ``jobs`` and ``dry_run``.

    Returns:
        the combinations, the best first: ``settings``, ``hit@1`` and the ``run``; none where only planned.

    Raises:
        UserError: the system is not trained, a training failed, or nothing was measured on validation users.
    """
    from allmrec_jax.experiments import tune as module

    return module.tune(
        Path(data),
        grid=tuple(grid) or module.GRID,
        changes=tuple(changes),
        checkpoints=Path(checkpoints),
        out=None if out is None else Path(out),
        **options,
    )
