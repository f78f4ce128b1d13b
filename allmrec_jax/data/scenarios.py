"""Scenarios beside the overall one: who is trained on, and who is asked. Seeded, written once beside the data set."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from allmrec_jax.data.dataset import Dataset, load_dataset, replace_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.rng import numpy_rng

HELD_OUT = 1000
"""Users held out of training at most where a data set has no cold users of its own; a fifth of the users at most."""

ENOUGH = 20
"""Cold users that a data set must have for them to be asked."""

HISTORIES = (2, 1, 0)
"""Items that the histories of simulated cold users are cut to."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What systems are trained on, and whom they are asked about.

    Attributes:
        trained: the data set that everything is trained on.
        asked: the data set of the users who are asked about: the same items but for ``transferred``, perhaps other
            users.
        known: whether these are the users of ``trained``, index by index.
        about: the scenario in words and counts, for the record.
        history: items that systems are told of each user, the last ones; ``None`` is all.
        transferred: whether the items asked about are others than those trained on.
    """

    trained: Dataset
    asked: Dataset
    known: bool
    about: Mapping[str, Any]
    history: int | None = None
    transferred: bool = False


def overall(dataset: Dataset) -> Scenario:
    """Everybody is trained on, and asked about (the paper's Table 1)."""
    return Scenario(dataset, dataset, True, {"scenario": "overall"})


def few_shot(dataset: Dataset, users: int, seed: int = 0) -> Scenario:
    """Training on a seeded sample of ``users`` users; all users of the data set are asked about (Table 6).

    Smaller samples begin larger ones.

    Raises:
        UserError: the data set has fewer users with a test item than that.
    """
    eligible = dataset.users_with("test")
    if users > len(eligible):
        raise UserError(
            f"{dataset.path}: {users} users are to be trained on, but only {len(eligible)} have a test item"
        )
    chosen = np.sort(numpy_rng(seed, "scenario/few-shot").permutation(eligible)[:users])
    trained = _users_of(dataset, f"few{users}-{seed}", chosen)
    return Scenario(trained, dataset, False, {"scenario": "few-shot", "training_users": users, "sample_seed": seed})


def cold_users(dataset: Dataset, seed: int = 0, *, simulate: bool = False) -> list[Scenario]:
    """Users with three interactions, the last of which is to be found (Table 5).

    They are those that ``prepare`` kept apart. A data set with fewer than :data:`ENOUGH` of them has them simulated:
    a seeded sample of users is held out of training, and of each the last item is to be found. These are three
    scenarios of the same questions, with histories cut to two items, one or none.

    Args:
        dataset: as prepared.
        seed: of the sample.
        simulate: whether to simulate them in any case.

    Raises:
        UserError: too few users are there for that either.
    """
    cold = dataset.cold_users
    if len(cold.raw) >= ENOUGH and not simulate:
        asked = _write(dataset, f"cold-{seed}", cold.items, cold.offsets, cold.raw)
        about = {"scenario": "cold users", "simulated": False, "users": len(cold.raw), "history": 2}
        return [Scenario(dataset, asked, False, about)]
    eligible = dataset.users_with("test")
    count = min(HELD_OUT, len(eligible) // 5)
    if count < ENOUGH:
        raise UserError(
            f"{dataset.path}: {len(cold.raw)} cold users, and {len(eligible)} users are too few to simulate any"
        )
    held_out = np.sort(numpy_rng(seed, "scenario/cold-users").permutation(eligible)[:count])
    others = np.setdiff1d(np.arange(dataset.num_users), held_out)
    trained = _users_of(dataset, f"without-cold-{seed}", others)
    items = np.concatenate([dataset.sequence(user)[-3:] for user in held_out])
    raw = [dataset.users_raw[user] for user in held_out]
    asked = _write(dataset, f"simulated-cold-{seed}", items, 3 * np.arange(count + 1), raw)
    about = {"scenario": "cold users", "simulated": True, "users": count}
    return [Scenario(trained, asked, False, {**about, "history": length}, length) for length in HISTORIES]


def cross_domain(dataset: Dataset, target: Dataset) -> Scenario:
    """Training on one data set, and the users and items of another to be asked about (Table 7).

    Raises:
        UserError: an item is in both.
    """
    if both := set(dataset.items_raw[1:]) & set(target.items_raw[1:]):
        raise UserError(
            f"{dataset.path} and {target.path} have {len(both)} items in common, e.g. {min(both)!r}; "
            "Table 7 asks about items that no training has met: name another data set with --target"
        )
    about = {
        "scenario": "cross-domain",
        "trained_on": dataset.name,
        "asked_on": {"name": target.name, "hash": target.hash, "users": len(target.users_with("test"))},
    }
    return Scenario(dataset, target, False, about, transferred=True)


def _users_of(dataset: Dataset, name: str, users: Int[np.ndarray, "M"]) -> Dataset:
    """The data set with these users only."""
    sequences = [dataset.sequence(user) for user in users]
    offsets = np.cumsum([0, *map(len, sequences)])
    return _write(dataset, name, np.concatenate(sequences), offsets, [dataset.users_raw[user] for user in users])


def _write(dataset: Dataset, name: str, items: np.ndarray, offsets: np.ndarray, raw: list[str]) -> Dataset:
    """Other users over the same items, at ``<data>/scenarios/<name>``; read again where it was written before."""
    path = Path(dataset.path) / "scenarios" / name
    if (path / "manifest.json").is_file():
        found = load_dataset(path)
        if found.manifest.get("derived_from") == dataset.hash:
            return found
    return replace_dataset(
        path,
        name=f"{dataset.name}-{name}",
        items=items,
        offsets=offsets,
        titles=dataset.titles[1:],
        descriptions=dataset.descriptions[1:],
        categories=dataset.categories[1:],
        users_raw=raw,
        items_raw=dataset.items_raw[1:],
        manifest={"derived_from": dataset.hash},
    )
