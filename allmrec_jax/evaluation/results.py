"""What an evaluation writes: ``users.parquet`` with every user's answers, ``results.json`` computed from it.

``users.parquet`` has a row per user, system and seed:

================== ================================================================================
``user``           index in the data set
``system``         name
``seed``           of the candidate file; in a table of several seeds, which share a file, of the trainings
``slices``         list: ``all``, and ``cold`` or ``warm`` where the target is such an item
``target``         item
``candidates``     list of items in displayed order
``scores``         list of float32, one per candidate
``rank``           of the target by ``scores``, 1 is best, ties against it
``catalogue_rank`` of the target among all items that the user has not met; null where a system scores candidates only
``generated``      text after the opening quote; null where a system generates nothing
``valid``          the text names exactly one candidate; null likewise, as are the next two
``strict``         and it is the target
``official``       the official code's substring test
================== ================================================================================

``results.json`` is the schema of :func:`write_results`. Every number in it can be computed again from the users alone:
``summarize(read_users(directory), pairs)``.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float, Int

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.embedded.synthetic import DOMAINS
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.intervals import bootstrap, paired_test
from allmrec_jax.fileio import atomic_path, read_json, sha256, write_json
from allmrec_jax.metrics import (
    CATALOGUE,
    GENERATION,
    RANKING,
    catalogue_metrics,
    official_hit,
    ranking_metrics,
    strict_choice,
    target_ranks,
)
from allmrec_jax.outputs import Output
from allmrec_jax.parquet import read_frame
from allmrec_jax.runs import machine

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1

RESULTS = Output("folder of results", signs=("results.json", "users.parquet"))
"""Where evaluations, tables and the demo write, file by file."""

SLICES = ("all", "warm", "cold")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one system answered to one candidate file.

    Attributes:
        system: its name.
        scores: of the displayed candidates.
        generated: text after the opening quote, per user; ``None`` for systems that generate nothing.
        titles: the candidates' titles as that system's prompts show them; needed with ``generated``.
        catalogue_ranks: of the targets among all items not met; ``None`` for systems that score candidates only.
    """

    system: str
    scores: Float[np.ndarray, "U K"]
    generated: Sequence[str] | None = None
    titles: Sequence[Sequence[str]] | None = None
    catalogue_ranks: Int[np.ndarray, "U"] | None = None


def users_frame(
    outcomes: Sequence[Outcome],
    users: Int[np.ndarray, "U"],
    targets: Int[np.ndarray, "U"],
    candidates: Int[np.ndarray, "U K"],
    slices: Mapping[str, Int[np.ndarray, "M"]],
    seed: int,
) -> "pl.DataFrame":
    """One row per user and system, in the layout described above.

    Args:
        outcomes: the systems' answers, all to the same candidates.
        users: index of each user.
        targets: the item to find.
        candidates: displayed items.
        slices: the items of each slice, e.g. ``{"cold": …, "warm": …}``.
        seed: of the candidate file.
    """
    import polars as pl

    columns = np.argmax(candidates == targets[:, None], axis=1)
    member = {name: np.isin(targets, items) for name, items in slices.items()}
    names = [["all", *(name for name in member if member[name][row])] for row in range(len(users))]
    frames = []
    for outcome in outcomes:
        scores = np.asarray(outcome.scores, np.float32)
        frames.append(
            pl.DataFrame(
                {
                    "user": users.astype(np.int32),
                    "system": pl.Series([outcome.system] * len(users), dtype=pl.String),
                    "seed": np.full(len(users), seed, np.int64),
                    "slices": pl.Series(names, dtype=pl.List(pl.String)),
                    "target": targets.astype(np.int32),
                    "candidates": pl.Series(candidates.tolist(), dtype=pl.List(pl.Int32)),
                    "scores": pl.Series(scores.tolist(), dtype=pl.List(pl.Float32)),
                    "rank": target_ranks(scores, columns).astype(np.int32),
                    "catalogue_rank": pl.Series(
                        [None] * len(users) if outcome.catalogue_ranks is None else outcome.catalogue_ranks,
                        dtype=pl.Int32,
                    ),
                    **_generation_columns(outcome, columns),
                }
            )
        )
    return pl.concat(frames)


def _generation_columns(outcome: Outcome, columns: Int[np.ndarray, "U"]) -> "dict[str, pl.Series]":
    import polars as pl

    rows: list[tuple[str | None, bool | None, bool | None, bool | None]]
    if outcome.generated is None:
        rows = [(None, None, None, None)] * len(columns)
    else:
        if outcome.titles is None:
            raise ValueError(f"{outcome.system}: generated texts need the titles that were displayed")
        rows = []
        for text, titles, column in zip(outcome.generated, outcome.titles, columns, strict=True):
            choice = strict_choice(text, titles)
            rows.append((text, choice is not None, choice == column, official_hit(text, titles[column])))
    types = {"generated": pl.String, "valid": pl.Boolean, "strict": pl.Boolean, "official": pl.Boolean}
    parts = zip(*rows, strict=True) if rows else ([], [], [], [])
    return {
        name: pl.Series(name, list(part), dtype=dtype) for (name, dtype), part in zip(types.items(), parts, strict=True)
    }


