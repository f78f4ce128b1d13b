"""What a kind of file is to the campaign of damage, and what its readers' answers are compared by."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allmrec_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        files: one of which is damaged at a time.
        read: reads them and returns what they say, as a hash.
        hashed: whether they carry hashes, so that no damage may be taken as good.
        slow: whether reading takes long, so that it is its turn once where others have five.
    """

    files: list[Path]
    read: Callable[[], str]
    hashed: bool = False
    slow: bool = False


def hash_of(*parts: Any) -> str:
    """A hash of arrays, texts and whatever has a faithful ``repr``."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        if hasattr(leaf, "dtype"):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def files(folder: Path, *without: str) -> list[Path]:
    """The files beneath a folder but those of these names."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)


def contents(data: Dataset) -> str:
    """A hash of all that a data set holds."""
    slices = [data.slices[name] for name in sorted(data.slices)]
    cold = data.cold_users
    texts = [data.name, data.titles, data.descriptions, data.users_raw, data.items_raw, data.categories, cold.raw]
    arrays = [data.items, data.offsets, data.timestamps, data.train_count, cold.items, cold.offsets]
    return hash_of(texts, arrays, slices, data.num_users, data.num_items)
