"""The systems that an evaluation compares, each a function from the same questions to its answers.

A system is an entry of :data:`SYSTEMS`: the name that tables show, what it needs, and how it answers. To add one, write
its answer function and its entry; programs, intervals and pages take it from there.

Shapes: B batch, T time, D model, K candidates, N items, U users.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from allmrec_jax.data.candidates import Candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.inference.yes_no import YesNoRecommender
from allmrec_jax.metrics import catalogue_ranks
from allmrec_jax.models.cf.protocol import CFModel, load_cf, load_export
from allmrec_jax.rng import numpy_rng
from allmrec_jax.runs import find_upstream, load_run, require_upstream
from allmrec_jax.settings import setting
from allmrec_jax.training.cf import bucketed

if TYPE_CHECKING:
    from allmrec_jax.training.stage1 import Stage1Export
    from allmrec_jax.training.stage2 import LLMWeights, Stage2Export, Stage2Settings

HISTORY = 200
"""Items of history at most that a CF model is shown; it takes what it can read of them."""

CHUNK = 256
"""Users whose popularity ranking of the catalogue is held at once."""

Advance = Callable[[int], None]
"""Called with the number of users just answered."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """What every system is asked: the same users, histories and candidates.

    Attributes:
        dataset: the data set.
        candidates: whose target to find, and among which items.
        known: whether its users are those of the training data; strangers are known by their histories alone.
        length: items of history that systems are told of each user, the last ones; ``None`` is all.
    """

    dataset: Dataset
    candidates: Candidates
    known: bool = True
    length: int | None = None

    def indices(self, rows: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"] | None:
        """What a CF model is told of who the users of some rows are."""
        return self.candidates.users[rows] if self.known else None

    @cached_property
    def histories(self) -> Int[np.ndarray, "U T"]:
        """What each user did before the target, left-padded with 0."""
        width = min(HISTORY, int(self.dataset.lengths.max()))
        histories = self.dataset.history(self.candidates.users, self.candidates.cut, width)[0]
        if self.length is not None:
            histories[:, : max(width - self.length, 0)] = 0
        return histories

    def catalogue_ranks(self, scores: Float[np.ndarray, "B N+1"], rows: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """Ranks of the targets of some ``rows`` by their scores of every item; all items met are left out."""
        users = self.candidates.users[rows]
        met, _ = self.dataset.history(users, self.candidates.cut, int(self.dataset.lengths[users].max()))
        return catalogue_ranks(scores, met, self.candidates.target[rows])


def prompts_at_once() -> int:
    """Prompts that a language model reads at once where nobody says: few on a CPU, for its caches."""
    return 4 if jax.default_backend() == "cpu" else 16


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How systems are asked. Nothing here is trained.

    Attributes:
        seed: of the candidate file and of the controls' permutations.
        llm: language model for LLM-Only where no stage-2 run names one.
        batch_size: prompts that the language model reads at once; by default as many as suit the platform.
        decode: how titles are generated.
        generate: whether language models also write titles; ranking alone is faster.
        wording: how LLM-Only's prompts are worded and cut where no stage-2 run says it; by default preset ``paper``'s.
        llm_weights: how the language model's kernels are stored; by default as in training. TALLRec's stay as trained.
    """

    seed: int = 0
    llm: str | None = None
    batch_size: int = dataclasses.field(default_factory=prompts_at_once)
    decode: DecodeSettings = dataclasses.field(default_factory=DecodeSettings)
    generate: bool = True
    wording: "Stage2Settings | None" = None
    llm_weights: "LLMWeights | None" = setting(None, "see above", added=True)  # noqa: RUF009 - of texts


