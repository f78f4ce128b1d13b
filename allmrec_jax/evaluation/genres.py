"""The favourite-genre task (the paper's Figures 4 and 5): free text about a history, and how often it names the truth.

A user's true favourites are the :data:`FAVOURITES` genres that the items before the test item have most often; ties go
to the genre that the data set has more often, then by name. The text up to its closing quote, cut at commas, is what
was named. Per user and system:

================= =====================================================================================================
``genre_hit``     a named genre is among the favourites
``first_hit``     the first genre named is
``valid_ratio``   nothing but genres of the data set was named, and at least one
================= =====================================================================================================

``users.parquet`` has these beside ``user``, ``system``, ``seed``, ``slices`` (``all``), ``generated``, ``named`` and
``favourites``; ``results.json`` has the schema of :mod:`allmrec_jax.evaluation.results` with these metrics, and
``examples``.

Shapes: U users, N items.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allmrec_jax.data.candidates import Candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.intervals import bootstrap, paired_test
from allmrec_jax.evaluation.results import SCHEMA, write_pair
from allmrec_jax.markdown import escaped
from allmrec_jax.runs import machine

if TYPE_CHECKING:
    import polars as pl

FAVOURITES = 3
"""Genres of a user that count as true."""

EVERYWHERE = 0.95
"""A category on so large a share of the items says nothing of taste (``Movies``) and is no genre."""

DESCRIBED = 0.5
"""Share of the items that must have a genre for users to be asked about theirs."""

METRICS = ("genre_hit", "first_hit", "valid_ratio")

MAJORITY = "Majority genre"
MAJORITY_THREE = f"{FAVOURITES} most frequent genres"


@dataclasses.dataclass(frozen=True)
class Genres:
    """The genres of a data set.

    Attributes:
        items: [N+1], those of each item.
        counts: in how many items' training interactions each occurs, the most frequent first.
    """

    items: list[tuple[str, ...]]
    counts: dict[str, int]

    @classmethod
    def of(cls, dataset: Dataset) -> "Genres":
        """The data set's categories, without those that are everywhere.

        Raises:
            UserError: too few items have any, or there are no two different ones.
        """
        described = sum(bool(row) for row in dataset.categories[1:])
        occurs = Counter(genre for row in dataset.categories[1:] for genre in set(row))
        kept = {genre for genre, count in occurs.items() if count < EVERYWHERE * max(described, 1)}
        items = [tuple(dict.fromkeys(genre for genre in row if genre in kept)) for row in dataset.categories]
        told = sum(bool(row) for row in items[1:])
        if len(kept) < 2 or told < DESCRIBED * dataset.num_items:
            raise UserError(
                f"{dataset.path}: {told:,} of {dataset.num_items:,} items have a genre (a category that not all items "
                "share); the favourite-genre task needs them for at least half: prepare the data with its categories"
            )
        weights: Counter[str] = Counter()
        for row, count in zip(items, dataset.train_count.tolist(), strict=True):
            for genre in row:
                weights[genre] += count
        return cls(items, dict(sorted(weights.items(), key=lambda entry: (-entry[1], entry[0]))))

    def favourites(self, dataset: Dataset, asked: Candidates) -> list[list[str]]:
        """Of each user asked about, from all items before the target."""
        width = int(dataset.lengths[asked.users].max())
        histories, _ = dataset.history(asked.users, asked.cut, width)
        place = {genre: number for number, genre in enumerate(self.counts)}
        found = []
        for row in histories:
            own = Counter(genre for item in row[row > 0] for genre in self.items[item])
            found.append(sorted(own, key=lambda genre: (-own[genre], place[genre]))[:FAVOURITES])
        return found

    def named(self, text: str) -> tuple[list[str], bool]:
        """The genres that a generated text names, in its order, and whether it names nothing else."""
        known = {genre.casefold(): genre for genre in self.counts}
        parts = [part.strip().casefold() for part in text.split('"')[0].split(",")]
        genres = [known[part] for part in parts if part in known]
        return list(dict.fromkeys(genres)), bool(genres) and len(genres) == len(parts)


def genre_frame(
    genres: Genres, system: str, seed: int, users: np.ndarray, favourites: Sequence[list[str]], texts: Sequence[str]
) -> "pl.DataFrame":
    """One row per user, see the head of this module."""
    import polars as pl

    named, valid = zip(*map(genres.named, texts), strict=True)
    pairs = list(zip(named, favourites, strict=True))
    return pl.DataFrame(
        {
            "user": users.astype(np.int32),
            "system": pl.Series([system] * len(users), dtype=pl.String),
            "seed": np.full(len(users), seed, np.int64),
            "slices": pl.Series([["all"]] * len(users), dtype=pl.List(pl.String)),
            "generated": pl.Series(list(texts), dtype=pl.String),
            "named": pl.Series(list(named), dtype=pl.List(pl.String)),
            "favourites": pl.Series(list(favourites), dtype=pl.List(pl.String)),
            "genre_hit": [bool(set(ours) & set(theirs)) for ours, theirs in pairs],
            "first_hit": [bool(ours) and ours[0] in theirs for ours, theirs in pairs],
            "valid_ratio": list(valid),
        }
    )


def baselines(genres: Genres, users: np.ndarray, favourites: Sequence[list[str]]) -> "list[pl.DataFrame]":
    """Naming the genre, or the three, that training has most often, whoever is asked about."""
    most = list(genres.counts)
    texts = {MAJORITY: most[0], MAJORITY_THREE: ", ".join(most[:FAVOURITES])}
    return [genre_frame(genres, name, 0, users, favourites, [text] * len(users)) for name, text in texts.items()]


def summarize_genres(
    frame: "pl.DataFrame", pairs: Sequence[tuple[str, str]], *, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tables of metrics with intervals, of paired differences of ``genre_hit``, and of their p-values.

    A user who was asked under several seeds counts once, with the mean over seeds.
    """
    import polars as pl

    def per_user(system: str) -> "pl.DataFrame":
        part = frame.filter(pl.col("system") == system)
        return part.group_by("user").agg(pl.col(METRICS).cast(pl.Float64).mean()).sort("user")

    asked = {system: per_user(system) for system in frame["system"].unique(maintain_order=True)}
    systems = {}
    for system, rows in asked.items():
        intervals = bootstrap(rows.select(METRICS).to_numpy(), seed=seed).tolist()
        systems[system] = {"all": {"n": len(rows), **dict(zip(METRICS, intervals, strict=True))}}
    paired, tests = {}, {}
    for first, second in pairs:
        both = asked[first].join(asked[second], on="user", suffix="_other")
        difference = (both["genre_hit"] - both["genre_hit_other"]).to_numpy()
        paired[f"{first} - {second}"] = {"all": bootstrap(difference[:, None], seed=seed)[0].tolist()}
        tests[f"{first} - {second}"] = {"all": paired_test(difference, seed=seed)}
    return systems, paired, tests


