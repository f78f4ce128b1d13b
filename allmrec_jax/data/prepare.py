"""Raw files to a data set: which interactions count, who stays, in which order, and what an item's text is."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from allmrec_jax.data.cleaning import clean_text
from allmrec_jax.data.dataset import DATA_SET, NO_TITLE, ColdUsers, Dataset, replace_dataset
from allmrec_jax.data.readers.reading import Reading, Source
from allmrec_jax.data.readers.sources import read_source
from allmrec_jax.data.readers.times import SECONDS, unit_of
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import plain_name
from allmrec_jax.settings import resolve, setting

RATED_POSITIVE = ("Luxury_Beauty", "Toys_and_Games")
"""Where the paper and the official code look at ratings, and ask for 4 interactions in place of 5."""

MAX_LISTED = 1000
"""Bad lines that the manifest lists at most."""

LEAST_KNOWN = 0.05
"""Share of the items that must be in the metadata, and have a title, for the two files to belong together."""

FIVE_STARS = 5


@dataclass(frozen=True)
class PrepareSettings:
    """Every choice between raw lines and a data set."""

    rating_rule: str = setting(
        "auto",
        "which ratings count: all, or a bound such as '>3' or '>=4'; auto: all, but for Luxury_Beauty and "
        "Toys_and_Games '>3' (official: '>=3')",
    )
    rating_use: Literal["filter", "count"] = setting(
        "filter",
        "filter: other ratings are dropped; count: they are only left out where interactions are counted",
    )
    duplicates: Literal["keep", "exact", "first", "last"] = setting(
        "first",
        "interactions of a user with the same item: keep all, drop those at the same time, keep the first or the last",
    )
    min_user: int | None = setting(
        None, "fewest interactions of a user; if not given 5, for Luxury_Beauty and Toys_and_Games 4"
    )
    min_item: int | None = setting(None, "fewest interactions of an item; if not given as min_user")
    core: Literal["iterated", "once"] = setting(
        "iterated", "apply both until nothing more falls below, or once (some users and items then end up below)"
    )
    ties: Literal["file", "item"] = setting("file", "interactions at the same time: in file order, or by item id")
    description: Literal["joined", "first"] = setting(
        "joined", "of a list of descriptions: all joined by blanks, or the first (an empty list: 'Empty description')"
    )
    missing_title: Literal["placeholder", "drop", "error"] = setting(
        "placeholder", "an item without a title: 'No Title', or dropped with its interactions, or an error"
    )
    title_needs_description: bool = setting(False, "an item without a description loses its title too")
    clean_text: bool = setting(
        True, "strip HTML tags and entities and runs of white space from titles and descriptions"
    )
    slice_fraction: float = setting(0.35, "share of the items in each of the cold and the warm slice")


PAPER = PrepareSettings()

PRESETS = {
    "paper": PAPER,
    "official": replace(
        PAPER,
        rating_use="count",
        duplicates="keep",
        core="once",
        description="first",
        title_needs_description=True,
        clean_text=False,
    ),
}
"""``official`` does what ``data_preprocess.py`` of the authors' repository does, its oversights included."""


def prepare(
    source: Path,
    out: Path,
    preset: str = "paper",
    *,
    kind: str | None = None,
    items: Path | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    max_bad_lines: int = 100,
    progress: Callable[[Path, int, int], None] = lambda path, done, total: None,
    **overrides: Any,
) -> Dataset:
    """Make a data set of raw files.

    Args:
        source: a file or directory of any kind in :data:`allmrec_jax.data.readers.sources.READERS`.
        out: the data set's directory. A data set that is there already is replaced when all is done; one of the same
            content keeps what else lies in it (candidate files).
        preset: a name of :data:`PRESETS`; ``overrides`` replace single settings of it.
        kind: what the source is; recognised where absent.
        items: the file of item metadata where it is not beside the interactions.
        columns: for tables: what the columns are called.
        name: of the data set; that of the source where absent.
        max_bad_lines: bad lines that are skipped; one more is an error.
        progress: see :class:`allmrec_jax.data.readers.reading.Reading`.

    Raises:
        UserError: the source is missing or bad, nothing is left of it, or ``out`` is no data set or cannot be written.
    """
    source, out = Path(source), Path(out)
    settings = resolve(PRESETS, preset, overrides)
    DATA_SET.check(out)
    reading = Reading(max_bad_lines, progress)
    raw = read_source(source, reading, kind=kind, items=items, columns=columns)
    name = plain_name(_decoded(name or raw.name), "--name")
    has_ratings = raw.interactions["rating"].null_count() < raw.interactions.height
    settings = _for_data(settings, name, preset, has_ratings=has_ratings)
    arrays, counts = _apply(raw, settings, reading)
    first_bad = [f"{Path(file).name}: {where}: {what}" for file, where, what in reading.bad_lines[:MAX_LISTED]]
    manifest = {
        "source": {
            "kind": raw.kind,
            "files": [_decoded(path.name) for path in raw.files],
            "taken": [asdict(taken) | {"file": _decoded(taken.file)} for taken in reading.taken],
            "times": _unit(raw, reading),
            "remarks": [_decoded(remark) for remark in reading.remarks],
        },
        "preset": preset,
        "settings": asdict(settings),
        "counts": counts,
        "warnings": [_decoded(warning) for warning in reading.warnings],
        "bad_lines": {"count": len(reading.bad_lines), "first": [_decoded(line) for line in first_bad]},
        "versions": {"polars": pl.__version__, "numpy": np.__version__},
    }
    return replace_dataset(out, name=name, slice_fraction=settings.slice_fraction, manifest=manifest, **arrays)


