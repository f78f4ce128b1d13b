"""The systems that an evaluation compares, each a function from the same questions to its answers.

A system is an entry of :data:`SYSTEMS`: the name that tables show, what it needs, and how it answers. To add one, write
its answer function and its entry; programs, intervals and pages take it from there.

Shapes: B batch, T time, D model, K candidates, N items, U users.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import Advance, ask, cf_scores, derangement, user_vectors, with_latents
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.rng import numpy_rng
from allmrec_jax.runs import load_run
from allmrec_jax.trained.sources import Sources, run_kind

CHUNK = 256
"""Users whose popularity ranking of the catalogue is held at once."""


@dataclasses.dataclass(frozen=True)
class System:
    """An entry of the registry.

    Attributes:
        answer: from sources and questions to scores and texts, under the name that tables show.
        needs: what must be given: a kind of run (see :func:`run_kind`), ``"arrays"``, ``"llm"``, ``"oracle"``, nothing.
        against: the systems that its Hit@1 is compared with, user by user.
    """

    answer: Callable[[Sources, Questions, str, Advance], Outcome]
    needs: str | None = None
    against: tuple[str, ...] = ()


def _oracle(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    from allmrec_jax.embedded.synthetic import load_oracle, oracle_scores

    if sources.oracle is None:
        raise UserError("Oracle needs the generator's probabilities; name its oracle.npz with --oracle")
    asked = questions.candidates
    return Outcome(name, oracle_scores(load_oracle(sources.oracle), questions.dataset, asked.users, asked.candidates))


def _popularity(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    count, asked = sources.dataset.train_count, questions.candidates
    chunks = np.array_split(np.arange(len(asked.users)), -(-len(asked.users) // CHUNK))
    ranks = [questions.catalogue_ranks(np.tile(count, (len(rows), 1)), rows) for rows in chunks]
    return Outcome(name, count[asked.candidates], catalogue_ranks=np.concatenate(ranks))


def _cf(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Any model that exports item and user vectors or scores of its own."""
    scores, ranks = cf_scores(sources.scoring_model(SYSTEMS[name].needs or ""), questions)
    return Outcome(name, scores, catalogue_ranks=ranks)


