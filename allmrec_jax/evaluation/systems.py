"""The systems that an evaluation compares, each a function from the same questions to its answers.

A system is a record of :data:`SYSTEMS`. To add one, write its answer function and its record; programs, intervals and
pages take it from there. A package of others adds its own by :func:`register_system`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation import answers
from allmrec_jax.evaluation.ask import Advance
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.models.cf.registry import CF_MODELS
from allmrec_jax.registry import Registry
from allmrec_jax.runs import load_run
from allmrec_jax.trained.sources import Sources, run_kind


@dataclasses.dataclass(frozen=True)
class System:
    """All that there is to say of a system. Evaluations, tables, reports and ``--help`` read it.

    Attributes:
        name: as tables show it.
        about: what it is, in a line.
        answer: from sources and questions to scores and texts, under the name that it is given.
        needs: what it is made of: a kind of run (see :func:`allmrec_jax.trained.sources.run_kind`), ``"arrays"``,
            ``"llm"``, ``"oracle"``, or nothing.
        trained: the kind of training that makes it, one of :data:`allmrec_jax.trained.kinds.KINDS`; ``None`` where an
            experiment trains nothing for it.
        changes: settings in which its trainings differ from the preset, by kind of training.
        usual: the same by preset, where neither the user nor a table's budget says otherwise.
        budget: one of :data:`allmrec_jax.experiments.rows.BUDGETS`, where it has one of its own.
        against: the systems that its Hit@1 is compared with, user by user.
        llm: whether it reads long prompts, so that experiments may ask it about fewer users.
        role: a system of others, ``"baseline"``; A-LLMRec in some form, ``"ours"``; or what no system reaches,
            ``"bound"``.
        writes: the language model that answers in free text (Figures 4 and 5), where it has one.
        variant_of: the system as which it answers, trained in another way. Variants are rows of experiments; an
            evaluation of given runs calls them by what they are variants of.
        only_in: the one table in which it stands.
        presets: those at which it stands in tables without being asked for; ``None`` is all.
    """

    name: str
    about: str
    answer: Callable[[Sources, Questions, str, Advance], Outcome]
    needs: str | None = None
    trained: str | None = None
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    usual: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    budget: str | None = None
    against: tuple[str, ...] = ()
    llm: bool = False
    role: Literal["baseline", "ours", "bound"] = "baseline"
    writes: Callable[[Sources], LLMRecommender] | None = None
    variant_of: str | None = None
    only_in: str | None = None
    presets: tuple[str, ...] | None = None


CF = ("SASRec", "CF arrays")
"""The frozen CF models that A-LLMRec usually stands on."""

REDUCED = "A-LLMRec, reduced"
"""A-LLMRec at the reduced budget: what rows at that budget are compared with."""

_LLM_BASELINES = ("LLM-Only", "TALLRec (yes-no)", "TALLRec (titles)", "MLP-LLM")


def cf_system(model: str) -> System:
    """The system that a CF model is by itself."""
    architecture, needs = CF_MODELS.records[model].load(), f"{model} cf"
    return System(
        architecture.title,
        architecture.about,
        answers.cf_answer(needs),
        needs=needs,
        trained="cf",
        changes={"cf": {"model": model}},
        against=() if model == "sasrec" else ("SASRec",),
    )


def cf_backbone(model: str) -> System:
    """A-LLMRec on a CF model."""
    title = CF_MODELS.records[model].load().title
    return System(
        f"A-LLMRec ({title})",
        f"A-LLMRec on {title}",
        answers.allmrec,
        needs="stage2",
        trained="stage2",
        changes={"cf": {"model": model}},
        budget="reduced",
        against=(title, REDUCED),
        llm=True,
        role="ours",
        variant_of="A-LLMRec",
        only_in="table11" if model == "sasrec" else None,
    )


def _text_model(name: str, about: str, kind: str, needs: str, **more: Any) -> System:
    return System(name, about, answers.cf_answer(needs), needs=needs, trained=kind, against=CF, **more)


def _ablation(name: str, about: str, table: str, kind: str, **changes: Any) -> System:
    """A-LLMRec trained again without one of its parts."""
    return System(
        name,
        about,
        answers.allmrec,
        needs="stage2",
        trained="stage2",
        changes={kind: changes},
        llm=True,
        role="ours",
        variant_of="A-LLMRec",
        only_in=table,
    )


def _of_cf_models() -> Iterator[System]:
    """What follows from each CF model, also of those that others have registered."""
    new = [model for model, entry in CF_MODELS.items() if entry.load().title not in SYSTEMS.records]
    yield from map(cf_system, new)
    yield from map(cf_backbone, new)


SYSTEMS = Registry(
    "system",
    (
        System(
            "Oracle",
            "the probabilities by which synthetic data were made",
            answers.oracle,
            needs="oracle",
            role="bound",
        ),
        System("Popularity", "items by their number of training interactions", answers.popularity),
        cf_system("ncf"),
        cf_system("nextitnet"),
        cf_system("gru4rec"),
        cf_system("sasrec"),
        System("CF arrays", "a CF model of one's own, by its vectors", answers.cf_answer("arrays"), needs="arrays"),
        _text_model("MoRec", "SASRec over a sentence encoder, trained end to end", "morec", "morec"),
        _text_model("CTRL", "SASRec aligned with texts by contrast, then fine-tuned", "ctrl", "ctrl"),
        _text_model(
            "RECFORMER",
            "a Longformer that reads histories as text",
            "recformer",
            "recformer",
            changes={"recformer": {"start": "longformer"}},
            presets=("paper",),
        ),
        _text_model(
            "RECFORMER (tiny)",
            "the same, small and from scratch",
            "recformer",
            "recformer-tiny",
            changes={"recformer": {"start": "scratch"}},
            presets=("small",),
        ),
        System(
            "LLM-Only",
            "the frozen LLM reads the history's and candidates' titles",
            answers.llm_only,
            needs="llm",
            against=CF,
            llm=True,
            writes=lambda sources: sources.text_recommender,
        ),
        System(
            "TALLRec (yes-no)",
            "LoRA on the LLM, asked about one candidate at a time",
            answers.tallrec_yes_no,
            needs="tallrec-yes-no",
            trained="tallrec",
            changes={"tallrec": {"protocol": "yes-no"}},
            against=(*CF, "LLM-Only"),
            llm=True,
        ),
        System(
            "TALLRec (titles)",
            "LoRA on the LLM, which writes the title out of twenty",
            answers.tallrec_titles,
            needs="tallrec-titles",
            trained="tallrec",
            changes={"tallrec": {"protocol": "titles"}},
            against=(*CF, "LLM-Only"),
            llm=True,
            writes=answers.tallrec_writer,
        ),
        System(
            "MLP-LLM",
            "CF vectors straight into the LLM's token space, no stage 1",
            answers.mlp_llm,
            needs="mlp-llm",
            trained="mlp-llm",
            against=(*CF, "LLM-Only"),
            llm=True,
        ),
        System(
            "A-LLMRec",
            "CF vectors aligned with texts, then projected into the frozen LLM's token space",
            answers.allmrec,
            needs="stage2",
            trained="stage2",
            against=(*CF, *_LLM_BASELINES),
            llm=True,
            role="ours",
            writes=lambda sources: sources.recommender,
        ),
        System(
            "A-LLMRec (SBERT)",
            "the same run with every item by its text's latent, as if it were new",
            answers.allmrec_sbert,
            needs="stage2",
            trained="stage2",
            against=(*CF, "A-LLMRec"),
            llm=True,
            role="ours",
        ),
        System(
            "A-LLMRec, items permuted",
            "a control: each item carries another item's vector",
            answers.items_permuted,
            needs="stage2",
            against=("A-LLMRec",),
            llm=True,
            role="ours",
        ),
        System(
            "A-LLMRec, users swapped",
            "a control: each user carries another user's vector",
            answers.users_swapped,
            needs="stage2",
            against=("A-LLMRec",),
            llm=True,
            role="ours",
        ),
        System(
            "A-LLMRec_all",
            "A-LLMRec trained on every position of the histories",
            answers.allmrec,
            needs="stage2",
            trained="stage2",
            changes={"stage1": {"positions": "all"}, "stage2": {"positions": "all"}},
            # Its epochs are many times as long as those of the last positions, which the preset's are meant for.
            usual={"small": {"stage1": {"epochs": 1}}},
            against=("A-LLMRec",),
            llm=True,
            role="ours",
            variant_of="A-LLMRec",
        ),
        System(
            REDUCED,
            "A-LLMRec trained as shortly as the rows that are compared with it",
            answers.allmrec,
            needs="stage2",
            trained="stage2",
            budget="reduced",
            llm=True,
            role="ours",
            variant_of="A-LLMRec",
        ),
        cf_backbone("ncf"),
        cf_backbone("nextitnet"),
        cf_backbone("gru4rec"),
        cf_backbone("sasrec"),
        _ablation("w/o L_matching", "stage 1 without the matching loss", "table8", "stage1", match_weight=0.0),
        _ablation(
            "w/o L_item-recon and L_text-recon",
            "stage 1 without the two reconstruction losses",
            "table8",
            "stage1",
            alpha=0.0,
            beta=0.0,
        ),
        _ablation("w/o L_rec", "stage 1 without the recommendation loss", "table8", "stage1", rec_weight=0.0),
        _ablation("frozen SBERT", "stage 1 with a frozen sentence encoder", "table8", "stage1", freeze_encoder=True),
        # Text latents are of the kind of vectors that the last two lack.
        _ablation("w/o user representation", "stage 2 without user vectors", "table9", "stage2", user_vector=False),
        _ablation(
            "w/o joint embedding",
            "stage 2 without item vectors",
            "table9",
            "stage2",
            item_vectors="none",
            text_share=0.0,
        ),
        _ablation(
            "random joint embedding",
            "stage 2 with fixed random item vectors of N(0, 1)",
            "table9",
            "stage2",
            item_vectors="normal",
            text_share=0.0,
        ),
    ),
    derived=_of_cf_models,
)
"""Every system by the name that tables show, in their order. The two controls only rank."""


def register_system(system: System) -> System:
    """Adds a system, to be asked by evaluations and experiments; returns it.

    Raises:
        UserError: the name is taken.
    """
    return SYSTEMS.register(system)


def is_baseline(name: str) -> bool:
    """Whether tables call so a system of others, which A-LLMRec is to be above."""
    return name in SYSTEMS and SYSTEMS[name].role == "baseline"


def asked_by_evaluations() -> list[str]:
    """The systems that an evaluation of given runs may ask."""
    return [name for name, system in SYSTEMS.items() if system.variant_of is None]


def choose_systems(sources: Sources, names: Sequence[str] = ()) -> list[str]:
    """The systems to ask, in the registry's order: those named, or all that the sources allow.

    Raises:
        UserError: a name is unknown.
    """
    asked = asked_by_evaluations()
    if not names:
        return [name for name in asked if (needs := SYSTEMS[name].needs) is None or sources.has(needs)]
    known = {name.casefold(): name for name in asked}
    for name in names:
        if name.casefold() not in known:
            raise UserError(f"unknown system {name!r}; known: {'; '.join(asked)}")
    chosen = {known[name.casefold()] for name in names}
    return [name for name in asked if name in chosen]


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
    chat = {"chat": True} if sources.settings.chat or trained.chat else {}
    return {
        **chat,
        "llm": sources.settings.llm or sources.stage2.llm,
        "prompt_style": trained.style,
        "history_length": trained.history_length,
        "title_max_tokens": trained.title_max_tokens,
    }
