"""Results and trainings as pages to look at."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from allmrec_jax.api.runs import find_run
from allmrec_jax.errors import UserError

PathLike = str | os.PathLike[str]


def write_report(
    sources: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    data: PathLike | Sequence[PathLike] = (),
    checkpoints: PathLike = "checkpoints",
    title: str | None = None,
    users: int = 60,
    attribution: int = 3,
    models: bool = True,
) -> Path:
    """Writes a report of evaluations and trainings.

    Args:
        sources: directories of results, or above several; and trainings whose curves to show, by directory or name.
        out: a folder, or ``NAME.html`` for one page without table files; ``report.html`` in the first source by
            default.
        data: data sets that were evaluated. They add single users, popularity and the map of items.
        checkpoints: where trainings that results name are looked for.
        title: heading of the page.
        users: in each browser of users.
        attribution: users whose soft tokens are weighed.
        models: whether to load models for the map of items and for that.

    Returns:
        the page to open.

    Raises:
        UserError: a source is neither, or damaged, or of another data set.

    Example:
        >>> ar.write_report("runs/movies", data="data/movies")
    """
    from allmrec_jax.report.readers import read_not_made
    from allmrec_jax.report.site import ReportSources
    from allmrec_jax.report.site import write_report as write

    given = _several(sources)
    if not given:
        raise UserError("nothing to report on: name a directory of results or a training run")
    results: list[Path] = []
    trained: list[Path] = []
    not_made: dict[str, str] = {}
    for each in given:
        path = Path(each)
        beneath = sorted((file.parent for file in path.glob("**/results.json")), key=_natural)
        if (path / "run.json").is_file() or not path.is_dir():
            trained.append(find_run(each, checkpoints))
            continue
        if not beneath:
            raise UserError(f"{path}: neither results of an evaluation (results.json) nor a training run (run.json)")
        results += beneath
        not_made |= read_not_made(path)
    found = ReportSources(
        list(dict.fromkeys(results)), trained, [Path(each) for each in _several(data)], Path(checkpoints), not_made
    )
    where = Path(out) if out is not None else (results or trained)[0] / "report.html"
    return write(where, found, title=title, users=users, attributed=attribution, models=models)


def _several(given: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def _natural(path: Path) -> list[str | int]:
    """Sorts ``table10`` after ``table9``."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", str(path))]