def _llm_only(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    return ask(sources.text_recommender, questions, None, name, generate=sources.settings.generate, advance=advance)


def _allmrec(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    users = user_vectors(sources.cf, questions)
    return ask(sources.recommender, questions, users, name, generate=sources.settings.generate, advance=advance)


def _allmrec_sbert(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Every item by its text's latent, trained items too."""
    users = user_vectors(sources.cf, questions)
    recommender = with_latents(sources.recommender, sources.stage1.item_latents("text"))
    return ask(recommender, questions, users, name, generate=sources.settings.generate, advance=advance)


def _mlp_llm(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    users = user_vectors(sources.cf, questions)
    return ask(sources.mlp_llm, questions, users, name, generate=sources.settings.generate, advance=advance)


def _tallrec_yes_no(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    return ask(sources.tallrec("tallrec-yes-no"), questions, None, name, generate=False, advance=advance)


def _tallrec_titles(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    recommender = sources.tallrec("tallrec-titles")
    return ask(recommender, questions, None, name, generate=sources.settings.generate, advance=advance)


def _items_permuted(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Each item carries another item's vector; padding keeps its own."""
    order = derangement(numpy_rng(sources.settings.seed, "eval/items-permuted"), questions.dataset.num_items)
    latents = sources.stage2.latents(sources.stage1)
    permuted = latents if latents is None else latents[np.concatenate([[0], 1 + order])]
    recommender = with_latents(sources.recommender, permuted)
    return ask(recommender, questions, user_vectors(sources.cf, questions), name, generate=False, advance=advance)


def _users_swapped(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Each user carries the vector of another who is evaluated."""
    users = user_vectors(sources.cf, questions)
    swapped = users[derangement(numpy_rng(sources.settings.seed, "eval/users-swapped"), len(users))]
    return ask(sources.recommender, questions, swapped, name, generate=False, advance=advance)


CF = ("SASRec", "CF arrays")

SYSTEMS: dict[str, System] = {
    "Oracle": System(_oracle, needs="oracle"),
    "Popularity": System(_popularity),
    "NCF": System(_cf, needs="ncf cf", against=("SASRec",)),
    "NextItNet": System(_cf, needs="nextitnet cf", against=("SASRec",)),
    "GRU4Rec": System(_cf, needs="gru4rec cf", against=("SASRec",)),
    "SASRec": System(_cf, needs="sasrec cf"),
    "CF arrays": System(_cf, needs="arrays"),
    "MoRec": System(_cf, needs="morec", against=CF),
    "CTRL": System(_cf, needs="ctrl", against=CF),
    "RECFORMER": System(_cf, needs="recformer", against=CF),
    "RECFORMER (tiny)": System(_cf, needs="recformer-tiny", against=CF),
    "LLM-Only": System(_llm_only, needs="llm", against=CF),
    "TALLRec (yes-no)": System(_tallrec_yes_no, needs="tallrec-yes-no", against=(*CF, "LLM-Only")),
    "TALLRec (titles)": System(_tallrec_titles, needs="tallrec-titles", against=(*CF, "LLM-Only")),
    "MLP-LLM": System(_mlp_llm, needs="mlp-llm", against=(*CF, "LLM-Only")),
    "A-LLMRec": System(_allmrec, needs="stage2", against=(*CF, "LLM-Only", "TALLRec (titles)", "MLP-LLM")),
    "A-LLMRec (SBERT)": System(_allmrec_sbert, needs="stage2", against=(*CF, "A-LLMRec")),
    "A-LLMRec, items permuted": System(_items_permuted, needs="stage2", against=("A-LLMRec",)),
    "A-LLMRec, users swapped": System(_users_swapped, needs="stage2", against=("A-LLMRec",)),
}
"""Every system by the name that tables show, in their order. The two controls only rank."""


WRITERS: dict[str, Callable[[Sources], LLMRecommender]] = {
    "LLM-Only": lambda sources: sources.text_recommender,
    "TALLRec (titles)": lambda sources: sources.tallrec("tallrec-titles"),  # type: ignore[dict-item,return-value]
    "A-LLMRec": lambda sources: sources.recommender,
}
"""The systems that can be asked for free text (Figures 4 and 5)."""


def choose_systems(sources: Sources, names: Sequence[str] = ()) -> list[str]:
    """The systems to ask, in the registry's order: those named, or all that the sources allow.

    Raises:
        UserError: a name is unknown.
    """
    if not names:
        return [name for name, system in SYSTEMS.items() if system.needs is None or sources.has(system.needs)]
    known = {name.casefold(): name for name in SYSTEMS}
    for name in names:
        if name.casefold() not in known:
            raise UserError(f"unknown system {name!r}; known: {'; '.join(SYSTEMS)}")
    chosen = {known[name.casefold()] for name in names}
    return [name for name in SYSTEMS if name in chosen]


def compared_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of these systems that are compared user by user."""
    return [(name, other) for name in names for other in SYSTEMS[name].against if other in names]


def system_label(sources: Sources, name: str) -> str:
    """What tables call a system: A-LLMRec by its variant, A-LLMRec_all or on another backbone than SASRec."""
    if SYSTEMS[name].needs != "stage2":
        return name
    trained = [load_run(sources.run(kind))["settings"] for kind in ("stage1", "stage2") if kind in sources.runs]
    everywhere = [each.get("positions") for each in trained] == ["all", "all"]
    variant = "A-LLMRec_all" if everywhere else "A-LLMRec"
    kind = "sasrec cf" if sources.backbone is None else run_kind(load_run(sources.backbone))
    if kind != "sasrec cf":
        variant += f" ({next(other for other, system in SYSTEMS.items() if system.needs == kind)})"
    return name.replace("A-LLMRec", variant, 1)


def system_identity(sources: Sources, system: System) -> str:
    """What a system's answers depend on besides the questions: a run's identity, or a hash of files."""
    if system.needs == "arrays":
        return sources.cf.identity
    if system.needs == "llm":
        return sources.llm_hash
    if system.needs == "oracle" and sources.oracle is not None:
        return hashlib.sha256(sources.oracle.read_bytes()).hexdigest()
    return load_run(sources.run(system.needs))["identity"] if system.needs else sources.dataset.hash


def prompt_settings(sources: Sources, names: Sequence[str]) -> dict[str, Any]:
    """How prompts were worded and cut, where a language model was asked."""
    if not any(SYSTEMS[name].needs in ("llm", "stage2") for name in names):
        return {}
    from allmrec_jax.training.stage2_settings import PRESETS

    trained = sources.stage2.settings if "stage2" in sources.runs else sources.settings.wording or PRESETS["paper"]
    return {
        "llm": sources.settings.llm or sources.stage2.llm,
        "prompt_style": trained.style,
        "history_length": trained.history_length,
        "title_max_tokens": trained.title_max_tokens,
    }
