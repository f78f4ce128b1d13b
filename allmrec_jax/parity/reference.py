"""What a reference is, and what passes between the product and one. NumPy only.

Most components go from the reference to ours: it chooses inputs and answers with named arrays. The trainings go the
other way: the product draws batches, negatives, candidates and dropout, which a reference takes its own steps with.

The first part of an array's name says what it is: ``input`` for what the reference chose, else a kind of
:mod:`allmrec_jax.parity.tolerances`.

Shapes: B batch, T time, S prompt length, P items of a prompt, K drawn items.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from allmrec_jax.parity import cases
from allmrec_jax.prompts import ITEM_SLOT, USER_SLOT

Outputs = dict[str, np.ndarray]

COMPONENTS = (
    "Presets",
    "SASRec",
    "SASRec with dropout",
    "SASRec training",
    "SASRec training, short histories",
    "Autoencoders",
    "Sentence encoder",
    "Sentence encoder, BERT",
    "Stage 1",
    "Stage 1 training",
    "Prompts",
    "Projectors",
    "OPT, right-padded",
    "OPT, left-padded",
    "OPT-350m's shape",
    "Stage 2",
    "Stage 2 training",
    "Generation",
    "Generation, official settings",
    "Hit@1 of eval.py",
    "Conversion",
)
"""In the order of the table."""

DRAWN = (
    "SASRec with dropout",
    "SASRec training",
    "SASRec training, short histories",
    "Stage 1 training",
    "Stage 2 training",
)
"""Components in which the product draws and the reference follows."""

ONLY_A_CLONE = ("Conversion",)
"""Components that stock parts and recorded numbers cannot have."""

CF_RATE, STAGE1_RATE, STAGE2_RATE, BETA2 = 1e-3, 1e-3, 1e-3, 0.98
"""Adam's settings on the reference's side: the official ones, but the stages' rates are :data:`SPEED` times as high."""

SPEED = 10
"""By what the compared trainings of the stages raise the presets' learning rates, so that some dozen steps move the
parameters far enough for a wrong optimizer to show."""

NEW_TOKENS = 24
"""M of the generation with our own settings."""


class Steps(NamedTuple):
    """Lengths of the compared trainings: epochs of SASRec and of stage 1, steps of stage 2."""

    cf: int = 40
    stage1: int = 10
    stage2: int = 60


class RefusedError(Exception):
    """A reference cannot take what the product drew."""


class Source(NamedTuple):
    """Where a component of a reference comes from.

    Attributes:
        file: of the clone, or a library and its version.
        sha256: of that file; empty for a library.
        stood_in: what of the reference was replaced by something else, and why; empty where nothing was.
    """

    file: str
    sha256: str = ""
    stood_in: str = ""


class Reference(Protocol):
    """What the comparison asks of a reference."""

    name: str

    def components(self) -> Sequence[str]:
        """Those that it has, in the order of :data:`COMPONENTS`."""
        ...

    def source(self, component: str) -> Source:
        """Where one comes from."""
        ...

    def outputs(self, component: str) -> Outputs:
        """The named arrays of one that is not in :data:`DRAWN`; computed once."""
        ...

    def replay(self, component: str, drawn: "Drawn") -> Outputs:
        """The named arrays of one in :data:`DRAWN`, from what the product drew.

        Raises:
            RefusedError: these draws cannot be taken.
        """
        ...

    def select(self, outputs: Outputs) -> Outputs:
        """Of our arrays, what the reference's are compared with."""
        ...


class Prompts(NamedTuple):
    """Prompts with answers as the reference made them; right-padded with 1, which also stands at slots.

    As in :class:`allmrec_jax.prompts.PromptBatch`; ``items`` holds history (left-padded with 0) and candidates.
    """

    ids: np.ndarray
    slot: np.ndarray
    slot_index: np.ndarray
    items: np.ndarray
    lengths: np.ndarray
    target_start: np.ndarray


def empty_prompts(rows: int) -> Prompts:
    """Prompts of no token, of the case's width."""
    size = (rows, cases.PROMPT_LENGTH)
    items = np.zeros((rows, cases.HISTORY + cases.CANDIDATES), np.int32)
    slot, slot_index = np.zeros(size, np.int32), np.zeros(size, np.int32)
    lengths, target_start = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    return Prompts(np.full(size, 1, np.int32), slot, slot_index, items, lengths, target_start)