class Sources:
    """Finished runs and files that systems are made of, each opened when a system first needs it.

    Args:
        dataset: what the runs must have been trained on.
        runs: directories of training runs, or of one's own CF arrays; CF runs may be several, of a model each. What a
            stage-2 or MLP-LLM run was built on is found among these, or else beside it.
        settings: how systems are asked.
        oracle: the ``oracle.npz`` of a synthetic data set.

    Attributes:
        titles: [N+1] of the items asked about.

    Raises:
        UserError: a directory holds no finished run, or one of other data.
    """

    def __init__(
        self, dataset: Dataset, runs: Sequence[Path], settings: EvaluationSettings, oracle: Path | None = None
    ) -> None:
        self.dataset, self.settings, self.oracle = dataset, settings, oracle
        self.titles = dataset.titles
        self.runs: dict[str, Path] = {}
        self.backbone: Path | None = None
        for path in map(Path, runs):
            own = not (path / "run.json").is_file() and (path / "items.npy").is_file()
            self._add("arrays" if own else run_kind(load_run(path)), path)
        for kind in ("stage2", "mlp-llm", "stage1"):
            if kind in self.runs:
                self._find_built_on(kind)

    def _add(self, kind: str, path: Path) -> None:
        if kind in self.runs:
            raise UserError(f"{self.runs[kind]} and {path} are both {kind}; name one of them")
        self.runs[kind] = path

    def _find_built_on(self, kind: str) -> None:
        """Adds the runs that this one names as its upstream, where they lie beside it; refuses others given."""
        path = self.runs[kind]
        _, about = find_upstream(path.parent, kind, self.dataset.name, self.dataset.hash, given=path)
        for role in {"stage1", "cf"} & set(about["upstream"]):
            identity = about["upstream"][role]
            beside = path.resolve().parents[1] / role / identity[:12]
            if role == "stage1":
                if role in self.runs:
                    require_upstream(path, about, role, load_run(self.runs[role])["identity"])
                elif beside.is_dir():
                    self.runs[role] = beside
            elif "arrays" in self.runs:
                require_upstream(path, about, role, self.cf.identity)
            elif self.backbone is not None:
                require_upstream(path, about, role, load_run(self.backbone)["identity"])
            else:
                given = [each for name, each in self.runs.items() if name.endswith(" cf")]
                matching = [each for each in given if load_run(each)["identity"] == identity]
                if not matching and beside.is_dir():
                    self._add(run_kind(load_run(beside)), beside)
                    matching = [beside]
                elif not matching and given:
                    require_upstream(path, about, role, load_run(given[0])["identity"])
                self.backbone = matching[0] if matching else None

    def has(self, need: str) -> bool:
        """Whether a system that needs this (see :attr:`System.needs`) can be asked."""
        if need == "oracle":
            return self.oracle is not None
        return need in self.runs or (need == "llm" and ("stage2" in self.runs or self.settings.llm is not None))

    def run(self, kind: str) -> Path:
        """The run of a kind; :class:`UserError` where there is none."""
        if kind not in self.runs:
            raise UserError(f"no {kind} run is given, and none lies beside those given; name one with --runs")
        return self.runs[kind]

    @cached_property
    def cf(self) -> CFModel:
        """The frozen CF model of A-LLMRec: one's own arrays where they are given, else what it was built on."""
        if "arrays" in self.runs:
            return load_cf(self.runs["arrays"], self.dataset)
        given = [path for name, path in self.runs.items() if name.endswith(" cf")]
        path = self.backbone or (given[0] if len(given) == 1 else None)
        if path is None:
            raise UserError(
                "no cf run is given, and none lies beside those given; name one with --runs, for `recommend` with --cf"
            )
        return load_cf(path, self.dataset)

    def scoring_model(self, need: str) -> CFModel:
        """The model of a run that exports one behind the CF protocol, or of one's own arrays."""
        path = self.run(need)
        if need == "arrays":
            return load_cf(path, self.dataset)
        kind = load_run(path)["kind"]
        _, about = find_upstream(path.parent, kind, self.dataset.name, self.dataset.hash, given=path)
        return load_export(path / "export", about["identity"])

    @cached_property
    def stage1(self) -> "Stage1Export":
        """The joint embeddings."""
        from allmrec_jax.training.stage1 import load_stage1

        return load_stage1(self.run("stage1"))

    @cached_property
    def stage2(self) -> "Stage2Export":
        """The projectors and how they were trained."""
        from allmrec_jax.training.stage2 import load_stage2

        return load_stage2(self.run("stage2"))

    @cached_property
    def recommender(self) -> LLMRecommender:
        """A-LLMRec as it was trained. Other systems replace what its slots hold; the language model is loaded once."""
        settings = self.settings
        return self.stage2.recommender(
            self.titles,
            self.stage2.latents(self.stage1),
            llm=settings.llm,
            llm_weights=settings.llm_weights,
            batch_size=settings.batch_size,
            decode=settings.decode,
        )

    @cached_property
    def mlp_llm(self) -> LLMRecommender:
        """MLP-LLM as it was trained."""
        from allmrec_jax.training.stage2 import load_stage2

        export, settings = load_stage2(self.run("mlp-llm")), self.settings
        return export.recommender(
            self.titles,
            export.latents(None, self.cf),
            llm=settings.llm,
            llm_weights=settings.llm_weights,
            batch_size=settings.batch_size,
            decode=settings.decode,
        )

    def tallrec(self, kind: str) -> LLMRecommender | YesNoRecommender:
        """TALLRec as it was trained, by one of its two protocols."""
        from allmrec_jax.baselines.tallrec import load_tallrec

        settings = self.settings
        return load_tallrec(self.run(kind)).recommender(
            self.titles, llm=settings.llm, batch_size=settings.batch_size, decode=settings.decode
        )

    @cached_property
    def text_recommender(self) -> LLMRecommender:
        """The language model alone on text-only prompts, worded as A-LLMRec's where there is such a run."""
        if "stage2" in self.runs:
            return dataclasses.replace(self.recommender, soft=None)
        from allmrec_jax.training.stage2 import PRESETS, text_recommender

        settings = self.settings
        if settings.llm is None:
            raise UserError("LLM-Only needs a language model: name one with --llm, or a stage-2 run with --runs")
        wording = settings.wording or PRESETS["paper"]
        return text_recommender(
            settings.llm,
            self.titles,
            dataclasses.replace(wording, llm_weights=settings.llm_weights or wording.llm_weights),
            batch_size=settings.batch_size,
            decode=settings.decode,
        )

    def label(self, name: str) -> str:
        """What tables call a system: A-LLMRec by its variant, A-LLMRec_all or on another backbone than SASRec."""
        if SYSTEMS[name].needs != "stage2":
            return name
        trained = [load_run(self.run(kind))["settings"] for kind in ("stage1", "stage2") if kind in self.runs]
        everywhere = [each.get("positions") for each in trained] == ["all", "all"]
        variant = "A-LLMRec_all" if everywhere else "A-LLMRec"
        kind = "sasrec cf" if self.backbone is None else run_kind(load_run(self.backbone))
        if kind != "sasrec cf":
            variant += f" ({next(other for other, system in SYSTEMS.items() if system.needs == kind)})"
        return name.replace("A-LLMRec", variant, 1)

    def identity(self, system: "System") -> str:
        """What a system's answers depend on besides the questions: a run's identity, or a hash of files."""
        if system.needs == "arrays":
            return self.cf.identity
        if system.needs == "llm":
            return self.llm_hash
        if system.needs == "oracle" and self.oracle is not None:
            return hashlib.sha256(self.oracle.read_bytes()).hexdigest()
        return load_run(self.run(system.needs))["identity"] if system.needs else self.dataset.hash

    @cached_property
    def llm_hash(self) -> str:
        """The language model's files."""
        if "stage2" in self.runs:
            return self.stage2.about["upstream"]["llm"]
        from allmrec_jax.pretrained.llm import llm_hash

        return llm_hash(self.settings.llm or "")

    def prompt_settings(self, names: Sequence[str]) -> dict[str, Any]:
        """How prompts were worded and cut, where a language model was asked."""
        if not any(SYSTEMS[name].needs in ("llm", "stage2") for name in names):
            return {}
        from allmrec_jax.training.stage2 import PRESETS

        trained = self.stage2.settings if "stage2" in self.runs else self.settings.wording or PRESETS["paper"]
        return {
            "llm": self.settings.llm or self.stage2.llm,
            "prompt_style": trained.style,
            "history_length": trained.history_length,
            "title_max_tokens": trained.title_max_tokens,
        }


