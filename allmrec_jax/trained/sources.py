"""Finished runs and files, opened as what systems are made of; each when it is first needed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.inference.yes_no import YesNoRecommender
from allmrec_jax.models.cf.protocol import CFModel, load_cf, load_export
from allmrec_jax.prompts import chat_of
from allmrec_jax.runs import find_upstream, load_run, require_upstream
from allmrec_jax.settings import setting

if TYPE_CHECKING:
    from allmrec_jax.pretrained.frozen_llm import LLMWeights
    from allmrec_jax.trained.stage2 import Stage2Export
    from allmrec_jax.training.stage1_export import Stage1Export
from allmrec_jax.training.stage2_settings import Stage2Settings


def run_kind(about: Mapping[str, Any]) -> str:
    """What a run (its ``run.json``) is to systems: its kind, for CF runs with the model before it (``"sasrec cf"``)."""
    return f"{about['settings'].get('model', 'sasrec')} cf" if about["kind"] == "cf" else about["kind"]


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
        chat: put LLM-Only's prompts in the tokenizer's chat template; those of trained systems stay as trained.
    """

    seed: int = 0
    llm: str | None = None
    batch_size: int = dataclasses.field(default_factory=prompts_at_once)
    decode: DecodeSettings = dataclasses.field(default_factory=DecodeSettings)
    generate: bool = True
    wording: "Stage2Settings | None" = None
    llm_weights: "LLMWeights | None" = setting(None, "see above", added=True)  # noqa: RUF009 - of texts
    chat: bool = setting(False, "see above", added=True)


class Sources:
    """Finished runs and files that systems are made of, each opened when a system first needs it.

    Args:
        dataset: what the runs must have been trained on.
        runs: directories of training runs, or of one's own CF arrays; CF runs may be several, of a model each. What a
            stage-2 or MLP-LLM run was built on is found among these, or else beside it.
        settings: how systems are asked.
        oracle: the ``oracle.npz`` of a synthetic data set.
        option: of the command in use, which names a run of a role (``"cf"``, ``"stage1"``); for messages.

    Attributes:
        titles: [N+1] of the items asked about.

    Raises:
        UserError: a directory holds no finished run, or one of other data.
    """

    def __init__(
        self,
        dataset: Dataset,
        runs: Sequence[Path],
        settings: EvaluationSettings,
        oracle: Path | None = None,
        *,
        option: Callable[[str], str] = lambda role: "--runs",
    ) -> None:
        self.dataset, self.settings, self.oracle, self.option = dataset, settings, oracle, option
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
                    require_upstream(path, about, role, load_run(self.runs[role])["identity"], self.option(role))
                elif beside.is_dir():
                    self.runs[role] = beside
            elif "arrays" in self.runs:
                require_upstream(path, about, role, self.cf.identity, self.option(role))
            elif self.backbone is not None:
                require_upstream(path, about, role, load_run(self.backbone)["identity"], self.option(role))
            else:
                given = [each for name, each in self.runs.items() if name.endswith(" cf")]
                matching = [each for each in given if load_run(each)["identity"] == identity]
                if not matching and beside.is_dir():
                    self._add(run_kind(load_run(beside)), beside)
                    matching = [beside]
                elif not matching and given:
                    require_upstream(path, about, role, load_run(given[0])["identity"], self.option(role))
                self.backbone = matching[0] if matching else None

    def has(self, need: str) -> bool:
        """Whether a system that needs this (see :attr:`System.needs`) can be asked."""
        if need == "oracle":
            return self.oracle is not None
        return need in self.runs or (need == "llm" and ("stage2" in self.runs or self.settings.llm is not None))

    def run(self, kind: str) -> Path:
        """The run of a kind; :class:`UserError` where there is none."""
        if kind not in self.runs:
            raise UserError(
                f"no {kind} run is given, and none lies beside those given; name one with {self.option(kind)}"
            )
        return self.runs[kind]

    @cached_property
    def cf(self) -> CFModel:
        """The frozen CF model of A-LLMRec: one's own arrays where they are given, else what it was built on."""
        if "arrays" in self.runs:
            return load_cf(self.runs["arrays"], self.dataset)
        given = [path for name, path in self.runs.items() if name.endswith(" cf")]
        path = self.backbone or (given[0] if len(given) == 1 else None)
        if path is None:
            raise UserError(f"no cf run is given, and none lies beside those given; name one with {self.option('cf')}")
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
        from allmrec_jax.training.stage1_export import load_stage1

        return load_stage1(self.run("stage1"))

    @cached_property
    def stage2(self) -> "Stage2Export":
        """The projectors and how they were trained."""
        from allmrec_jax.trained.stage2 import load_stage2

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
        from allmrec_jax.trained.stage2 import load_stage2

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
        from allmrec_jax.trained.tallrec import load_tallrec

        settings = self.settings
        return load_tallrec(self.run(kind)).recommender(
            self.titles, llm=settings.llm, batch_size=settings.batch_size, decode=settings.decode
        )

    @cached_property
    def text_recommender(self) -> LLMRecommender:
        """The language model alone on text-only prompts, worded as A-LLMRec's where there is such a run."""
        if "stage2" in self.runs:
            tables = self.recommender.tables
            if self.settings.chat:
                where = self.settings.llm or self.stage2.llm
                tables = dataclasses.replace(tables, chat=chat_of(tables.tokenizer, where))
            return dataclasses.replace(self.recommender, soft=None, tables=tables)
        from allmrec_jax.trained.stage2 import text_recommender
        from allmrec_jax.training.stage2_settings import PRESETS

        settings = self.settings
        if settings.llm is None:
            raise UserError("LLM-Only needs a language model: name one with --llm, or a stage-2 run with --runs")
        wording = settings.wording or PRESETS["paper"]
        return text_recommender(
            settings.llm,
            self.titles,
            dataclasses.replace(
                wording,
                llm_weights=settings.llm_weights or wording.llm_weights,
                chat=settings.chat or wording.chat,
            ),
            batch_size=settings.batch_size,
            decode=settings.decode,
        )

    @cached_property
    def llm_hash(self) -> str:
        """The language model's files."""
        if "stage2" in self.runs:
            return self.stage2.about["upstream"]["llm"]
        from allmrec_jax.pretrained.llm import llm_hash

        return llm_hash(self.settings.llm or "")
