"""Both sides of every component under the tolerances: rows with verdicts, the self-test, JSON, a table, a plot.

Shapes: B batch.
"""

import contextlib
import dataclasses
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np

from allmrec_jax.fileio import atomic_path, write_text
from allmrec_jax.parity.alterations import ALTERATIONS
from allmrec_jax.parity.ours import DRAWING, OURS
from allmrec_jax.parity.reference import Outputs, Reference, RefusedError, Steps
from allmrec_jax.parity.tolerances import EXCLUDED, KEY_PART_OF_PACKED_BIAS, TOLERANCES, Kind
from allmrec_jax.runs import versions

Verdict = Literal["passed", "partial", "failed"]

PRECISION = "highest"
"""Of our matrix products: float32 throughout. By default JAX lets a GPU from Ampere on multiply in TF32, which keeps 10
bits of a float's 23: relative errors near 1e-3, a hundred times the tolerance on forward passes."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One compared tensor.

    Attributes:
        name: its kind, and what it is.
        shape: of both sides.
        absolute: max |a - b|, ours a, the reference's b.
        relative: what the tolerance bounds: max |a - b| / max |b|; for final parameters |a - b| / |b| in L2; for whole
            numbers the share that differs.
        tolerance: the bound.
    """

    name: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Not for a NaN."""
        return self.relative <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Row:
    """One component against one reference on one device.

    Attributes:
        stood_in: what of the reference was replaced; makes a row that holds *partial*.
        precision: of our matrix products, as JAX was told.
        losses: of a training: ours and the reference's.
    """

    component: str
    reference: str
    device: str
    file: str
    sha256: str
    stood_in: str
    precision: str
    tensors: tuple[Tensor, ...]
    losses: tuple[list[float], list[float]] | None = None

    @property
    def verdict(self) -> Verdict:
        """``failed`` if any tensor does."""
        if not all(tensor.passed for tensor in self.tensors):
            return "failed"
        return "partial" if self.stood_in else "passed"

    @property
    def worst(self) -> Tensor:
        """The tensor nearest to its tolerance or furthest beyond."""
        return max(self.tensors, key=_strain)


def _strain(tensor: Tensor) -> float:
    if np.isnan(tensor.relative):
        return np.inf
    return tensor.relative / tensor.tolerance if tensor.tolerance else tensor.relative * 1e30


def compare(reference: Reference, component: str, steps: Steps, device: jax.Device) -> Row:
    """One row: our outputs on ``device``, in full float32 precision, against the reference's."""
    source = reference.source(component)
    with _computing(device) as precision:
        if component in DRAWING:
            ours, drawn = DRAWING[component](steps)
            try:
                theirs = reference.replay(component, drawn)
            except RefusedError as refused:
                ours, theirs = {f"exact/{refused}": np.ones(1)}, {f"exact/{refused}": np.zeros(1)}
        else:
            theirs = reference.outputs(component)
            ours = OURS[component](theirs)
    return Row(
        component,
        reference.name,
        device.platform,
        source.file,
        source.sha256,
        source.stood_in,
        precision,
        tuple(_tensors(reference.select(ours), theirs)),
        (ours["curve/loss"].tolist(), theirs["curve/loss"].tolist()) if "curve/loss" in theirs else None,
    )


@contextlib.contextmanager
def _computing(device: jax.Device) -> Iterator[str]:
    """On ``device`` in :data:`PRECISION`, in all threads: the product's samplers run in one of their own.

    Yields:
        the precision, as JAX has it.
    """
    settings = {"jax_default_device": device, "jax_default_matmul_precision": PRECISION}
    before = _config(settings)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield str(_config(settings)["jax_default_matmul_precision"])
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _config(names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in names}


def _tensors(ours: Outputs, theirs: Outputs) -> Iterator[Tensor]:
    names = [name for name in theirs if not name.startswith("input/")]
    if missing := [name for name in sorted(set(names) ^ set(ours)) if not name.endswith(EXCLUDED)]:
        raise RuntimeError(f"only one side computes {', '.join(missing)}")
    for name in names:
        kind = cast(Kind, name.partition("/")[0])
        a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
        if kind in ("gradient", "final") and name.endswith(EXCLUDED):
            continue
        if kind == "final" and name.endswith(KEY_PART_OF_PACKED_BIAS):
            a, b = _without_keys(a), _without_keys(b)
        absolute, relative = _distance(a, b, kind)
        yield Tensor(name, np.shape(theirs[name]), absolute, relative, TOLERANCES[kind].value)


def _without_keys(bias: np.ndarray) -> np.ndarray:
    query, _, value = np.split(bias, 3)
    return np.concatenate([query, value])