def summarize(
    frame: "pl.DataFrame", pairs: Sequence[tuple[str, str]] = (), *, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables of metrics with intervals, and of paired differences.

    A user who was asked under several seeds counts once, with the mean over seeds: intervals resample users. A system
    may have been asked about a part of the users only; it is then compared on these.

    Args:
        frame: of :func:`users_frame`, or several of them one under the other.
        pairs: systems ``(A, B)`` to compare by Hit@1. Where A also generates, ``"A, generated - B"`` compares its
            strict Hit@1 with B's ranking.
        seed: of the bootstrap.

    Returns:
        ``{system: {slice: {"n": users, metric: [value, low, high]}}}`` and ``{"A - B": {slice: [difference, low,
        high]}}``. Slices without users are left out.

    Raises:
        ValueError: systems were asked about different users, neither's among the other's.
    """
    asked = _asked(frame)
    systems: dict[str, Any] = {system: {} for system in asked}
    for system, (users, metrics) in asked.items():
        for name, inside in _slices(users):
            intervals = bootstrap(np.stack([row[inside] for row in metrics.values()], axis=1), seed=seed)
            systems[system][name] = {"n": int(inside.sum()), **dict(zip(metrics, intervals.tolist(), strict=True))}
    paired: dict[str, Any] = {}
    for key, users, difference in _differences(asked, pairs):
        paired[key] = {
            name: bootstrap(difference[inside, None], seed=seed)[0].tolist() for name, inside in _slices(users)
        }
    return systems, paired


def best_baseline(frame: "pl.DataFrame", baselines: Sequence[str]) -> str | None:
    """The one of ``baselines`` with the highest Hit@1 over the users whom it was asked about; ``None`` without any."""
    import polars as pl

    of_them = frame.filter(pl.col("system").is_in(list(baselines)))
    means = of_them.group_by("system", maintain_order=True).agg((pl.col("rank") == 1).mean().alias("hit"))
    return None if means.is_empty() else means["system"][int(means["hit"].arg_max() or 0)]


def significance(
    frame: "pl.DataFrame", pairs: Sequence[tuple[str, str]], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """p-values of the paired differences of :func:`summarize`, ``{"A - B": {slice: p}}``, for each test alone."""
    return {
        key: {name: paired_test(difference[inside], seed=seed) for name, inside in _slices(users)}
        for key, users, difference in _differences(_asked(frame), pairs)
    }


_Asked = dict[str, "tuple[pl.DataFrame, dict[str, np.ndarray]]"]


def _asked(frame: "pl.DataFrame") -> _Asked:
    """Each system's users and metrics; of two systems one has all users of the other."""
    asked = {system: _per_user(frame, system) for system in frame["system"].unique(maintain_order=True)}
    if not asked:
        raise ValueError("no system to summarize")
    largest, (everyone, _) = max(asked.items(), key=lambda item: len(item[1][0]))
    for system, (users, _) in asked.items():
        if not users.equals(everyone.filter(everyone["user"].is_in(users["user"].implode()))):
            raise ValueError(f"{system} and {largest} were asked about different users")
    return asked


def _slices(users: "pl.DataFrame") -> Iterator[tuple[str, np.ndarray]]:
    """The slices that have users, and which those are."""
    for name in SLICES:
        inside = users["slices"].list.contains(name).to_numpy()
        if inside.any():
            yield name, inside


def _differences(asked: _Asked, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, "pl.DataFrame", np.ndarray]]:
    """Each pair's name, the users that both were asked about, and the difference for each."""
    for first, second in pairs:
        (users, metrics), (others, base) = asked[first], asked[second]
        both = users.filter(users["user"].is_in(others["user"].implode()))
        ours, theirs = (every["user"].is_in(both["user"].implode()).to_numpy() for every in (users, others))
        for metric, name in (("hit@1", first), ("strict_hit@1", f"{first}, generated")):
            if metric in metrics:
                yield f"{name} - {second}", both, metrics[metric][ours] - base["hit@1"][theirs]


