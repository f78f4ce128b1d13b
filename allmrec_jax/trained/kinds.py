"""What ``allmrec train NAME`` trains: a record of each kind of training.

Commands, the Python API and the experiments' graph read these records. Nothing heavy is imported here: presets and
training functions are named, and imported when they are asked for.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from allmrec_jax.errors import UserError, did_you_mean
from allmrec_jax.registry import Registry, named
from allmrec_jax.settings import convert, resolve

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset

_NOTHING: Mapping[str, Any] = {}

_ENCODERS = {"paper": "sentence-transformers/nq-distilbert-base-v1", "small": "sbert-nano"}
_LLMS = {"paper": "facebook/opt-6.7b", "small": "opt-nano"}
_LONGFORMERS = dict.fromkeys(("paper", "small"), "allenai/longformer-base-4096")


def _with_official(names: Mapping[str, str]) -> dict[str, str]:
    """The same models by preset, with preset ``official``, which has the paper's."""
    return {"paper": names["paper"], "official": names["paper"], "small": names["small"]}


@dataclasses.dataclass(frozen=True)
class TrainingKind:
    """A kind of training.

    Attributes:
        name: as in ``allmrec train NAME``.
        about: what it trains, in a line.
        presets: ``"module:name"`` of its presets, a dictionary of settings; of dictionaries of settings by model where
            ``by_model``.
        train: ``"module:name"`` of the function that trains it and returns the run's directory. It is called as
            ``train(dataset, *upstream, *models, settings, seed, out, resume=…, quiet=…)``, with the directories of the
            runs that it builds on and the names of its pretrained models, in the orders of those attributes.
        upstream: the kinds that it builds on, each an option of its command (``--cf``, ``--stage1``).
        models: the pretrained model of each preset, by the model's role: ``"encoder"``, ``"llm"`` or ``"longformer"``.
            They are no settings, for they may be paths; a run's identity holds their hashes.
        reads_texts: whether it is of no use on data without titles.
        by_model: whether it trains one of several models, each with presets and settings of its own (``--model``).
        fixed: settings that make it this kind, and that nobody chooses.
        seconds_per_unit: what a step, or an epoch's pass over a user, roughly takes with preset ``small``, the embedded
            data and models and two idle cores; by the run's kind, or by model where ``by_model``. It serves the plan of
            a place where nothing has been timed yet.
    """

    name: str
    about: str
    presets: str
    train: str
    upstream: tuple[str, ...] = ()
    models: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    reads_texts: bool = False
    by_model: bool = False
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds_per_unit: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def load_presets(self) -> Mapping[str, Any]:
        """What :attr:`presets` names."""
        return named(self.presets)

    def settings(self, preset: str, changes: Mapping[str, Any] = _NOTHING, model: str = "sasrec") -> Any:
        """A preset's settings with changes; of a model where the kind has several.

        Raises:
            UserError: an unknown preset, setting or value.
        """
        presets = self.load_presets()
        return resolve(presets[model] if self.by_model else presets, preset, {**changes, **self.fixed})

    def settings_classes(self) -> list[type]:
        """The dataclass of its settings; where it trains one of several models, that of each."""
        presets = self.load_presets().values()
        instances = [each for preset in presets for each in (preset.values() if self.by_model else [preset])]
        return list(dict.fromkeys(map(type, instances)))

    def setting_types(self) -> dict[str, Any]:
        """The type of each of its settings by name."""
        return {name: hint for each in self.settings_classes()[::-1] for name, hint in get_type_hints(each).items()}

    def convert(self, name: str, value: Any, where: str) -> Any:
        """A setting's value in the type of the setting; of a kind with several models, of the first that has it.

        Args:
            name: of the setting.
            value: as text, or as YAML gives it.
            where: what the error calls it.

        Raises:
            UserError: no such setting (the nearest is named), one that nobody chooses, or a value of another type.
        """
        hints = self.setting_types()
        if name not in hints:
            near = did_you_mean(name, hints) or ";"
            raise UserError(f"{where}: {self.name} has no setting {name!r}{near} known: {', '.join(sorted(hints))}")
        if name == "model" and self.by_model:
            raise UserError(f"{where}: models are chosen with --model")
        if name in self.fixed and value != self.fixed[name]:
            raise UserError(f"{where}: {self.name} has {name} {self.fixed[name]}; leave it out")
        return convert(where, hints[name], value)

    def roles(self, settings: Any) -> tuple[str, ...]:
        """The roles of the pretrained models that a training with these settings reads; from scratch there are none."""
        return () if getattr(settings, "start", None) == "scratch" else tuple(self.models)

    def run(
        self,
        dataset: "Dataset",
        settings: Any,
        seed: int,
        out: Path,
        *,
        upstream: Mapping[str, Path | None] = _NOTHING,
        models: Mapping[str, str | Path] = _NOTHING,
        resume: bool = False,
        quiet: bool = False,
    ) -> Path:
        """Trains; returns the run's directory.

        Args:
            dataset: to train on.
            settings: see :meth:`settings`.
            seed: of every random draw.
            out: the folder of all runs.
            upstream: the directory of each run that it builds on, by kind; ``None`` where the settings want none.
            models: name or path of each pretrained model, by role.
            resume: continue an interrupted run.
            quiet: show no progress.

        Raises:
            UserError: as the training raises it.
        """
        given = (*(upstream[kind] for kind in self.upstream), *(models[role] for role in self.models))
        return named(self.train)(dataset, *given, settings, seed, out, resume=resume, quiet=quiet)