def k_core(
    users: np.ndarray,
    items: np.ndarray,
    min_user: int,
    min_item: int,
    *,
    iterated: bool,
    counted: np.ndarray | None = None,
) -> np.ndarray:
    """Which of the interactions [M] stay when users and items with too few are dropped.

    Args:
        users: user code of each interaction; ``items`` likewise.
        iterated: repeat until nothing falls below the thresholds any more; else one pass over both at once.
        counted: bool [M]: only these interactions count (but all of those that stay do stay).
    """
    kept = np.ones(len(users), bool)
    while True:
        rows = kept if counted is None else kept & counted
        enough_users = np.bincount(users[rows], minlength=users.max(initial=0) + 1) >= min_user
        enough_items = np.bincount(items[rows], minlength=items.max(initial=0) + 1) >= min_item
        still = kept & enough_users[users] & enough_items[items]
        if not iterated or still.sum() == kept.sum():
            return still
        kept = still


def _for_data(settings: PrepareSettings, name: str, preset: str, *, has_ratings: bool) -> PrepareSettings:
    """The settings with what depends on the data set's name filled in, and checked."""
    rated = name in RATED_POSITIVE
    rule = settings.rating_rule
    if rule == "auto":
        rule = {"paper": ">3", "official": ">=3"}[preset] if rated and has_ratings else "all"
    elif rule != "all":
        _bound(rule)
        if not has_ratings:
            raise UserError(f"--rating-rule {rule}: the source has no ratings; use all")
    min_user = settings.min_user if settings.min_user is not None else 4 if rated else 5
    min_item = settings.min_item if settings.min_item is not None else min_user
    for flag, value in (("--min-user", min_user), ("--min-item", min_item)):
        if value < 1:
            raise UserError(f"{flag}: {value} should be at least 1")
    if not 0 < settings.slice_fraction <= 0.5:
        raise UserError(f"--slice-fraction: {settings.slice_fraction} should be above 0 and at most 0.5")
    return replace(settings, rating_rule=rule, min_user=min_user, min_item=min_item)


def _bound(rule: str) -> tuple[bool, float]:
    """Whether the bound itself is out, and the bound: ``">3"`` → (True, 3.0)."""
    found = re.fullmatch(r"(>=?)\s*(\d+(?:\.\d+)?)", rule)
    if not found:
        raise UserError(f"--rating-rule: {rule!r} should be all, auto, or a bound such as '>3' or '>=4'")
    return found[1] == ">", float(found[2])