def _per_user(frame: "pl.DataFrame", system: str) -> "tuple[pl.DataFrame, dict[str, np.ndarray]]":
    """Users and their slices in order, and each metric's value per user (the mean over seeds)."""
    import polars as pl

    part = frame.filter(pl.col("system") == system)
    metrics = ranking_metrics(part["rank"].to_numpy())
    if "catalogue_rank" in part.columns and not part["catalogue_rank"].has_nulls():
        metrics |= catalogue_metrics(part["catalogue_rank"].to_numpy())
    generation = dict(zip(GENERATION, ("strict", "official", "valid"), strict=True))
    if not part["generated"].has_nulls():
        metrics |= {metric: part[column].cast(pl.Float64).to_numpy() for metric, column in generation.items()}
    keys = ["user", "slices"]
    mean = part.select(keys).with_columns(**{name: pl.Series(row) for name, row in metrics.items()})
    mean = mean.group_by(keys).agg(pl.col(list(metrics)).mean()).sort("user")
    return mean.select(keys), {name: mean[name].to_numpy() for name in metrics}


def data_record(dataset: Dataset) -> dict[str, Any]:
    """What ``results.json`` says of the data set: its name, hash and size, and whether ``synthesize`` generated it."""
    files = (dataset.manifest.get("source") or {}).get("files", ())
    named = {dataset.name, *(str(file).split(".")[0] for file in files)}
    return {
        "name": dataset.name,
        "hash": dataset.hash,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "generated": bool(named & {domain.name for domain in DOMAINS}),
    }


def write_results(
    directory: Path,
    frame: "pl.DataFrame",
    *,
    runs: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]] = (),
    baselines: Sequence[str] = (),
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``users.parquet`` and ``results.json``, each whole or not at all; returns the latter.

    Args:
        directory: made if absent.
        frame: every user's answers.
        runs: a dictionary ``{system, scenario, seed, id, candidates_sha}`` per system measured.
        data: see :func:`data_record`.
        pairs: see :func:`summarize`.
        baselines: the systems of others; every other system is also compared with the best of them.
        settings: of the evaluation.
        versions: of the libraries.
        times: seconds per system.

    Raises:
        UserError: the disk is full; what stood in the directory before is intact.
    """
    best = best_baseline(frame, baselines)
    if best is not None:
        others = [name for name in frame["system"].unique(maintain_order=True) if name != best]
        pairs = [*pairs, *((name, best) for name in others if not {(name, best), (best, name)} & set(pairs))]
    systems, paired = summarize(frame, pairs)
    tests = significance(frame, pairs)
    results = {
        "schema": SCHEMA,
        "data": dict(data),
        "runs": [dict(run) for run in runs],
        "systems": systems,
        "paired": paired,
        "tests": tests,
        "best_baseline": best,
        "settings": dict(settings),
        "versions": dict(versions),
        "machine": machine(),
        "times": dict(times),
    }
    return write_pair(directory, frame, results)


def write_pair(directory: Path, frame: "pl.DataFrame", results: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``users.parquet`` and ``results.json``, which holds the former's hash; returns the latter."""
    with atomic_path(directory / "users.parquet") as path:
        frame.write_parquet(path)
        pair = {**results, "users_sha256": sha256(path)}
    write_json(directory / "results.json", pair)
    return pair


class _Pair(TypedDict):
    users_sha256: NotRequired[str]


def check_pair(directory: Path) -> None:
    """Whether the ``users.parquet`` and the ``results.json`` of a directory, where both are there, are one pair.

    Raises:
        UserError: they are of two evaluations, or one is damaged.
    """
    path, beside = directory / "users.parquet", directory / "results.json"
    if path.is_file() and beside.is_file():
        expected = read_json(beside, _Pair, "run the evaluation again").get("users_sha256")
        if expected not in (None, sha256(path)):
            raise UserError(f"{path}: damaged, or of another evaluation than {beside}; run the evaluation again")


def read_users(directory: Path) -> "pl.DataFrame":
    """The ``users.parquet`` of an evaluation.

    Raises:
        UserError: it is missing or damaged, or not the one that the ``results.json`` beside it was computed from.
    """
    check_pair(directory)
    return read_frame(directory / "users.parquet", "run the evaluation again")


def table(systems: Mapping[str, Any]) -> str:
    """The metrics as a plain table: a line per system and slice, values only."""
    shown = [
        metric
        for metric in (*RANKING, *CATALOGUE, *GENERATION)
        if any(metric in row["all"] for row in systems.values())
    ]
    width = max(map(len, systems))
    lines = [f"{'system':<{width}}  slice      n  " + "  ".join(f"{_short(metric):>14}" for metric in shown)]
    for system, slices in systems.items():
        for name, row in slices.items():
            cells = "  ".join(f"{row[metric][0]:>14.3f}" if metric in row else f"{'':>14}" for metric in shown)
            lines.append(f"{system:<{width}}  {name:<5} {row['n']:>6}  {cells}")
    return "\n".join(lines)


def _short(metric: str) -> str:
    return metric.replace("catalogue_", "all ")
