"""Training: each stage of A-LLMRec, what it is compared with, and all stages at once."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allmrec_jax.api.data import load_data
from allmrec_jax.api.devices import devices
from allmrec_jax.api.recommending import ALLMRec
from allmrec_jax.api.runs import TrainedRun, check_name, find_run, label_run, list_runs, read_run
from allmrec_jax.errors import UserError, did_you_mean
from allmrec_jax.trained.kinds import KINDS

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset
    from allmrec_jax.trained.kinds import TrainingKind

Run = TrainedRun | str | os.PathLike[str]
"""A run: as the training functions return it, its directory, or its name."""

OPTIONS = {"encoder": "--sentence-encoder", "llm": "--llm", "longformer": "--longformer"}
"""The option that names a pretrained model, by its role; with underscores the keyword."""

DEFAULT_PRESET = "small"

DEFAULT_MODEL = "sasrec"
"""Of the CF models."""

log = logging.getLogger(__name__)


def train_cf(
    data: "Dataset | str | os.PathLike[str]",
    *,
    model: str = DEFAULT_MODEL,
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    name: str | None = None,
    resume: bool = False,
    mesh: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Trains the collaborative-filtering model on next-item prediction, and exports it.

    Args:
        data: a data set, or its directory.
        model: ``"sasrec"``, ``"nextitnet"``, ``"gru4rec"`` or ``"ncf"``.
        preset: ``"small"``, ``"paper"`` or, for SASRec, ``"official"``.
        seed: of every random draw.
        checkpoints: the folder of runs. A finished run of the same identity is found there and not repeated.
        name: a name for the run, which can be given in place of its directory.
        resume: continue an interrupted run.
        mesh: devices to use, e.g. ``"data=2"``.
        quiet: show no progress.
        settings: single settings in place of the preset's, e.g. ``epochs=3``.

    Raises:
        UserError: an unknown setting (the nearest known one is named), or an input that does not fit.

    Example:
        >>> cf = ar.train_cf(data, model="sasrec", preset="small", epochs=3)
    """
    return train_model(
        "cf", data, model=model, preset=preset, seed=seed, checkpoints=checkpoints, name=name, resume=resume, mesh=mesh,
        quiet=quiet, **settings,
    )  # fmt: skip