def _apply(raw: Source, settings: PrepareSettings, reading: Reading) -> tuple[dict[str, Any], dict[str, int]]:
    """The arguments of :func:`write_dataset`, and counts of what happened on the way."""
    frame, users_raw, items_raw = _ordered_codes(raw.interactions, settings)
    counts = {"interactions_read": frame.height, "users_read": len(users_raw), "items_read": len(items_raw)}
    _look_at_ratings(raw, settings, reading, counts)
    if settings.rating_use == "filter":
        frame = frame.filter("positive")
        counts["dropped_by_rating"] = counts["interactions_read"] - frame.height
    before = frame.height
    frame = _without_duplicates(frame, settings.duplicates)
    counts["dropped_as_duplicates"] = before - frame.height
    if raw.interactions["time"].null_count() == 0:
        counts["ties"] = int(((frame["user"].diff() == 0) & (frame["time"].diff() == 0)).sum())

    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    positive = frame["positive"].to_numpy() if settings.rating_use == "count" else None
    banned = np.zeros(len(items_raw), bool)
    table = None
    while True:
        kept = _kept(users, items, positive, banned, settings)
        if not kept.any():
            raise UserError(_nothing_left(raw, settings, users, items))
        kept_items = np.unique(items[kept])
        if table is None:  # what is kept only shrinks, so one reading serves every round
            table = raw.read_items(items_raw[kept_items])
            _check_metadata(raw, items_raw[kept_items], table, reading)
        texts = _item_texts(table, items_raw[kept_items], settings)
        untitled = np.array([not title for title in texts["titles"]])
        if settings.missing_title == "placeholder" or not untitled.any():
            break
        if settings.missing_title == "error":
            first = items_raw[int(kept_items[untitled][0])]
            raise UserError(
                f"{raw.files[-1]}: item {first!r} has no title, nor have {untitled.sum() - 1} others; "
                "use --missing-title placeholder or drop"
            )
        banned[kept_items[untitled]] = True
    _check_titles(raw, untitled, reading)
    counts["items_without_title"] = int(untitled.sum())
    counts["items_without_description"] = sum(not text for text in texts["descriptions"])
    counts["dropped_without_title"] = int(banned.sum())

    number = np.zeros(len(items_raw), np.int32)
    number[kept_items] = np.arange(1, len(kept_items) + 1)
    kept_users, lengths = np.unique(users[kept], return_counts=True)
    times = frame["time"].to_numpy()[kept] if raw.interactions["time"].null_count() == 0 else None
    arrays = {
        "items": number[items[kept]],
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "timestamps": None if times is None else np.floor(times).astype(np.int64),
        "users_raw": users_raw[kept_users].to_list(),
        "items_raw": items_raw[kept_items].to_list(),
        "cold_users": _cold_users(users, items, kept, number, users_raw),
        **texts,
        "titles": [title or NO_TITLE for title in texts["titles"]],
    }
    return arrays, counts


def _ordered_codes(interactions: pl.DataFrame, settings: PrepareSettings) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """User, item (numbered by first appearance), time and positive; ordered by user, then time, then the tie rule."""
    rule = settings.rating_rule
    if rule == "all":
        positive = pl.lit(True)
    else:
        strict, bound = _bound(rule)
        positive = (pl.col("rating") > bound if strict else pl.col("rating") >= bound).fill_null(False)
    user_codes, users_raw = _encode(interactions["user"])
    item_codes, items_raw = _encode(interactions["item"])
    frame = interactions.select("time", positive=positive).with_columns(user_codes, item_codes)
    keys = ["user", "time"]
    if settings.ties == "item":
        rank = items_raw.rank("ordinal")
        frame = frame.with_columns(rank=rank.gather(frame["item"]))
        keys.append("rank")
    return frame.sort(keys, maintain_order=True), users_raw, items_raw