def run_kind(about: Mapping[str, Any]) -> str:
    """What a run (its ``run.json``) is to systems: its kind, for CF runs with the model before it (``"sasrec cf"``)."""
    return f"{about['settings'].get('model', 'sasrec')} cf" if about["kind"] == "cf" else about["kind"]


# What systems are made of.


def user_vectors(cf: CFModel, questions: Questions) -> Float[np.ndarray, "U D"]:
    """The CF model's representation of each user before the target."""
    model = cf.at(questions.candidates.cut)
    vectors = np.zeros((len(questions.candidates.users), model.dim), np.float32)
    for rows, part in bucketed(questions.histories):
        asked = questions.indices(np.resize(rows, len(part)))
        vectors[rows] = np.asarray(model.user_vectors(asked, part))[: len(rows)]
    return vectors


def cf_scores(cf: CFModel, questions: Questions) -> tuple[Float[np.ndarray, "U K"], Int[np.ndarray, "U"]]:
    """The model's own score of each candidate, and the target's rank among all items that the user has not met."""
    asked = questions.candidates
    model, candidates = cf.at(asked.cut), asked.candidates
    scores, ranks = np.zeros(candidates.shape, np.float32), np.zeros(len(candidates), np.int64)
    for rows, part in bucketed(questions.histories):
        filled = np.resize(rows, len(part))
        everything = np.asarray(model.score_catalogue(questions.indices(filled), part))[: len(rows)]
        scores[rows] = np.take_along_axis(everything, candidates[rows], axis=1)
        ranks[rows] = questions.catalogue_ranks(everything, rows)
    return scores, ranks