def train_stage1(
    data: "Dataset | str | os.PathLike[str]",
    cf: Run | None = None,
    *,
    sentence_encoder: str | None = None,
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    name: str | None = None,
    resume: bool = False,
    mesh: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Aligns the CF model's items with their texts (stage 1 of A-LLMRec), with the CF model frozen.

    Args:
        data: the data set that the CF model was trained on, or its directory.
        cf: the CF run, or a directory of one's own CF arrays; the only one there is by default.
        sentence_encoder: a sentence-transformers directory or hub name, or ``"sbert-nano"``; the preset's by default.
        preset: ``"small"``, ``"paper"`` or ``"official"``.
        seed: of every random draw.
        checkpoints: the folder of runs.
        name: a name for the run.
        resume: continue an interrupted run.
        mesh: devices to use.
        quiet: show no progress.
        settings: single settings in place of the preset's, e.g. ``alpha=0.2``.

    Raises:
        UserError: an unknown setting, an upstream run that does not match, or a model that cannot be had.

    Example:
        >>> stage1 = ar.train_stage1(data, cf, sentence_encoder="sbert-nano")
    """
    return train_model(
        "stage1", data, cf=cf, sentence_encoder=sentence_encoder, preset=preset, seed=seed, checkpoints=checkpoints,
        name=name, resume=resume, mesh=mesh, quiet=quiet, **settings,
    )  # fmt: skip


def train_stage2(
    data: "Dataset | str | os.PathLike[str]",
    cf: Run | None = None,
    stage1: Run | None = None,
    *,
    llm: str | None = None,
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    name: str | None = None,
    resume: bool = False,
    mesh: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> ALLMRec:
    """Trains the projectors into the language model's token space (stage 2 of A-LLMRec), with all else frozen.

    Args:
        data: the data set that both runs were trained on, or its directory.
        cf: the CF run, or a directory of one's own CF arrays; the only one there is by default.
        stage1: the stage-1 run built on it; the only one there is by default.
        llm: the language model as a directory, hub name or GGUF file, or ``"opt-nano"``; the preset's by default.
        preset: ``"small"``, ``"paper"`` or ``"official"``.
        seed: of every random draw.
        checkpoints: the folder of runs.
        name: a name for the run.
        resume: continue an interrupted run.
        mesh: devices to use, e.g. ``"data=2,tensor=4"``.
        quiet: show no progress.
        settings: single settings in place of the preset's, e.g. ``steps=160``.

    Returns:
        The trained system; see :meth:`ALLMRec.recommend`.

    Raises:
        UserError: an unknown setting, an upstream run that does not match, or a model that cannot be had.

    Example:
        >>> system = ar.train_stage2(data, cf, stage1, llm="opt-nano", preset="small")
        >>> system.recommend(history=["The Matrix (1999)"], count=5)
    """
    trained = train_model(
        "stage2", data, cf=cf, stage1=stage1, llm=llm, preset=preset, seed=seed, checkpoints=checkpoints, name=name,
        resume=resume, mesh=mesh, quiet=quiet, **settings,
    )  # fmt: skip
    assert isinstance(trained, ALLMRec)
    return trained


def train_model(
    kind: str,
    data: "Dataset | str | os.PathLike[str]",
    *,
    model: str | None = None,
    cf: Run | None = None,
    stage1: Run | None = None,
    llm: str | None = None,
    sentence_encoder: str | None = None,
    longformer: str | None = None,
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    name: str | None = None,
    resume: bool = False,
    mesh: str | None = None,
    distributed: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Trains anything that ``allmrec train`` can train, by the name of its command.

    Args:
        kind: ``"cf"``, ``"stage1"``, ``"stage2"``, ``"mlp-llm"``, ``"tallrec"``, ``"morec"``, ``"ctrl"``,
            ``"recformer"``, or one that was registered.
        data: a data set, or its directory.
        model: which CF model, for ``"cf"``.
        cf: the CF run that it builds on, for ``"stage1"``, ``"stage2"`` and ``"mlp-llm"``.
        stage1: the stage-1 run that it builds on, for ``"stage2"``.
        llm: the language model, for ``"stage2"``, ``"mlp-llm"`` and ``"tallrec"``.
        sentence_encoder: the sentence encoder, for ``"stage1"``, ``"morec"`` and ``"ctrl"``.
        longformer: the Longformer that ``"recformer"`` starts from.
        preset: whose settings to take.
        seed: of every random draw.
        checkpoints: the folder of runs.
        name: a name for the run.
        resume: continue an interrupted run.
        mesh: devices to use.
        distributed: join processes on several hosts, see :func:`allmrec_jax.api.devices.devices`.
        quiet: show no progress.
        settings: single settings in place of the preset's.

    Raises:
        UserError: an unknown kind or setting, an argument that the kind does not take, or as the training raises it.

    Example:
        >>> tallrec = ar.train_model("tallrec", data, llm="opt-nano", protocol="titles")
    """
    record = KINDS.find(kind)
    given = {"encoder": sentence_encoder, "llm": llm, "longformer": longformer}
    named = {"cf": cf, "stage1": stage1}
    for role, value in given.items():
        if value is not None and role not in record.models:
            raise UserError(f"{record.name} reads no {role}; leave {OPTIONS[role]} out")
    for role, run in named.items():
        if run is not None and role not in record.upstream:
            raise UserError(f"{record.name} is not built on a {role} run; leave --{role} out")
    resolved = resolve_settings(record, preset, settings, model)
    models = {role: given[role] or record.models[role][preset] for role in record.models}
    with devices(mesh, distributed, lambda: models.get("llm")):
        dataset = load_data(data)
        root = Path(checkpoints)
        run_kind = getattr(resolved, "kind", record.name)
        if name is not None:
            check_name(name, root, dataset.name, run_kind)
        found = {role: _upstream(role, named.get(role), dataset, root, resolved) for role in record.upstream}
        try:
            path = record.run(dataset, resolved, seed, root, upstream=found, models=models, resume=resume, quiet=quiet)
        except UserError as error:
            raise _with_what_works(error, record, preset, models, given) from error
        return _handle(label_run(read_run(path), root, data=dataset.path, name=name), dataset)


def resolve_settings(record: "TrainingKind", preset: str, settings: Mapping[str, Any], model: str | None = None) -> Any:
    """The settings dataclass of a kind of training: a preset with some settings in place of its own.

    Raises:
        UserError: an unknown model, preset or setting, or one that makes the kind what it is.
    """
    if model is not None and not record.by_model:
        raise UserError(f"{record.name} has no models to choose from; leave --model out")
    model = model or DEFAULT_MODEL
    if record.by_model:
        known = record.load_presets()
        if model not in known:
            raise UserError(f"unknown model {model!r}; known: {', '.join(known)}{did_you_mean(model, known)}")
    settings = {name: record.convert(name, value, f"setting {name}") for name, value in settings.items()}
    return record.settings(preset, settings, model)


def _upstream(role: str, given: Run | None, dataset: "Dataset", checkpoints: Path, settings: Any) -> Path | None:
    """The run that a training builds on: the one given, else the only one there is; ``None`` where none is read."""
    if given is not None:
        return find_run(given, checkpoints, data=dataset, kind=role)
    if role == "stage1" and getattr(settings, "item_vectors", None) == "cf":
        return None
    from allmrec_jax.runs import find_upstream

    return find_upstream(checkpoints, role, dataset.name, dataset.hash)[0]


def _with_what_works(
    error: UserError, record: "TrainingKind", preset: str, models: Mapping[str, str], given: Mapping[str, str | None]
) -> UserError:
    """The error, and for a preset whose model cannot be had what would work on this machine."""
    for role, model in models.items():
        carried = record.models[role].get(DEFAULT_PRESET)
        if given[role] is None and str(model) in str(error) and carried not in (None, model):
            return UserError(
                f"{error}; it is what preset {preset} takes: --preset {DEFAULT_PRESET} takes {carried}, which is here; "
                f"or name another with {OPTIONS[role]}"
            )
    return error


def _handle(run: TrainedRun, dataset: "Dataset | None") -> TrainedRun:
    return ALLMRec(run.path, run.about, dataset) if run.kind == "stage2" else run


def load(
    run: Run,
    *,
    data: "Dataset | str | os.PathLike[str] | None" = None,
    checkpoints: str | os.PathLike[str] = "checkpoints",
) -> TrainedRun:
    """Opens a finished run.

    Args:
        run: its directory, its name, or the beginning of its identity.
        data: the data set that it was trained on, or its directory; where it was in training by default.
        checkpoints: the folder of runs in which names are looked up.

    Returns:
        An :class:`ALLMRec`, which recommends, for a stage-2 run.

    Raises:
        UserError: there is no such run, it is not finished, or it was trained on another data set.

    Example:
        >>> system = ar.load("checkpoints/ml/stage2/0a1b2c3d4e5f")
    """
    from allmrec_jax.runs import load_run

    dataset = None if data is None else load_data(data)
    path = find_run(run, checkpoints, data=dataset)
    found = TrainedRun(path, load_run(path))
    if dataset is not None:
        found.check_data(dataset)
    return _handle(found, dataset)


def fit(
    data: "Dataset | str | os.PathLike[str]",
    *,
    until: Literal["cf", "stage1", "stage2"] = "stage2",
    model: str = DEFAULT_MODEL,
    sentence_encoder: str | None = None,
    llm: str | None = None,
    preset: str = DEFAULT_PRESET,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    name: str | None = None,
    resume: bool = True,
    mesh: str | None = None,
    distributed: str | None = None,
    quiet: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **misplaced: Any,
) -> TrainedRun:
    """Trains A-LLMRec: the CF model, stage 1 and stage 2, of these what is missing.

    Args:
        data: a data set, or its directory.
        until: the last stage to train.
        model: the CF model.
        sentence_encoder: see :func:`train_stage1`.
        llm: see :func:`train_stage2`.
        preset: of every stage.
        seed: of every stage.
        checkpoints: the folder of runs.
        name: a name for the last run.
        resume: continue interrupted runs.
        mesh: devices to use.
        distributed: join processes on several hosts.
        quiet: show no progress.
        settings: single settings by stage, e.g. ``{"stage2": {"steps": 160}}``.
        misplaced: nothing is taken here: a setting given without its stage is told where it goes.

    Returns:
        The last stage's run: an :class:`ALLMRec` after stage 2.

    Raises:
        UserError: a stage or setting that there is not, an argument that is a setting of a stage or nothing known, or
            as the trainings raise it.

    Example:
        >>> system = ar.fit("data/ml")
    """
    stages = ("cf", "stage1", "stage2")
    for argument, value in misplaced.items():
        raise UserError(_misplaced(argument, value, stages))
    if until not in stages:
        raise UserError(f"--until {until}: one of {', '.join(stages)} is expected")
    changes = settings or {}
    if unknown := sorted(set(changes) - set(stages)):
        raise UserError(
            f"no stage is called {unknown[0]!r}{did_you_mean(unknown[0], stages)} known: {', '.join(stages)}"
        )
    wanted = stages[: stages.index(until) + 1]
    common: dict[str, Any] = {"preset": preset, "seed": seed, "checkpoints": checkpoints, "resume": resume}
    own: dict[str, dict[str, Any]] = {
        "cf": {"model": model}, "stage1": {"sentence_encoder": sentence_encoder}, "stage2": {"llm": llm}
    }  # fmt: skip
    # A typo in the last stage, or a model that is not there, is told before the first stage is trained.
    resolved = {
        stage: resolve_settings(KINDS[stage], preset, changes.get(stage, {}), model if stage == "cf" else None)
        for stage in wanted
    }
    with devices(mesh, distributed, lambda: llm or KINDS["stage2"].models["llm"][preset]):
        dataset = load_data(data)
        for stage in wanted:
            _check_models(KINDS[stage], preset, resolved[stage], {"encoder": sentence_encoder, "llm": llm})
        runs: dict[str, TrainedRun] = {}
        for stage in wanted:
            before = {run.identity for run in list_runs(checkpoints, data=dataset, kind=stage) if run.done}
            upstream: dict[str, Any] = {role: runs[role] for role in KINDS[stage].upstream}
            runs[stage] = train_model(
                stage, dataset, **upstream, **own[stage], **common, quiet=quiet, name=name if stage == until else None,
                **changes.get(stage, {}),
            )  # fmt: skip
            done = "trained before" if runs[stage].identity in before else "trained"
            log.info("%s: %s (%s)", stage, runs[stage].path, done)
        return runs[until]


def _misplaced(argument: str, value: Any, stages: Sequence[str]) -> str:
    """What to write in place of an argument that :func:`fit` does not have."""
    owners = [stage for stage in stages if argument in KINDS[stage].setting_types()]
    if owners:
        written = " or ".join(f"settings={{{stage!r}: {{{argument!r}: {value!r}}}}}" for stage in owners)
        return f"{argument} is a setting of {' and '.join(owners)}; write {written}"
    known = [*inspect.signature(fit).parameters][1:-1]
    known += [name for stage in stages for name in KINDS[stage].setting_types()]
    return f"fit has no argument {argument!r}{did_you_mean(argument, known)}"


def _check_models(record: "TrainingKind", preset: str, settings: Any, given: Mapping[str, str | None]) -> None:
    """Raises what a training would raise about its pretrained models, before their weights are used."""
    import jax.numpy as jnp

    models = {role: given[role] or record.models[role][preset] for role in record.models}
    try:
        if "encoder" in models:
            from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

            load_sentence_encoder(models["encoder"], jnp.dtype(settings.dtype))
        if "llm" in models:
            from allmrec_jax.pretrained.llm import check_llm

            check_llm(models["llm"], jnp.dtype(settings.dtype), int8=settings.llm_weights == "int8")
    except UserError as error:
        raise _with_what_works(error, record, preset, models, given) from error
