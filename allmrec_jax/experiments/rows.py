"""The rows of the paper's tables: which trainings each system is made of, as its record says."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.systems import SYSTEMS, System
from allmrec_jax.experiments.graph import Row, Training, effective_changes
from allmrec_jax.trained.kinds import KINDS

_SHORT_STAGE2 = {"steps": 100, "learning_rate": 3e-4, "warm_start_steps": 1000}
"""Preset ``small``'s learning rate first undoes the warm start, which 100 steps do not make good again."""

Budget = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Settings by preset and kind of training."""

BUDGETS: Mapping[str, Budget] = {
    "reduced": {"paper": {}, "small": {"stage1": {"epochs": 3}, "stage2": _SHORT_STAGE2}},
    "few-shot": {
        "paper": {},
        "small": {
            "cf": {"epochs": 200, "evaluate_every": 10},
            "morec": {"epochs": 40, "evaluate_every": 4},
            "tallrec": {"steps": 100},
            "stage1": {"epochs": 40},
            "stage2": _SHORT_STAGE2,
        },
    },
}
"""Budgets beside the presets' own. ``reduced``: of what a table trains many times over, ablations and other backbones.
``few-shot``: of trainings on few users, whose epochs are a few steps long."""


@dataclasses.dataclass(frozen=True)
class Recipes:
    """How each row's systems are trained, at one preset.

    Attributes:
        preset: of every training.
        given: the user's changes of settings, by kind.
        whole: whether everything has the preset's own budget.
    """

    preset: str
    given: Mapping[str, Mapping[str, Any]]
    whole: bool = False

    def at(self, budget: str | None) -> "Recipes":
        """The same at a budget of :data:`BUDGETS`, but for what the user changes."""
        if budget is None:
            return self
        own = {} if self.whole else BUDGETS[budget][self.preset]
        kinds = {**own, **self.given}
        return Recipes(self.preset, {kind: {**own.get(kind, {}), **self.given.get(kind, {})} for kind in kinds}, True)

    def is_cut(self, budget: str | None) -> bool:
        """Whether a budget differs from the preset's own."""
        return budget is not None and not self.whole and bool(BUDGETS[budget][self.preset])

    def row(self, name: str, seed: int) -> Row:
        """The row of a system.

        Raises:
            UserError: there is no such system, or an experiment cannot make it.
        """
        if name not in SYSTEMS or not is_row(SYSTEMS[name]):
            raise UserError(f"unknown system {name!r}; known: {'; '.join(known_rows())}")
        system = SYSTEMS[name]
        trainings: tuple[Training, ...] = ()
        if system.trained is not None:
            last = self.at(system.budget)._training(system.trained, system, seed)
            trainings = (*last.upstream, last)
        return Row(name, system.variant_of or name, trainings, system.against, system.llm)

    def _training(self, kind: str, system: System, seed: int) -> Training:
        """A training of the system and, beneath it, those that it builds on, at one seed."""
        upstream = tuple(self._training(each, system, seed) for each in KINDS[kind].upstream)
        usual = system.usual.get(self.preset, {}).get(kind, {})
        own = dict(system.changes.get(kind, {}))
        if KINDS[kind].by_model:
            own.setdefault("model", "sasrec")
        changes = effective_changes(kind, self.preset, {**usual, **self.given.get(kind, {})}, **own)
        return Training(kind, self.preset, changes, seed, upstream)

    def wording(self) -> Any:
        """Settings of stage 2, which also word the prompts of LLM-Only."""
        return self.row("A-LLMRec", 0).trainings[-1].settings

    def stands_by_itself(self, name: str) -> bool:
        """Whether a system stands in the tables at this preset and budget where nobody asks for it.

        One that differs from another by its budget alone does not where that budget is the preset's own.
        """
        system = SYSTEMS[name]
        same = system.budget is not None and not system.changes and not self.is_cut(system.budget)
        return not same and (system.presets is None or self.preset in system.presets)


def is_row(system: System) -> bool:
    """Whether an experiment can make a row of it: it trains it, or there is nothing to train."""
    return system.trained is not None or system.needs in (None, "llm")


def known_rows() -> list[str]:
    """Every system that can be a row of any table, in the order of the paper's Table 1."""
    return [name for name, system in SYSTEMS.items() if is_row(system) and system.only_in is None]


def rows_of(table: str) -> list[str]:
    """The systems that stand in one table only, e.g. the ablations of ``"table8"``."""
    return [name for name, system in SYSTEMS.items() if system.only_in == table]


def choose(table: Sequence[str], names: Sequence[str]) -> list[str]:
    """The table's systems, or of all known those that are named, whatever their case, in the table's order.

    Raises:
        UserError: a name is unknown.
    """
    if not names:
        return list(table)
    everything = {name.casefold(): name for name in (*table, *known_rows())}
    for name in names:
        if name.casefold() not in everything:
            raise UserError(f"unknown system {name!r}; known: {'; '.join(everything.values())}")
    chosen = {everything[name.casefold()] for name in names}
    return [name for name in everything.values() if name in chosen]


def at_seeds(recipes: Recipes, names: Sequence[str], seeds: int, llm_seeds: int) -> list[Row]:
    """The rows at ``seeds`` seeds each, ``llm_seeds`` for those with a language model; once where nothing is drawn."""
    rows = []
    for name in names:
        first = recipes.row(name, 0)
        count = 1 if not first.trainings else llm_seeds if first.llm else seeds
        rows += [first, *(recipes.row(name, seed) for seed in range(1, count))]
    return rows
