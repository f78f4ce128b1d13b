"""A prepared data set: what every stage reads. Loading needs NumPy alone.

A directory, written once by :func:`write_dataset` (``allmrec prepare``):

===================== ==================================================================================================
``manifest.json``     format version, name, hash, counts, the settings and source that made it
``items.npy``         int32 [total]: item indices 1..N, user by user in time order; 0 is padding
``offsets.npy``       int64 [U+1]: user u owns ``items[offsets[u]:offsets[u+1]]``
``timestamps.npy``    int64 [total], Unix seconds; absent where the source has none
``texts.npz``         titles and descriptions, UTF-8 bytes and offsets
``train_count.npy``   int64 [N+1]: training interactions of each item
``slices.json``       cold and warm items: bottom and top 35% by training interactions, ties by index
``cold_users.npz``    three-interaction users that the filter dropped, kept apart and never trained on
``items.parquet``     item, raw_id, title, description, brand, categories, train_count (for people and other programs)
``users.parquet``     user, raw_id, interactions
===================== ==================================================================================================

The last two items of a user are test and validation; with fewer than three items all are for training.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Int32, Int64

from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import load_array, plain_name, read_json, recover
from allmrec_jax.outputs import Output
from allmrec_jax.parquet import read_frame

FORMAT = 1
"""Version of the directory's layout; another one is refused."""

CUTS = ("train", "valid", "test")
"""Which item is the target: the last training item, the validation item, the test item."""

NO_TITLE = "No Title"
NO_DESCRIPTION = "No Description"

Cut = Literal["train", "valid", "test"]

DATA_SET = Output(
    "data set",
    signs=("manifest.json", "items.parquet"),
    names=("manifest.json", "slices.json", "*.npy", "texts.npz", "cold_users.npz", "items.parquet", "users.parquet"),
    grows=("candidates/*.npz", "scenarios/*"),
)
"""The directory as a thing that commands write."""

REMEDY = "run `allmrec prepare` again"
"""What mends a damaged data set."""


class _Manifest(TypedDict):
    name: str
    hash: str
    parts: dict[str, str | None]