def ask(
    recommender: LLMRecommender | YesNoRecommender,
    questions: Questions,
    users: Float[np.ndarray, "U D"] | None,
    name: str,
    *,
    generate: bool,
    advance: Advance,
) -> Outcome:
    """A language model's scores of the candidates and, with ``generate``, the titles that it writes.

    Users are read in the order of their prompts' lengths, so that batches hold little padding.
    """
    shown = questions.candidates.candidates
    titles = recommender.tables.titles
    tokens = np.diff(titles.offsets)
    tokens[0] = 0
    read = questions.histories[:, -recommender.history_length :]
    order = np.argsort(tokens[read].sum(axis=1) + tokens[shown].sum(axis=1), kind="stable")
    scores = np.zeros(shown.shape, np.float32)
    texts = [""] * len(shown)
    vectors = None if users is None else users[order]
    answers = recommender.respond(questions.histories[order], shown[order], vectors, texts=generate)
    for rows, answer in answers:
        scores[order[rows]] = answer.scores
        for row, text in zip(order[rows], answer.texts or (), strict=False):
            texts[row] = text
        advance(len(order[rows]))
    if not generate:
        return Outcome(name, scores)
    display = {item: recommender.tables.title(item) for item in np.unique(shown)}
    return Outcome(name, scores, texts, [[display[item] for item in row] for row in shown])


def write_freely(recommender: LLMRecommender, questions: Questions, question: str, advance: Advance) -> list[str]:
    """What a language model writes when a history alone is shown and ``question`` is put behind it, per user."""
    read = questions.histories[:, -recommender.history_length :]
    order = np.argsort((read > 0).sum(axis=1), kind="stable")
    texts = [""] * len(read)
    for rows, found in recommender.answer(questions.histories[order], question):
        for row, text in zip(order[rows], found, strict=True):
            texts[row] = text
        advance(len(found))
    return texts


def with_latents(recommender: LLMRecommender, latents: Float[np.ndarray, "N+1 Dj"] | None) -> LLMRecommender:
    """The same trained system with other item vectors behind the titles; :class:`UserError` where it has none."""
    if recommender.soft is None or recommender.soft.latents is None or latents is None:
        raise UserError("this stage-2 run was trained without item vectors; only A-LLMRec itself can be asked")
    return dataclasses.replace(recommender, soft=recommender.soft._replace(latents=jnp.asarray(latents, jnp.float32)))


def derangement(rng: np.random.Generator, count: int) -> Int[np.ndarray, "{count}"]:
    """A random permutation in which nothing stays in its place (for ``count`` of two or more): one long cycle."""
    cycle = rng.permutation(count)
    swapped = np.empty(count, np.int64)
    swapped[cycle] = np.roll(cycle, 1)
    return swapped


# The systems.


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