def _encode(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Each value's number by first appearance, and the values in that order."""
    distinct = values.unique(maintain_order=True)
    numbers = pl.DataFrame({values.name: distinct}).with_row_index("code")
    codes = values.to_frame().join(numbers, on=values.name, how="left", maintain_order="left")["code"]
    return codes.cast(pl.Int64).alias(values.name), distinct


def _without_duplicates(frame: pl.DataFrame, rule: str) -> pl.DataFrame:
    if rule == "keep":
        return frame
    if rule != "exact":
        return frame.unique(["user", "item"], keep=rule, maintain_order=True)  # type: ignore[arg-type]
    if frame["time"].null_count():
        return frame
    return frame.unique(["user", "item", "time"], keep="first", maintain_order=True)


def _kept(
    users: np.ndarray, items: np.ndarray, positive: np.ndarray | None, banned: np.ndarray, settings: PrepareSettings
) -> np.ndarray:
    allowed = ~banned[items]
    kept = np.zeros(len(users), bool)
    kept[allowed] = k_core(
        users[allowed],
        items[allowed],
        settings.min_user or 1,
        settings.min_item or 1,
        iterated=settings.core == "iterated",
        counted=None if positive is None else positive[allowed],
    )
    return kept


def _nothing_left(raw: Source, settings: PrepareSettings, users: np.ndarray, items: np.ndarray) -> str:
    most_user, most_item = np.bincount(users).max(initial=0), np.bincount(items).max(initial=0)
    return (
        f"{raw.files[0]}: no user left after filtering (--rating-rule {settings.rating_rule}, --min-user "
        f"{settings.min_user}, --min-item {settings.min_item}, --core {settings.core}): before it the longest history "
        f"has {most_user} interactions and the most frequent item {most_item}; lower the thresholds"
    )


def _cold_users(
    users: np.ndarray, items: np.ndarray, kept: np.ndarray, number: np.ndarray, users_raw: pl.Series
) -> ColdUsers:
    """Users of exactly three interactions, none of them kept, all with items that are."""
    lengths = np.bincount(users, minlength=len(users_raw))
    dropped = (lengths == 3) & (np.bincount(users[kept], minlength=len(users_raw)) == 0)
    known = np.bincount(users[number[items] > 0], minlength=len(users_raw)) == 3
    chosen = np.flatnonzero(dropped & known)
    rows = np.isin(users, chosen)
    return ColdUsers(number[items[rows]], np.arange(0, 3 * len(chosen) + 1, 3), users_raw[chosen].to_list())


def _item_texts(table: pl.DataFrame, wanted: pl.Series, settings: PrepareSettings) -> dict[str, list]:
    """Titles and descriptions (empty where there is none), brands and categories, in the order of the wanted items."""
    rows = wanted.alias("item").to_frame().join(table, on="item", how="left", maintain_order="left")
    clean = clean_text if settings.clean_text else str
    titles, descriptions = [], []
    for title, parts in rows.select("title", "description").iter_rows():
        lost = parts is None and settings.title_needs_description
        titles.append("" if lost or title is None or not title.strip() else clean(title))
        if settings.description == "joined":
            descriptions.append(clean(" ".join(part for part in parts or [] if part)))
        else:
            descriptions.append("" if parts is None else clean(parts[0]) if parts else "Empty description")
    return {
        "titles": titles,
        "descriptions": descriptions,
        "brands": rows["brand"].fill_null("").to_list(),
        "categories": [values or [] for values in rows["categories"].to_list()],
    }


def _look_at_ratings(raw: Source, settings: PrepareSettings, reading: Reading, counts: dict[str, int]) -> None:
    ratings = raw.interactions["rating"].drop_nulls().to_numpy()
    unrated = raw.interactions.height - len(ratings)
    if not len(ratings):
        return
    if unrated:
        counts["interactions_without_rating"] = unrated
    if settings.rating_rule == "all":
        return
    if unrated:
        what = f"{unrated:,} interactions have no rating and do not count under --rating-rule {settings.rating_rule!r}"
        reading.warn(raw.files[0], f"{what}; all keeps them")
    if (most := ratings.max()) > FIVE_STARS:
        what = f"ratings go up to {most:g}: is --rating-rule {settings.rating_rule!r} meant for that scale?"
        reading.warn(raw.files[0], what)


def _check_metadata(raw: Source, wanted: pl.Series, table: pl.DataFrame, reading: Reading) -> None:
    """An error where next to none of the items is in the metadata: the ids are then written differently."""
    if table.height >= LEAST_KNOWN * len(wanted):
        return
    missing = wanted.filter(~wanted.is_in(table["item"].implode()))[0]
    raise UserError(
        f"{raw.files[-1]}: describes {table.height} of the {len(wanted)} items of {raw.files[0].name}, whose ids look "
        f"like {missing!r} there and like {reading.described_item!r} here; write the ids alike in both"
        + (", or name the columns that hold them (--columns item=…,key=…)" if raw.kind == "table" else "")
    )


def _check_titles(raw: Source, untitled: np.ndarray, reading: Reading) -> None:
    """An error where next to no item has a title: nothing can be recommended by title then."""
    file, titled = raw.files[-1], int((~untitled).sum())
    if titled < LEAST_KNOWN * len(untitled):
        aside = [column for taken in reading.taken if taken.file == file.name for column in taken.aside]
        ways = ["name the column of titles with --columns title=…"] if raw.kind == "table" else []
        if raw.kind != "table" or len(raw.files) == 1:
            ways.append("give a table of titles with --items")
        raise UserError(
            f"{file}: {titled} of {len(untitled)} items have a title, and items are told apart by title; "
            + " or ".join(ways)
            + (f" (not read: {', '.join(aside[:20])})" if aside else "")
        )
    if 2 * titled < len(untitled):
        reading.warn(file, f"{len(untitled) - titled:,} of {len(untitled):,} items have no title")


def _unit(raw: Source, reading: Reading) -> str:
    """What the times are, in words."""
    times = raw.interactions["time"]
    if times.null_count():
        return "none, the order of the file counts"
    if raw.kind in ("table", "recbole"):
        return f"{unit_of(times, raw.files[0], reading) or 'numbers that are no Unix times'}, kept as they are"
    return SECONDS


def _decoded(name: str) -> str:
    """A file's name that the locale could not decode, as UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