@dataclass(frozen=True, eq=False)
class ColdUsers:
    """Users with exactly three interactions that the filter dropped; the last item is their test item."""

    items: Int32[np.ndarray, "3C"]
    offsets: Int64[np.ndarray, "C+1"]
    raw: list[str]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set: U users (0..U-1) and N items (1..N; 0 is padding)."""

    path: Path
    name: str
    hash: str
    manifest: dict[str, Any]
    items: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "U+1"]
    timestamps: Int64[np.ndarray, "total"] | None
    titles: list[str]
    descriptions: list[str]
    train_count: Int64[np.ndarray, "N+1"]
    slices: dict[str, np.ndarray]
    cold_users: ColdUsers

    def __repr__(self) -> str:
        sizes = f"{self.num_users:,} users, {self.num_items:,} items, {len(self.items):,} interactions"
        return f"Dataset({str(self.path)!r}: {self.name}, {sizes})"

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """N, padding not counted."""
        return len(self.titles) - 1

    @cached_property
    def has_titles(self) -> bool:
        """Whether titles tell the items apart: not where all are the same, e.g. none is known."""
        return len(set(self.titles[1:])) > 1

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "U"]:
        """Interactions of each user."""
        return np.diff(self.offsets)

    @cached_property
    def train_lengths(self) -> Int64[np.ndarray, "U"]:
        """Training interactions of each user: all but the last two, or all where there are fewer than three."""
        return training_cut(self.lengths)

    @cached_property
    def users_raw(self) -> list[str]:
        """The source's user ids, [U]. Reads ``users.parquet`` on first use."""
        return self._column("users.parquet", "raw_id", self.num_users, "users_raw")

    @cached_property
    def items_raw(self) -> list[str]:
        """The source's item ids, [N+1], ``[0] == ""``. Reads ``items.parquet`` on first use."""
        return ["", *self._column("items.parquet", "raw_id", self.num_items, "items_raw")]

    @cached_property
    def categories(self) -> list[list[str]]:
        """Categories (genres) of each item, [N+1], ``[0] == []``. Reads ``items.parquet`` on first use."""
        return [[], *self._column("items.parquet", "categories", self.num_items, "categories")]

    def _column(self, file: str, column: str, rows: int, part: str) -> list[Any]:
        """A column of a table, compared with the hash that the manifest holds."""
        path = self.path / file
        values = _parquet_column(path, column, rows)
        digest = _digest_lists if part == "categories" else _digest_strings
        try:
            found = digest(values)
        except (AttributeError, TypeError) as error:
            raise UserError(f"{path}: column {column!r} is of another type; {REMEDY}") from error
        if found != self.manifest["parts"].get(part):
            raise UserError(f"{path}: {column} is damaged (its hash is not the manifest's); {REMEDY}")
        return values

    def sequence(self, user: int) -> Int32[np.ndarray, "T"]:
        """All items of a user in time order."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def train_sequence(self, user: int) -> Int32[np.ndarray, "T"]:
        """The items to train on, see :attr:`train_lengths`."""
        return self.sequence(user)[: self.train_lengths[user]]

    def users_with(self, cut: Cut) -> Int64[np.ndarray, "B"]:
        """Users with a non-empty history and a target at that cut, ascending."""
        return np.flatnonzero(self._history_lengths(np.arange(self.num_users), cut) > 0)

    def history(
        self, users: np.ndarray, cut: Cut, length: int
    ) -> tuple[Int32[np.ndarray, "B {length}"], Int32[np.ndarray, "B"]]:
        """What a system may know of each user at a cut, and what comes next.

        Args:
            users: user indices [B], each of them in :meth:`users_with` for this cut.
            cut: ``"train"``: the last training item is the target; ``"valid"``, ``"test"``: that item is. The history
                of ``"test"`` includes the validation item.
            length: width of the result; older items are cut off, shorter histories left-padded with 0.

        Returns:
            Histories [B, length] and targets [B].

        Raises:
            ValueError: a user has no history or no target at this cut.
        """
        users = np.asarray(users, np.int64)
        counts = self._history_lengths(users, cut)
        if np.any(counts < 1):
            raise ValueError(f"user {users[counts < 1][0]} has no history and target at cut {cut!r}")
        return self.items_before(users, counts, length), self.items[self.offsets[users] + counts]

    def items_before(self, users: np.ndarray, places: np.ndarray, width: int) -> Int32[np.ndarray, "B {width}"]:
        """The last ``width`` of each user's first ``places`` items, left-padded with 0.

        Args:
            users: user indices [B].
            places: [B], 0 to the user's number of interactions: the window ends before the item at this place.
            width: of the window; older items are cut off.
        """
        starts = self.offsets[users]
        columns = (starts + places)[:, None] + np.arange(-width, 0)
        inside = columns >= starts[:, None]
        return np.where(inside, self.items[np.where(inside, columns, 0)], 0).astype(np.int32)

    def training_targets(self, positions: Literal["last", "all"]) -> tuple[np.ndarray, np.ndarray]:
        """The samples of next-item training: whose, and at which place of the sequence the target stands.

        Args:
            positions: ``"last"``: of each user the last training item; ``"all"``: every training item but the first,
                user by user.

        Returns:
            Users and places, [M] each.

        Raises:
            UserError: no user has two training items.
        """
        users = np.flatnonzero(self.train_lengths >= 2)
        if not len(users):
            raise UserError(f"{self.path}: no user has two training items; there is nothing to learn from")
        last = self.train_lengths[users] - 1
        if positions == "last":
            return users, last
        first_sample = np.cumsum(last) - last
        return np.repeat(users, last), np.arange(last.sum()) - np.repeat(first_sample, last) + 1

    def _history_lengths(self, users: np.ndarray, cut: Cut) -> np.ndarray:
        """Items before the target, [B]; zero or less where there is no such cut."""
        lengths = self.lengths[users]
        if cut == "train":
            return self.train_lengths[users] - 1
        if cut == "valid":
            return lengths - 2
        if cut == "test":
            return np.where(lengths >= 3, lengths - 1, 0)
        raise ValueError(f"unknown cut {cut!r}; known: {', '.join(CUTS)}")


def require_titles(dataset: Dataset, system: str) -> None:
    """Refuses data whose items have no titles.

    Raises:
        UserError: it names the system.
    """
    if not dataset.has_titles:
        raise UserError(f"{dataset.path}: {system} reads titles, and this data set has none; prepare it with titles")


def item_texts(dataset: Dataset, style: Literal["paper", "official"]) -> list[str]:
    """The text of each item for the sentence encoder, [N+1], ``[0] == ""``.

    ``paper``: ``Title: T, Description: D``; ``official``: ``"T, D"``, double quotes included. A missing description
    reads ``No Description`` in both.
    """
    pattern = {"paper": "Title: {}, Description: {}", "official": '"{}, {}"'}[style]
    pairs = zip(dataset.titles[1:], dataset.descriptions[1:], strict=True)
    return ["", *(pattern.format(title, description or NO_DESCRIPTION) for title, description in pairs)]


def write_dataset(
    path: Path,
    *,
    name: str,
    items: Int32[np.ndarray, "total"],
    offsets: Int64[np.ndarray, "U+1"],
    timestamps: Int64[np.ndarray, "total"] | None = None,
    titles: Sequence[str],
    descriptions: Sequence[str],
    brands: Sequence[str] | None = None,
    categories: Sequence[Sequence[str]] | None = None,
    users_raw: Sequence[str] | None = None,
    items_raw: Sequence[str] | None = None,
    cold_users: ColdUsers | None = None,
    slice_fraction: float = 0.35,
    manifest: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write a data set into the directory ``path`` (made if absent, files in it replaced) and load it.

    Args:
        name: short name; runs are filed under it.
        titles: of items 1..N, so N strings; ``descriptions``, ``brands``, ``categories`` and ``items_raw`` likewise.
        users_raw: the source's ids of users 0..U-1; the indices themselves where absent. ``items_raw`` likewise.
        slice_fraction: share of the items in each of the cold and the warm slice.
        manifest: further entries for ``manifest.json`` (source, settings, counts); not part of the hash.
    """
    import polars as pl

    num_users, num_items = len(offsets) - 1, len(titles)
    items, offsets = np.asarray(items, np.int32), np.asarray(offsets, np.int64)
    descriptions = list(descriptions)
    brands = list(brands) if brands is not None else [""] * num_items
    categories = [list(row) for row in categories] if categories is not None else [[] for _ in range(num_items)]
    users_raw = list(users_raw) if users_raw is not None else [str(user) for user in range(num_users)]
    items_raw = list(items_raw) if items_raw is not None else [str(item) for item in range(1, num_items + 1)]
    cold_users = cold_users or ColdUsers(np.zeros(0, np.int32), np.zeros(1, np.int64), [])
    train_count = count_training_items(items, offsets, num_items)
    slices = cold_and_warm(train_count, slice_fraction)

    texts = pack_strings("title", titles) | pack_strings("description", descriptions)
    cold = {"items": cold_users.items, "offsets": cold_users.offsets} | pack_strings("raw", cold_users.raw)
    parts = {
        "items": _digest(items),
        "offsets": _digest(offsets),
        "timestamps": None if timestamps is None else _digest(np.asarray(timestamps, np.int64)),
        "texts": _digest(*texts.values()),
        "cold_users": _digest(*cold.values()),
        "train_count": _digest(train_count),
        "slices": _digest(*slices.values()),
        "users_raw": _digest_strings(users_raw),
        "items_raw": _digest_strings(items_raw),
        "brands": _digest_strings(brands),
        "categories": _digest_lists(categories),
    }
    body = {
        "format": FORMAT,
        "name": name,
        "hash": _hash(parts),
        "users": num_users,
        "items": num_items,
        "interactions": len(items),
        "cold_users": len(cold_users.raw),
        **(manifest or {}),
        "parts": parts,
    }

    path.mkdir(parents=True, exist_ok=True)
    np.save(path / "items.npy", items)
    np.save(path / "offsets.npy", offsets)
    if timestamps is None:
        (path / "timestamps.npy").unlink(missing_ok=True)
    else:
        np.save(path / "timestamps.npy", np.asarray(timestamps, np.int64))
    np.savez(path / "texts.npz", **texts)  # type: ignore[arg-type]
    np.save(path / "train_count.npy", train_count)
    (path / "slices.json").write_text(json.dumps({key: value.tolist() for key, value in slices.items()}))
    np.savez(path / "cold_users.npz", **cold)  # type: ignore[arg-type]
    pl.DataFrame(
        {
            "item": np.arange(1, num_items + 1, dtype=np.int32),
            "raw_id": items_raw,
            "title": list(titles),
            "description": descriptions,
            "brand": brands,
            "categories": pl.Series(categories, dtype=pl.List(pl.String)),
            "train_count": train_count[1:],
        }
    ).write_parquet(path / "items.parquet")
    pl.DataFrame(
        {"user": np.arange(num_users, dtype=np.int32), "raw_id": users_raw, "interactions": np.diff(offsets)}
    ).write_parquet(path / "users.parquet")
    (path / "manifest.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return load_dataset(path)


def replace_dataset(path: Path, *, name: str, **content: Any) -> Dataset:
    """Write a data set in the place of what is at ``path``, whole or not at all.

    Args:
        path: the data set's directory. One of the same content keeps its candidate files.
        name: as for :func:`write_dataset`, as is the further ``content``.

    Raises:
        UserError: ``path`` is no data set, or holds what does not belong to it, or cannot be written.
    """
    with DATA_SET.replacing(path) as new:
        made = write_dataset(new, name=name, **content)
        if (path / "candidates").is_dir() and _hash_of(path) == made.hash:
            shutil.copytree(path / "candidates", new / "candidates")
    return load_dataset(path)


def load_dataset(path: str | Path) -> Dataset:
    """Load a data set; every array is checked against the hash that the manifest holds.

    Raises:
        UserError: the directory is no data set, is damaged, or was written in another format version.
    """
    path = Path(path)
    recover(path)
    manifest = _read_manifest(path)
    parts = manifest["parts"]

    def checked(name: str, *arrays: np.ndarray) -> None:
        if _digest(*arrays) != parts.get(name):
            raise UserError(f"{path}: {name} is damaged (its hash is not the manifest's); {REMEDY}")

    items, offsets = load_array(path / "items.npy", REMEDY), load_array(path / "offsets.npy", REMEDY)
    checked("items", items)
    checked("offsets", offsets)
    timestamps = None
    if parts.get("timestamps") is not None:
        timestamps = load_array(path / "timestamps.npy", REMEDY)
        checked("timestamps", timestamps)
    texts = _read_arrays(path / "texts.npz")
    checked("texts", *texts.values())
    cold = _read_arrays(path / "cold_users.npz")
    checked("cold_users", *cold.values())
    train_count = load_array(path / "train_count.npy", REMEDY)
    checked("train_count", train_count)
    slices = _read_slices(path / "slices.json")
    checked("slices", *slices.values())
    return Dataset(
        path=path,
        name=manifest["name"],
        hash=manifest["hash"],
        manifest=manifest,
        items=items,
        offsets=offsets,
        timestamps=timestamps,
        titles=["", *unpack_strings("title", texts)],
        descriptions=["", *unpack_strings("description", texts)],
        train_count=train_count,
        slices=slices,
        cold_users=ColdUsers(cold["items"], cold["offsets"], unpack_strings("raw", cold)),
    )


def training_cut(lengths: Int64[np.ndarray, "U"]) -> Int64[np.ndarray, "U"]:
    """How many of so many interactions are for training: the last two are not, where there are at least three."""
    return np.where(lengths >= 3, lengths - 2, lengths)


def count_training_items(items: np.ndarray, offsets: np.ndarray, num_items: int) -> Int64[np.ndarray, "N+1"]:
    """How often each item occurs in the training part of the sequences."""
    lengths = np.diff(offsets)
    position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    in_training = position < np.repeat(training_cut(lengths), lengths)
    return np.bincount(items[in_training], minlength=num_items + 1).astype(np.int64)


def cold_and_warm(train_count: np.ndarray, fraction: float = 0.35) -> dict[str, Int32[np.ndarray, "n"]]:
    """Bottom and top ``fraction`` of the items by training interactions, ties by index; ids ascending.

    The paper says 35% and not what ties do or whether validation and test interactions count: named choices.
    """
    order = np.argsort(train_count[1:], kind="stable") + 1
    size = int(fraction * len(order))
    return {
        "cold": np.sort(order[:size]).astype(np.int32),
        "warm": np.sort(order[len(order) - size :]).astype(np.int32),
    }


def pack_strings(name: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
    """Strings as two plain arrays: their UTF-8 bytes and where each begins."""
    encoded = [string.encode() for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(string) for string in encoded], out=offsets[1:])
    return {f"{name}_bytes": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_offsets": offsets}


def unpack_strings(name: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The inverse of :func:`pack_strings`."""
    data, offsets = arrays[f"{name}_bytes"].tobytes(), arrays[f"{name}_offsets"].tolist()
    return [data[start:end].decode() for start, end in itertools.pairwise(offsets)]


def _digest(*arrays: np.ndarray) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _digest_strings(strings: Sequence[str]) -> str:
    return _digest(*pack_strings("", strings).values())


def _digest_lists(lists: Sequence[Sequence[str]]) -> str:
    return _digest(np.frombuffer(json.dumps(lists).encode(), np.uint8))


def _hash(parts: Mapping[str, str | None]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True).encode()).hexdigest()


def _hash_of(path: Path) -> str | None:
    try:
        return _read_manifest(path)["hash"]
    except UserError:
        return None


def _read_slices(path: Path) -> dict[str, np.ndarray]:
    slices = read_json(path, dict[str, list[int]], REMEDY)
    try:
        return {key: np.asarray(value, np.int32) for key, value in slices.items()}
    except OverflowError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {REMEDY}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(f"{path} is not a data set (it has no manifest.json); make one with `allmrec prepare`")
    manifest = read_json(file, dict[str, Any], REMEDY)
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise UserError(f"{path}: data set format {found}, this version reads {FORMAT}; {REMEDY}")
    read_json(file, _Manifest, REMEDY)
    plain_name(manifest["name"], f"{file}, name")
    if manifest["hash"] != _hash(manifest["parts"]):
        raise UserError(f"{file}: the hash is not that of its parts; {REMEDY}")
    DATA_SET.verify(path, REMEDY, ("manifest.json", "items.parquet", "users.parquet"))
    return manifest


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # NumPy and zipfile raise whatever the damage leads to
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {REMEDY}") from error


def _parquet_column(path: Path, column: str, rows: int) -> list[Any]:
    values = read_frame(path, REMEDY, [column])[column].to_list()
    if len(values) != rows:
        raise UserError(f"{path}: {len(values)} rows, the data set has {rows}; {REMEDY}")
    return values
