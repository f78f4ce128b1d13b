"""The rows of the paper's tables: which trainings each system is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments.experiment import Row, Training, changed

CF_MODELS = {"NCF": "ncf", "NextItNet": "nextitnet", "GRU4Rec": "gru4rec", "SASRec": "sasrec"}
"""The paper's collaborative-filtering systems, and what ``train cf --model`` calls them."""

TEXT_SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    name: recipe
    for name, recipe in {
        "MoRec": ("morec", {}),
        "CTRL": ("ctrl", {}),
        "RECFORMER": ("recformer", {"start": "longformer"}),
        "RECFORMER (tiny)": ("recformer", {"start": "scratch"}),
    }.items()
    if name in SYSTEMS
}
"""The modality-aware systems: the kind of training each is, and what differs in it."""

OTHER_PRESET = {"paper": "RECFORMER (tiny)", "small": "RECFORMER"}
"""A table's system that stands in it at the other preset only."""

STAGE1_ABLATIONS: dict[str, dict[str, Any]] = {
    "w/o L_matching": {"match_weight": 0.0},
    "w/o L_item-recon and L_text-recon": {"alpha": 0.0, "beta": 0.0},
    "w/o L_rec": {"rec_weight": 0.0},
    "frozen SBERT": {"freeze_encoder": True},
}
"""The paper's Table 8, and what differs in stage 1."""

STAGE2_ABLATIONS: dict[str, dict[str, Any]] = {
    "w/o user representation": {"user_vector": False},
    "w/o joint embedding": {"item_vectors": "none", "text_share": 0.0},
    "random joint embedding": {"item_vectors": "normal", "text_share": 0.0},
}
"""The paper's Table 9, and what differs in stage 2. Text latents are of the kind that the last two lack."""

Budget = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Settings by preset and kind of training."""

_SHORT_STAGE2 = {"steps": 100, "learning_rate": 3e-4, "warm_start_steps": 1000}
"""Preset ``small``'s learning rate first undoes the warm start, which 100 steps do not make good again."""

REDUCED: Budget = {"paper": {}, "small": {"stage1": {"epochs": 3}, "stage2": _SHORT_STAGE2}}
"""The smaller budget of what a table trains many times over: ablations and other backbones."""

FEW_SHOT: Budget = {
    "paper": {},
    "small": {
        "cf": {"epochs": 200, "evaluate_every": 10},
        "morec": {"epochs": 40, "evaluate_every": 4},
        "tallrec": {"steps": 100},
        "stage1": {"epochs": 40},
        "stage2": _SHORT_STAGE2,
    },
}
"""The budget of trainings on few users, whose epochs are a few steps long."""

ALL_POSITIONS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"epochs": 1}}
"""A-LLMRec_all's stage 1, whose epochs are many times as long, where the preset's are meant for the last positions."""

REDUCED_ROW = "A-LLMRec, reduced"
"""A-LLMRec at the reduced budget: what rows at that budget are to be compared with."""

TALLREC = {"TALLRec (yes-no)": "yes-no", "TALLRec (titles)": "titles"}


