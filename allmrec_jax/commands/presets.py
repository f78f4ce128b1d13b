"""``allmrec presets``: the settings of each preset, side by side."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from allmrec_jax.api.table import Table
from allmrec_jax.commands.options import Command, grouped
from allmrec_jax.commands.show import show
from allmrec_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from allmrec_jax.trained.kinds import TrainingKind

OTHERS = {
    "prepare": ("allmrec_jax.data.prepare:PRESETS", "how raw files become a data set"),
    "synthesize": ("allmrec_jax.embedded.synthetic:PRESETS", "the size and the noise of generated data"),
    "eval": ("allmrec_jax.inference.decode:PRESETS", "how titles are generated"),
}
"""Presets of what is not trained, by the name of the command."""


class Settings(Table[dict[str, Any]]):
    """Rows of cells as they are."""

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row itself."""
        return row

    def shown(self) -> list[dict[str, str]]:
        """Every cell as it would be typed."""
        return [{name: _typed(value) for name, value in row.items()} for row in self.rows]


@click.command("presets", cls=Command)
@click.argument("kind", required=False)
@grouped("Options", click.option("--json", "as_json", is_flag=True, help="Print JSON."))
def command(kind: str | None, as_json: bool) -> None:
    """Show the settings of each preset of KIND, side by side; without KIND, what has presets.

    \b
    Examples:
      allmrec presets
      allmrec presets stage2
      allmrec presets cf --json
    """
    from allmrec_jax.registry import named
    from allmrec_jax.trained.kinds import KINDS

    rows: list[dict[str, Any]]
    if kind is None:
        rows = [
            {"kind": kind_name, "presets": ", ".join(presets), "about": record.about}
            for name, record in KINDS.items()
            for kind_name, presets in _by_model(name, record)
        ]
        rows += [
            {"kind": name, "presets": ", ".join(named(where)), "about": about}
            for name, (where, about) in OTHERS.items()
        ]
        show(Settings(rows), as_json=as_json)
        return
    if kind not in KINDS and kind not in OTHERS:
        known = [*KINDS, *OTHERS]
        raise UserError(f"{kind} has no presets{did_you_mean(kind, known) or ';'} known: {', '.join(known)}")
    models: Mapping[str, Mapping[str, str]] = {}
    if kind in KINDS:
        presets, models = _flat(KINDS[kind].load_presets(), KINDS[kind].by_model), KINDS[kind].models
    else:
        presets = named(OTHERS[kind][0])
    rows = [
        {"setting": role, **{name: names.get(name) for name in presets}, "about": "the pretrained model"}
        for role, names in models.items()
    ]
    fields = {field.name: field for each in presets.values() for field in dataclasses.fields(each)}
    for name, field in fields.items():
        if "help" in field.metadata:
            values = {preset: getattr(each, name, None) for preset, each in presets.items()}
            rows.append({"setting": name, **values, "about": field.metadata["help"]})
    show(Settings(rows), as_json=as_json)


def _by_model(name: str, record: "TrainingKind") -> list[tuple[str, Mapping[str, Any]]]:
    presets = record.load_presets()
    return [(f"{name} --model {model}", of) for model, of in presets.items()] if record.by_model else [(name, presets)]


def _flat(presets: Mapping[str, Any], by_model: bool) -> Mapping[str, Any]:
    if not by_model:
        return presets
    return {f"{model} {name}": each for model, of_model in presets.items() for name, each in of_model.items()}


def _typed(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