def inputs(prompts: Prompts) -> Outputs:
    """As named arrays."""
    return {f"input/{name}": value for name, value in prompts._asdict().items()}


class DrawnStep(NamedTuple):
    """What the product drew for a step, and the batch that it made of it.

    Attributes:
        users: [B], from 1, as the official code counts.
        items: [B, T], what the product showed of each; left-padded with 0. A reference finds its own.
        positives: [B, T], or [B] for the last position alone. A reference finds its own.
        negatives: [B, T] as ``positives``, [B], or [B, K], the other candidates.
        masks: what each of SASRec's dropouts keeps, at all T columns, in the order in which they run.
        text_masks: likewise of the sentence encoder, first on the positives' texts, then on the negatives'.
        candidates: [B, K] in the order shown.
        prompts: with answers, the opening quote on the prompt's side.
    """

    users: np.ndarray
    items: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    masks: Sequence[np.ndarray] = ()
    text_masks: Sequence[np.ndarray] = ()
    candidates: np.ndarray | None = None
    prompts: Prompts | None = None


class Drawn(NamedTuple):
    """A training of the product: the parameters that it began with, by their official names, and its steps.

    Attributes:
        means: over how many steps each loss that the product reports is a mean.
    """

    start: Outputs
    steps: list[DrawnStep]
    means: int = 1

    def batches(self) -> Outputs:
        """The batches as the product made them; a reference that reads the same files must come to the same."""
        return batches([(step.users, step.items, step.positives, step.negatives) for step in self.steps])

    def repeats(self) -> np.ndarray:
        """How often draws came again that chance does not bring again: each of these is 0 where all is well.

        1. a user's negatives, three of them at least, met before with the same user;
        2. a whole batch of users and negatives, met before;
        3. steps whose negatives were over half of them in the same places the step before;
        4. masks that keep just what that of the step before kept.
        """
        found = np.zeros(4, np.int32)
        samples, seen = set[bytes](), set[bytes]()
        for number, step in enumerate(self.steps):
            rows = [row[row > 0] for row in step.negatives.reshape(len(step.users), -1)]
            keys = [np.append(row, user).tobytes() for user, row in zip(step.users, rows, strict=True) if len(row) >= 3]
            found[0] += sum(key in samples for key in keys)
            samples.update(keys)
            batch = np.concatenate([step.users, *rows]).tobytes()
            found[1] += batch in seen
            seen.add(batch)
            if not number:
                continue
            before = self.steps[number - 1]
            found[2] += _alike(before.negatives, step.negatives) > 0.5
            pairs = zip(step.masks, before.masks, strict=True)
            found[3] += sum(np.array_equal(one, other) for one, other in pairs)
        return found


def _alike(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the places with items in both that hold the same one; as many rows as both have."""
    rows = min(len(before), len(after))
    one, other = before[:rows], after[:rows]
    both = (one > 0) & (other > 0)
    return float(np.mean(one[both] == other[both])) if both.any() else 0.0


def batches(parts: Sequence[tuple[np.ndarray, ...]]) -> Outputs:
    """Users, items, positives and negatives of some steps, each as one list of numbers."""
    names = ("users", "items", "positives", "negatives")
    columns = zip(*parts, strict=True)
    return {
        f"exact/{name}": np.concatenate([value.reshape(-1) for value in column]).astype(np.int32)
        for name, column in zip(names, columns, strict=True)
    }


def kind(name: str, values: Outputs) -> Outputs:
    """``values`` under a first part of their names."""
    return {f"{name}/{key}": value for key, value in values.items()}


def user_slots(prompts: Prompts) -> None:
    """Marks the first column of every row as the user's."""
    prompts.slot[:, 0] = USER_SLOT


def item_slot(prompts: Prompts, row: int, column: int, index: int) -> None:
    """Marks a column as that of the row's item ``index``."""
    prompts.slot[row, column], prompts.slot_index[row, column] = ITEM_SLOT, index
