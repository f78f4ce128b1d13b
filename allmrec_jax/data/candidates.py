"""The sets of items that systems choose from: seeded, written once, the same for every system compared.

Evaluation negatives exclude every item of the user and every item shown under the target's title, and the titles shown
in one set are distinct. Those of training are drawn in :mod:`allmrec_jax.data.negatives`.
"""

import dataclasses
import errno
import hashlib
import logging
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from allmrec_jax.data.dataset import NO_TITLE, Cut, Dataset
from allmrec_jax.data.negatives import TooFewItems, draw_distinct_titles, title_groups
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import atomic_path, recover
from allmrec_jax.rng import numpy_rng

COUNT = 20
"""Items in a set: the target and 19 negatives."""

SCENARIOS = ("overall",)
CHUNK = 8192

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """One candidate set per user.

    Attributes:
        users: [U] int32, in random order: the first n of them are a fair sample.
        target: [U] int32, the item to find.
        candidates: [U, K] int32 in displayed order, target included, titles distinct.
        cut: where the history ends, ``"valid"`` or ``"test"`` (see :data:`allmrec_jax.data.dataset.CUTS`).
        seed: of the draw.
        scenario: one of :data:`SCENARIOS`.
    """

    users: Int[np.ndarray, "U"]
    target: Int[np.ndarray, "U"]
    candidates: Int[np.ndarray, "U K"]
    cut: Cut
    seed: int
    scenario: str

    @cached_property
    def sha256(self) -> str:
        """Hex digest of everything that decides a result: scenario, cut, seed, users, targets and sets."""
        digest = hashlib.sha256(f"{self.scenario}\n{self.cut}\n{self.seed}\n{self.candidates.shape}\n".encode())
        for array in (self.users, self.target, self.candidates):
            digest.update(np.ascontiguousarray(array, "<i4").tobytes())
        return digest.hexdigest()

    @property
    def target_column(self) -> Int[np.ndarray, "U"]:
        """Where in its set each target stands."""
        return np.argmax(self.candidates == self.target[:, None], axis=1)

    def head(self, count: int | None) -> "Candidates":
        """The first ``count`` users' sets (all with ``None``): nested samples for nested counts."""
        return dataclasses.replace(
            self, users=self.users[:count], target=self.target[:count], candidates=self.candidates[:count]
        )


def make_candidates(
    dataset: Dataset,
    scenario: str = "overall",
    cut: Cut = "test",
    seed: int = 0,
    max_users: int | None = None,
    count: int = COUNT,
) -> Candidates:
    """Draw a set of ``count`` items for each user that has a target at ``cut``, without writing anything.

    Args:
        max_users: a seeded sample of so many users; ``None`` takes all. A smaller sample begins a larger one.

    Raises:
        UserError: a user has fewer than ``count`` items to choose from, or the scenario is unknown.
    """
    if scenario not in SCENARIOS:
        raise UserError(f"unknown scenario {scenario!r}; known: {', '.join(SCENARIOS)}")
    users = np.asarray(dataset.users_with(cut))
    if not len(users):
        raise UserError(f"{dataset.path}: no user has a {cut} target, so there is nobody to evaluate")
    purpose = f"candidates/{scenario}/{cut}"
    users = numpy_rng(seed, purpose).permutation(users)[:max_users].astype(np.int32)
    title_ids = title_groups(dataset.titles)
    _, targets = dataset.history(users, cut, 1)
    sets = []
    for number, start in enumerate(range(0, len(users), CHUNK)):
        rng = numpy_rng(seed, purpose, number + 1)
        chunk, target = users[start : start + CHUNK], targets[start : start + CHUNK]
        own = [dataset.sequence(user) for user in chunk]
        rows = np.repeat(np.arange(len(chunk)), [len(items) for items in own])
        try:
            negatives = draw_distinct_titles(rng, rows, np.concatenate(own), target, title_ids, count - 1)
        except TooFewItems as few:
            untitled = dataset.titles.count(NO_TITLE)
            remedy = (
                f"{untitled} of the {dataset.num_items} items have no title, which counts as one: give `allmrec "
                "prepare` metadata that has titles"
                if 2 * untitled > dataset.num_items
                else "prepare a larger data set"
            )
            raise UserError(
                f"{dataset.path}: user {chunk[few.row]} leaves {few.usable + 1} items with distinct titles to choose "
                f"from, {count} are needed; {remedy}"
            ) from None
        sets.append(rng.permuted(np.concatenate([target[:, None], negatives], axis=1), axis=1))
    return Candidates(users, targets.astype(np.int32), np.concatenate(sets).astype(np.int32), cut, seed, scenario)


def load_candidates(
    dataset: Dataset,
    scenario: str = "overall",
    cut: Cut = "test",
    seed: int = 0,
    max_users: int | None = None,
) -> Candidates:
    """The data set's candidate file of this scenario and seed, written on first use.

    The file holds all users; ``max_users`` then takes the first so many of its random order. Where the data set cannot
    be written to, the same sets are drawn each time, and that is logged.

    Raises:
        UserError: as :func:`make_candidates`; or the file is damaged or belongs to other data.
    """
    path = candidates_path(dataset, scenario, cut, seed)
    recover(path)
    if path.exists():
        return _read(path, dataset.hash, cut, seed, scenario).head(max_users)
    made = make_candidates(dataset, scenario, cut, seed)
    try:
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                data_hash=np.array(dataset.hash),
                sha256=np.array(made.sha256),
                users=made.users,
                target=made.target,
                candidates=made.candidates,
            )
    except UserError as refused:
        if getattr(refused.__cause__, "errno", None) not in READ_ONLY:
            raise
        logger.warning(
            "%s is read-only: the candidates were drawn (seed %d) and are not kept there", dataset.path, seed
        )
    return made.head(max_users)


def candidates_path(dataset: Dataset, scenario: str, cut: Cut, seed: int) -> Path:
    """``candidates/<scenario>-<seed>.npz`` in the data set; ``<scenario>-valid-<seed>.npz`` at the validation cut."""
    name = scenario if cut == "test" else f"{scenario}-{cut}"
    return Path(dataset.path) / "candidates" / f"{name}-{seed}.npz"


def _read(path: Path, data_hash: str, cut: Cut, seed: int, scenario: str) -> Candidates:
    try:
        with np.load(path, allow_pickle=False) as file:
            read = Candidates(file["users"], file["target"], file["candidates"], cut, seed, scenario)
            # The hash is one of 32-bit numbers in a row: it does not tell other types and shapes of the same.
            whole = all(part.dtype == np.int32 for part in (read.users, read.target, read.candidates))
            whole &= read.users.shape == read.target.shape == read.candidates.shape[:-1]
            found_hash, intact = str(file["data_hash"]), whole and read.sha256 == str(file["sha256"])
    except Exception as error:  # NumPy and zipfile raise whatever the damage leads to
        raise UserError(
            f"{path}: not a readable candidate file ({first_line(error)}); delete it to have it drawn again"
        ) from None
    if found_hash != data_hash:
        raise UserError(f"{path}: drawn for data {found_hash[:12]}, not {data_hash[:12]}; delete it and draw again")
    if not intact:
        raise UserError(f"{path}: its content does not match its SHA-256; delete it to have it drawn again")
    return read
