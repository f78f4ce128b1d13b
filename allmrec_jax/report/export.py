"""The tables of an evaluation as Markdown, LaTeX and JSON."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from allmrec_jax.markdown import escaped
from allmrec_jax.report.facts import heading
from allmrec_jax.report.tables import Cell, Table, all_tables, budgets


def markdown(results: Mapping[str, Any], runs: Mapping[str, str] | None = None) -> str:
    """Every table of an evaluation in Markdown, and the budgets of the rows.

    Args:
        results: ``results.json``.
        runs: where the page of a run is, by identity; cells link there.
    """
    parts = [f"# {escaped(heading(results))}"]
    for number, table in enumerate(all_tables(results)):
        parts += [f"## {escaped(table.title)}"] if number else []
        parts += [table_markdown(table, runs or {}), *map(escaped, table.notes), *_reasons(table)]
    lines = [f"- **{escaped(name)}**: {escaped('; '.join(words))}" for name, words in budgets(results)]
    return "\n\n".join([*parts, "## Budgets", "\n".join(lines)]) + "\n"


def table_markdown(table: Table, runs: Mapping[str, str]) -> str:
    """One table in Markdown: the winner of a column in bold."""
    heads = ["System", *(_joined(column.label, column.about) for column in table.columns)]
    lines = [_line(map(escaped, heads)), _line(["---", *("---:" for _ in table.columns)])]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = f"[{cell.text}]({runs[cell.run]})" if cell.run and cell.run in runs else cell.text
            text = f"**{text}**" if cell.best else text
            cells.append(_joined(f"{text}: {cell.na}" if cell.na else text, "; ".join(cell.details)))
        lines.append(_line([escaped(row.name), *cells]))
    return "\n".join(lines)


def latex(results: Mapping[str, Any]) -> str:
    """Every table of an evaluation in LaTeX, for the package ``booktabs``."""
    data = results["data"]["name"]
    return "\n".join(table_latex(table, data) for table in all_tables(results))


def table_latex(table: Table, data: str) -> str:
    """One table in LaTeX: the winner of a column in bold, intervals small beneath the values."""
    label = "".join(c if c.isalnum() else "-" for c in f"{data}-{table.title}".lower())
    columns = [f"{_tex(column.label)}{_small(column.about)}" for column in table.columns]
    notes = " ".join([*table.notes, *_reasons(table)])
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}\centering\small",
        rf"\caption{{{_tex(table.title)}. {_tex(notes)}}}\label{{tab:{label}}}",
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
        " & ".join(["System", *columns]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = _tex(cell.text)
            cells.append((rf"\textbf{{{text}}}" if cell.best else text) + _small(cell.na or "; ".join(cell.details)))
        lines.append(" & ".join([_tex(row.name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def as_json(results: Mapping[str, Any]) -> str:
    """Every cell of every table, with the reasons of those that have no value."""
    found = [
        {
            "table": table.key,
            "title": table.title,
            "columns": ["System", *(_joined(column.label, column.about) for column in table.columns)],
            "rows": [{"system": row.name, "cells": [_cell_json(cell) for cell in row.cells]} for row in table.rows],
            "reasons": table.reasons,
        }
        for table in all_tables(results)
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _cell_json(cell: Cell) -> dict[str, Any]:
    named = {"text": cell.text, "details": list(cell.details), "best": cell.best, "run": cell.run, "na": cell.na}
    return {key: value for key, value in named.items() if value}


def _reasons(table: Table) -> list[str]:
    return (
        ["n/a: " + "; ".join(f"{code}: {words}" for code, words in table.reasons.items()) + "."]
        if table.reasons
        else []
    )


def _joined(text: str, detail: str) -> str:
    return f"{text} ({detail})" if detail else text


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "<": "$<$",
    "“": "``",
    "”": "''",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _small(text: str) -> str:
    return rf" {{\scriptsize {_tex(text)}}}" if text else ""