def examples(frame: "pl.DataFrame", dataset: Dataset, asked: Candidates, count: int = 8) -> list[dict[str, Any]]:
    """What was said of the first users: their last titles, their favourites and every system's text."""
    found = []
    for user in asked.users[:count].tolist():
        rows = frame.filter(frame["user"] == user).unique("system", keep="first", maintain_order=True)
        history, _ = dataset.history(np.array([user]), asked.cut, 6)
        found.append(
            {
                "user": user,
                "history": [dataset.titles[item] for item in history[0] if item],
                "favourites": rows["favourites"][0].to_list(),
                "said": dict(zip(rows["system"].to_list(), rows["generated"].to_list(), strict=True)),
            }
        )
    return found


def write_genres(
    directory: Path,
    frame: "pl.DataFrame",
    dataset: Dataset,
    asked: Candidates,
    *,
    pairs: Sequence[tuple[str, str]],
    **about: Any,
) -> dict[str, Any]:
    """Writes ``users.parquet`` and ``results.json``; returns the latter.

    Args:
        directory: made if absent.
        frame: of :func:`genre_frame`, all systems'.
        dataset: whose users were asked about.
        asked: which of them.
        pairs: systems ``(A, B)`` to compare by ``genre_hit``.
        about: further entries of ``results.json``.
    """
    systems, paired, tests = summarize_genres(frame, pairs)
    results = {
        "schema": SCHEMA,
        "metrics": list(METRICS),
        "systems": systems,
        "paired": paired,
        "tests": tests,
        "examples": examples(frame, dataset, asked),
        "machine": machine(),
        **about,
    }
    return write_pair(directory, frame, results)


def genre_markdown(results: Mapping[str, Any], title: str) -> str:
    """The table of a genre task and its examples, from ``results.json`` alone."""
    heads = ["System", "Users", "Among the true three", "First named", "Valid", f"Minus {MAJORITY}", "p"]
    lines = [f"# {title}", "", _asked(results), "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, row in results["systems"].items():
        value, low, high = row["all"]["genre_hit"]
        pair = f"{name} - {MAJORITY}"
        paired, p = results["paired"].get(pair), results["tests"].get(pair)
        difference = "" if paired is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*paired["all"])
        cells = [escaped(name), f"{row['all']['n']:,}", f"{value:.3f} ({low:.3f}–{high:.3f})"]
        cells += [f"{row['all'][metric][0]:.3f}" for metric in ("first_hit", "valid_ratio")]
        cells += [difference, "" if p is None else "<0.001" if p["all"] < 0.001 else f"{p['all']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for each in results["examples"]:
        lines += ["", f"## User {each['user']}", "", f"History: {escaped('; '.join(each['history']))}", ""]
        lines += [f"True favourites: {escaped(', '.join(each['favourites']))}", ""]
        lines += [f"- {escaped(name)}: {escaped(text)}" for name, text in each["said"].items() if text is not None]
    return "\n".join([*lines, ""])


def _asked(results: Mapping[str, Any]) -> str:
    data = results["data"]
    return (
        f"Data set {escaped(data['name'])} (hash {data['hash'][:12]}). Behind the history stands "
        f"`{results['settings']['question'].strip()}`. True favourites: the {FAVOURITES} genres that a user's items "
        "have most often. Valid: nothing but genres was named."
    )