KINDS = Registry(
    "kind of training",
    (
        TrainingKind(
            "cf",
            "the collaborative-filtering model",
            presets="allmrec_jax.models.cf.registry:CF_PRESETS",
            train="allmrec_jax.training.cf:train_cf",
            by_model=True,
            seconds_per_unit={"sasrec": 1e-4, "ncf": 2e-4, "nextitnet": 2.5e-4, "gru4rec": 8e-4},
        ),
        TrainingKind(
            "morec",
            "SASRec over a sentence encoder, trained end to end",
            presets="allmrec_jax.baselines.morec:PRESETS",
            train="allmrec_jax.baselines.morec:train_morec",
            models={"encoder": _ENCODERS},
            reads_texts=True,
            seconds_per_unit={"morec": 5.6e-3},
        ),
        TrainingKind(
            "ctrl",
            "SASRec aligned with texts by contrast, then fine-tuned",
            presets="allmrec_jax.baselines.ctrl:PRESETS",
            train="allmrec_jax.baselines.ctrl:train_ctrl",
            models={"encoder": _with_official(_ENCODERS)},
            reads_texts=True,
            seconds_per_unit={"ctrl": 6.5e-4},
        ),
        TrainingKind(
            "recformer",
            "a Longformer that reads histories as text",
            presets="allmrec_jax.baselines.recformer:PRESETS",
            train="allmrec_jax.baselines.recformer:train_recformer",
            models={"longformer": _LONGFORMERS},
            reads_texts=True,
            seconds_per_unit={"recformer-tiny": 6e-3},
        ),
        TrainingKind(
            "stage1",
            "align item embeddings with item texts",
            presets="allmrec_jax.training.stage1_settings:PRESETS",
            train="allmrec_jax.training.stage1:train_stage1",
            upstream=("cf",),
            models={"encoder": _with_official(_ENCODERS)},
            reads_texts=True,
            seconds_per_unit={"stage1": 3.1e-3},
        ),
        TrainingKind(
            "stage2",
            "project users and items into the LLM's token space",
            presets="allmrec_jax.training.stage2_settings:PRESETS",
            train="allmrec_jax.training.stage2:train_stage2",
            upstream=("cf", "stage1"),
            models={"llm": _with_official(_LLMS)},
            reads_texts=True,
            seconds_per_unit={"stage2": 0.59},
        ),
        TrainingKind(
            "mlp-llm",
            "MLP-LLM: CF vectors straight into the LLM's token space",
            presets="allmrec_jax.baselines.mlp_llm:PRESETS",
            train="allmrec_jax.baselines.mlp_llm:train_mlp_llm",
            upstream=("cf",),
            models={"llm": _with_official(_LLMS)},
            reads_texts=True,
            fixed={"item_vectors": "cf"},
            seconds_per_unit={"mlp-llm": 0.59},
        ),
        TrainingKind(
            "tallrec",
            "TALLRec: LoRA on the LLM",
            presets="allmrec_jax.baselines.tallrec:PRESETS",
            train="allmrec_jax.baselines.tallrec:train_tallrec",
            models={"llm": _LLMS},
            reads_texts=True,
            seconds_per_unit={"tallrec-yes-no": 0.2, "tallrec-titles": 0.55},
        ),
    ),
)
"""Every kind of training by name, in the order in which ``allmrec train --help`` lists them."""


def register_kind(kind: TrainingKind) -> TrainingKind:
    """Adds a kind of training and returns it.

    Raises:
        UserError: the name is taken.
    """
    return KINDS.register(kind)


def preset_models(preset: str) -> dict[str, str]:
    """The pretrained models of a preset, by role."""
    return {role: names[preset] for kind in KINDS.values() for role, names in kind.models.items() if preset in names}


def setting_lines(name: str, value: str, kinds: Sequence[str]) -> list[str]:
    """The ``KIND.SETTING=VALUE`` lines that a setting named without its kind may mean: one for each kind."""
    name = name.replace("-", "_")
    return [f"{kind}.{name}={value}" for kind in kinds if name in KINDS[kind].setting_types()]


def parse_changes(lines: Iterable[str], kinds: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """``KIND.SETTING=VALUE`` lines as a dictionary by kind; where one kind is trained, also ``SETTING=VALUE`` lines.

    Args:
        lines: as ``--set`` takes them.
        kinds: those that are trained; all by default.

    Raises:
        UserError: a line of another form, an unknown kind or setting, or a value of another type.
    """
    kinds = list(KINDS) if kinds is None else kinds
    changes: dict[str, dict[str, Any]] = {}
    for line in lines:
        target, equals, value = line.partition("=")
        kind, dot, name = target.strip().partition(".")
        if not dot and len(kinds) == 1:
            kind, name = kinds[0], kind
        form = "SETTING=VALUE" if len(kinds) == 1 else f"KIND.SETTING=VALUE, with a kind of {', '.join(kinds)},"
        if not equals or not name:
            having = "" if dot else " or ".join(setting_lines(kind, value or "…", kinds))
            raise UserError(f"--set {line}: " + (f"write --set {having}" if having else f"{form} is expected"))
        if kind not in kinds:
            near = did_you_mean(kind, kinds) or ";"
            raise UserError(f"--set {line}: {kind!r} is not trained here{near} {form} is expected")
        name = name.strip().replace("-", "_")
        changes.setdefault(kind, {})[name] = KINDS[kind].convert(name, value.strip(), f"--set {line}")
    return changes