def _distance(a: np.ndarray, b: np.ndarray, kind: Kind) -> tuple[float, float]:
    """max |a - b|, and the measure that the kind's tolerance bounds; a wrong shape is infinitely far."""
    if a.shape != b.shape:
        return np.inf, np.inf
    difference = np.abs(a - b)
    absolute = float(difference.max(initial=0.0))
    if kind == "exact":
        return absolute, float((difference > 0).mean())
    size = np.linalg.norm(b) if kind == "final" else np.abs(b).max(initial=0.0)
    part = np.linalg.norm(a - b) if kind == "final" else absolute
    return absolute, float(part / size) if size else float(np.where(part == 0, 0.0, np.inf))


@dataclasses.dataclass(frozen=True)
class Altered:
    """What became of a row when our side was altered; ``red`` is what the self-test asks for."""

    component: str
    reference: str
    alteration: str
    red: bool
    worst: Tensor


def selftest(references: Iterable[Reference], components: Sequence[str], steps: Steps) -> Iterator[Altered]:
    """Each alteration of each component that a reference has, against the first one."""
    owners: dict[str, Reference] = {}
    for reference in references:
        for component in reference.components():
            owners.setdefault(component, reference)
    for component in components:
        if component not in owners:
            continue
        reference = owners[component]
        for alteration in ALTERATIONS[component]:
            if component in OURS:
                reference.outputs(component)  # before anything is altered
            with alteration.made():
                row = compare(reference, component, steps, jax.devices("cpu")[0])
            yield Altered(component, reference.name, alteration.what, row.verdict == "failed", row.worst)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that was compared.

    Attributes:
        rows: one for each component, reference and device.
        altered: what the self-test found, if it was asked for.
        steps: lengths of the trainings.
    """

    rows: tuple[Row, ...]
    altered: tuple[Altered, ...]
    steps: Steps

    @property
    def holds(self) -> bool:
        """Whether no row failed, and every alteration turned its row red."""
        return all(row.verdict != "failed" for row in self.rows) and all(one.red for one in self.altered)

    def markdown(self) -> str:
        """A table with a line for each row."""
        return markdown(self.rows)

    def write(self, out: Path) -> None:
        """Writes ``parity.json`` and ``parity.md`` with every tensor, and ``parity.png``, the trainings' losses."""
        write_text(out / "parity.json", json.dumps(report(self.rows, self.altered, self.steps), indent=1) + "\n")
        write_text(out / "parity.md", markdown(self.rows, every=True) + "\n")
        with atomic_path(out / "parity.png") as sibling:
            plot(sibling, self.rows)


def report(rows: Sequence[Row], altered: Sequence[Altered], steps: Steps) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "rows": [
            {
                **dataclasses.asdict(row),
                "verdict": row.verdict,
                "tensors": [dataclasses.asdict(tensor) | {"passed": tensor.passed} for tensor in row.tensors],
            }
            for row in rows
        ],
        "selftest": [dataclasses.asdict(one) for one in altered],
        "steps": steps._asdict(),
        "tolerances": {kind: tolerance._asdict() for kind, tolerance in TOLERANCES.items()},
        "versions": versions() | _torch_versions(),
        "platform": platform.platform(),
    }


def _torch_versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("torch", "sentence-transformers")}


def markdown(rows: Sequence[Row], *, every: bool = False) -> str:
    """The table: a line for each row with its worst tensor, or with ``every`` one for each tensor."""
    lines = [
        "| component | compared with | SHA-256 | tensors | tensor, shape | max \\|a−b\\| | relative | tolerance "
        "| verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for tensor in row.tensors if every else (row.worst,):
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            verdict = row.verdict if tensor.passed or not every else "failed"
            lines.append(
                f"| {row.component} | {row.reference}: {row.file} | {row.sha256[:12]} | {len(row.tensors)} "
                f"| {tensor.name}, {shape} | {tensor.absolute:.1e} | {tensor.relative:.1e} | {tensor.tolerance:.0e} "
                f"| {verdict} |"
            )
    return "\n".join(lines)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Both sides' losses over each other for every training among ``rows``, and their differences below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    trainings = [row for row in rows if row.losses is not None]
    figure, axes = plt.subplots(2, max(len(trainings), 1), figsize=(4 * len(trainings) + 1, 5), squeeze=False)
    for column, row in enumerate(trainings):
        ours, theirs = np.asarray(row.losses)
        axes[0, column].plot(theirs, color="#bbbbbb", linewidth=4, label=row.reference)
        axes[0, column].plot(ours, color="#0044aa", linewidth=1, label="allmrec-jax")
        axes[0, column].set(title=row.component, ylabel="loss")
        axes[0, column].legend(frameon=False)
        axes[1, column].semilogy(np.maximum(np.abs(ours - theirs), 1e-9), color="#aa3300")
        axes[1, column].set(xlabel="step", ylabel="|difference|")
    figure.tight_layout()
    figure.savefig(path, dpi=100, format="png")
    plt.close(figure)