@dataclasses.dataclass(frozen=True)
class Recipes:
    """How each row's systems are trained, at one preset.

    Attributes:
        preset: of every training.
        given: the user's changes of settings, by kind.
        whole: whether everything has the preset's own budget, see :data:`REDUCED`.
    """

    preset: str
    given: Mapping[str, Mapping[str, Any]]
    whole: bool = False

    def at(self, budget: Budget) -> "Recipes":
        """The same at another budget, but for what the user changes."""
        own = {} if self.whole else budget[self.preset]
        kinds = {**own, **self.given}
        return Recipes(self.preset, {kind: {**own.get(kind, {}), **self.given.get(kind, {})} for kind in kinds}, True)

    def _node(self, kind: str, seed: int, upstream: tuple[Training, ...] = (), **own: Any) -> Training:
        changes = changed(kind, self.preset, self.given.get(kind, {}), **own)
        return Training(kind, self.preset, changes, seed, upstream)

    def cf(self, seed: int, model: str = "sasrec") -> Training:
        """A collaborative-filtering model."""
        return self._node("cf", seed, model=model)

    def stage1(self, cf: Training, **own: Any) -> Training:
        """Stage 1 on a CF model, at its seed."""
        return self._node("stage1", cf.seed, (cf,), **own)

    def stage2(self, stage1: Training, **own: Any) -> Training:
        """Stage 2 on a stage 1 and the CF model beneath it, at their seed."""
        return self._node("stage2", stage1.seed, (stage1.upstream[0], stage1), **own)

    def wording(self) -> Any:
        """Settings of stage 2, which also word the prompts of LLM-Only."""
        return self._node("stage2", 0).settings

    def row(self, name: str, seed: int) -> Row:
        """The row of a system.

        Raises:
            UserError: there is no such system.
        """
        if name == "Popularity":
            return Row(name, name, ())
        if name in CF_MODELS:
            return Row(name, name if name in SYSTEMS else "SASRec", (self.cf(seed, CF_MODELS[name]),))
        if name in TEXT_SYSTEMS:
            kind, own = TEXT_SYSTEMS[name]
            return Row(name, name, (self._node(kind, seed, **own),))
        if name == "LLM-Only":
            return Row(name, name, (), few=True)
        if name in TALLREC:
            return Row(name, name, (self._node("tallrec", seed, protocol=TALLREC[name]),), ("LLM-Only",), few=True)
        if name == "MLP-LLM":
            mlp = self._node("mlp-llm", seed, (self.cf(seed),))
            return Row(name, name, (mlp.upstream[0], mlp), ("LLM-Only",), few=True)
        if name == "A-LLMRec":
            others = ("LLM-Only", *TALLREC, "MLP-LLM")
            return self.allmrec(name, self.stage2(self.stage1(self.cf(seed))), others)
        if name == "A-LLMRec (SBERT)":
            row = self.allmrec(name, self.stage2(self.stage1(self.cf(seed))), ("A-LLMRec",))
            return dataclasses.replace(row, system=name)
        if name == "A-LLMRec_all":
            longer = {**ALL_POSITIONS[self.preset], **self.given.get("stage1", {}), "positions": "all"}
            stage2 = self.stage2(self.stage1(self.cf(seed), **longer), positions="all")
            return self.allmrec(name, stage2, ("A-LLMRec",))
        if name == REDUCED_ROW:
            return dataclasses.replace(self.at(REDUCED).row("A-LLMRec", seed), name=name, against=())
        if name in STAGE1_ABLATIONS:
            return self.allmrec(name, self.stage2(self.stage1(self.cf(seed), **STAGE1_ABLATIONS[name])))
        if name in STAGE2_ABLATIONS:
            return self.allmrec(name, self.stage2(self.stage1(self.cf(seed)), **STAGE2_ABLATIONS[name]))
        backbone = name.removeprefix("A-LLMRec (").removesuffix(")")
        if backbone in CF_MODELS and name == f"A-LLMRec ({backbone})":
            other = self.at(REDUCED)
            stage2 = other.stage2(other.stage1(other.cf(seed, CF_MODELS[backbone])))
            return self.allmrec(name, stage2, (backbone, REDUCED_ROW))
        raise UserError(f"unknown system {name!r}; known: {'; '.join(known_systems())}")

    def allmrec(self, name: str, stage2: Training, against: Sequence[str] = ()) -> Row:
        """A row that answers as A-LLMRec does."""
        return Row(name, "A-LLMRec", (*stage2.upstream, stage2), tuple(against), few=True)


def known_systems() -> list[str]:
    """Every system that has a recipe, in the order of the paper's Table 1."""
    backbones = [f"A-LLMRec ({name})" for name in CF_MODELS if name != "SASRec"]
    ours = ["A-LLMRec", "A-LLMRec (SBERT)", "A-LLMRec_all", REDUCED_ROW, *backbones]
    return ["Popularity", *CF_MODELS, *TEXT_SYSTEMS, "LLM-Only", *TALLREC, "MLP-LLM", *ours]


def choose(table: Sequence[str], names: Sequence[str]) -> list[str]:
    """The table's systems, or of all known those that are named, whatever their case, in the table's order.

    Raises:
        UserError: a name is unknown.
    """
    if not names:
        return list(table)
    everything = {name.casefold(): name for name in (*table, *known_systems())}
    for name in names:
        if name.casefold() not in everything:
            raise UserError(f"unknown system {name!r}; known: {'; '.join(everything.values())}")
    chosen = {everything[name.casefold()] for name in names}
    return [name for name in everything.values() if name in chosen]


def is_baseline(name: str) -> bool:
    """Whether a row is a system of others: neither A-LLMRec in any form nor the bound that no system reaches."""
    return not (name.startswith("A-LLMRec") or name in STAGE1_ABLATIONS or name in STAGE2_ABLATIONS or name == "Oracle")


def at_seeds(recipes: Recipes, names: Sequence[str], seeds: int, few_seeds: int) -> list[Row]:
    """The rows at ``seeds`` seeds each, ``few_seeds`` for those with a language model; once where nothing is drawn."""
    rows = []
    for name in names:
        first = recipes.row(name, 0)
        count = 1 if not first.trainings else few_seeds if first.few else seeds
        rows += [first, *(recipes.row(name, seed) for seed in range(1, count))]
    return rows
