"""What an experiment's results are written as, for people: a table beside them, and a page or a site."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allmrec_jax.evaluation.genres import genre_markdown
from allmrec_jax.evaluation.results import table
from allmrec_jax.experiments.graph import trainings_of
from allmrec_jax.experiments.make import PlannedTable, Publisher
from allmrec_jax.fileio import write_text
from allmrec_jax.report.export import markdown
from allmrec_jax.report.site import ReportSources, write_report

log = logging.getLogger(__name__)


def write_table(made: PlannedTable, results: dict[str, Any]) -> None:
    """Writes a table as Markdown and, but for free text, on a page."""
    if made.protocol.question is not None:
        text = genre_markdown(results, made.title)
        write_text(made.out / f"{made.name}.md", text)
        log.info(text)
        return
    write_text(made.out / f"{made.name}.md", markdown(results))
    trained = [made.work.path(node) for node in trainings_of(made.rows) if node.seed == 0]
    sources = ReportSources([made.out], trained, [made.dataset.path])
    write_report(made.out / "report.html", sources, title=made.title, models=False)
    log.info(table(results["systems"]))


def write_site(out: Path, tables: Sequence[PlannedTable], reasons: Mapping[str, str]) -> None:
    """Writes one site of several tables, with the reasons why others were not made."""
    data = list({each.dataset.hash: each.dataset.path for each in tables}.values())
    sources = ReportSources([each.out for each in tables], (), data, tables[0].options.checkpoints, reasons)
    log.info(write_report(out, sources))


PUBLISHER = Publisher(write_table, write_site)
"""What the commands hand to :func:`allmrec_jax.experiments.make.make_tables`."""
