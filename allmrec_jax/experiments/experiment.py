"""The runner of the paper's tables: rows and the trainings they need, planned as a graph; what is missing is run.

A table is a list of rows; a row names a system of :data:`allmrec_jax.evaluation.systems.SYSTEMS` and the trainings that
it is made of. A training is a node: what is trained, from which preset with which changes, on which other trainings.
Its identity follows from that alone, so that a plan knows what is finished before anything runs. Each missing node is
one ``allmrec train`` command in a process of its own, and each row's answers are kept. Killed at any point, the same
command goes on from there.
"""

import contextlib
import dataclasses
import functools
import graphlib
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from allmrec_jax.data.candidates import Candidates, load_candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.scenarios import Scenario
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import write_freely
from allmrec_jax.evaluation.genres import Genres, baselines, genre_frame, write_genres
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import users_frame, write_results
from allmrec_jax.evaluation.systems import SYSTEMS, WRITERS
from allmrec_jax.fileio import atomic_path, held, read_json, sha256, verify, write_json, write_text
from allmrec_jax.outputs import Output
from allmrec_jax.runs import START_OVER, load_run, verify_export, versions
from allmrec_jax.settings import deciding, identity
from allmrec_jax.sharding import MeshShape
from allmrec_jax.trained.kinds import KINDS
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.metrics import read_lines

if TYPE_CHECKING:
    import polars as pl

COST = "cost.json"
"""In a run's directory: what it took, written by this runner only."""

BEGINNING = 15.0
"""Seconds that a training takes to begin: imports and compilation, about."""

EPOCHS = ("epochs", "contrast_epochs", "pretrain_epochs")
"""Settings that count passes over the users."""

SECONDS_PER_ANSWER = 0.02
"""Of a row with a language model, per user: roughly, with preset ``small``'s models on two idle cores."""

ANSWERS_VERSION = 1
"""Part of what kept answers are known by: raise it when a change makes the same runs answer otherwise."""


# Trainings.


_OPTIONS = {"encoder": "--sentence-encoder", "llm": "--llm", "longformer": "--longformer"}


@dataclasses.dataclass(frozen=True)
class Training:
    """A node of the graph.

    Attributes:
        kind: of :data:`allmrec_jax.trained.kinds.KINDS`.
        preset: whose settings it takes.
        changes: settings that differ from the preset; ``("model", …)`` chooses a CF model.
        seed: of the training.
        upstream: the nodes it builds on, in the order of the kind's ``upstream``.
    """

    kind: str
    preset: str
    changes: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    upstream: tuple["Training", ...] = ()

    @property
    def settings(self) -> Any:
        """The resolved settings; :class:`UserError` for an unknown preset, setting or model."""
        changes = dict(self.changes)
        model = {"model": changes.pop("model")} if KINDS[self.kind].by_model else {}
        return KINDS[self.kind].settings(self.preset, changes, **model)

    @property
    def models(self) -> tuple[str, ...]:
        """The roles of the pretrained models that it starts from."""
        return KINDS[self.kind].roles(self.settings)

    def nodes(self) -> Iterator["Training"]:
        """This node and all it builds on, those first."""
        for node in self.upstream:
            yield from node.nodes()
        yield self

    @property
    def name(self) -> str:
        """For people: the kind, what it differs in, and the CF model beneath it."""
        told = [str(value) if name == "model" else f"{name} {value}" for name, value in self.changes]
        told += [f"on {value}" for node in self.upstream for name, value in node.changes if name == "model"]
        return f"{self.kind} ({', '.join([*told, f'seed {self.seed}'])})"


def changed(kind: str, preset: str, given: Mapping[str, Any], **own: Any) -> tuple[tuple[str, Any], ...]:
    """The changes of a node: those ``given`` by the user that it has a setting for, and the row's ``own``, which hold.

    What the preset has anyway is no change.
    """
    model = (("model", own.pop("model")),) if "model" in own else ()
    settings = Training(kind, preset, model).settings
    wanted = {name: value for name, value in {**given, **own}.items() if hasattr(settings, name)}
    return model + tuple(sorted((name, value) for name, value in wanted.items() if getattr(settings, name) != value))


def parse_changes(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``KIND.SETTING=VALUE`` lines as a dictionary by kind, values converted to the setting's type.

    Raises:
        UserError: a line of another form, an unknown kind or setting, or a value of another type.
    """
    changes: dict[str, dict[str, Any]] = {}
    for line in lines:
        target, equals, value = line.partition("=")
        kind, dot, name = target.partition(".")
        if not (equals and dot) or kind not in KINDS:
            raise UserError(f"--set {line}: KIND.SETTING=VALUE is expected, with a kind of {', '.join(KINDS)}")
        by_model, presets = KINDS[kind].by_model, KINDS[kind].load_presets()
        classes = {type(preset) for each in presets.values() for preset in (each.values() if by_model else [each])}
        hints = {key: hint for cls in classes for key, hint in typing.get_type_hints(cls).items()}
        if name not in hints:
            raise UserError(f"--set {line}: {kind} has no setting {name!r}; known: {', '.join(sorted(hints))}")
        changes.setdefault(kind, {})[name] = _convert(line, hints[name], value)
    return changes


def _convert(line: str, hint: Any, value: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"--set {line}: one of {', '.join(map(str, typing.get_args(hint)))} is expected")
        return value
    if hint is bool:
        if value not in ("true", "false"):
            raise UserError(f"--set {line}: true or false is expected")
        return value == "true"
    try:
        return hint(value)
    except ValueError:
        raise UserError(f"--set {line}: a {hint.__name__} is expected") from None


# Rows.


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table, at one seed.

    Attributes:
        name: as the table shows it.
        system: whose way of answering it takes, an entry of ``SYSTEMS``.
        trainings: what the system is given.
        against: rows, beside SASRec, that its Hit@1 is compared with.
        few: asked about the smaller sample of users, for it reads long prompts.
    """

    name: str
    system: str
    trainings: tuple[Training, ...]
    against: tuple[str, ...] = ()
    few: bool = False

    @property
    def seed(self) -> int:
        """Of its trainings; 0 where nothing is trained."""
        return self.trainings[-1].seed if self.trainings else 0

    def nodes(self) -> list[Training]:
        """Every training that the row needs, upstream first, each once."""
        return list(dict.fromkeys(node for training in self.trainings for node in training.nodes()))


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where an experiment works, and with which pretrained models.

    Attributes:
        dataset: that everything is trained and asked on.
        checkpoints: the directory of training runs.
        models: name or path of the pretrained models, by role.
        mesh: of devices that trainings use.
    """

    dataset: Dataset
    checkpoints: Path
    models: Mapping[str, str]
    mesh: MeshShape | None = None

    def model_hash(self, role: str, settings: Any) -> str:
        """What a pretrained model is known by in identities; :class:`UserError` where it is not there."""
        found = _model_hash(role, self.models[role], settings.dtype if role == "encoder" else None)
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def identity(self, node: Training) -> str:
        """The identity that the node's run has, or will have."""
        settings, kind = node.settings, KINDS[node.kind]
        upstream = {role: self.identity(other) for role, other in zip(kind.upstream, node.upstream, strict=True)}
        upstream |= {role: self.model_hash(role, settings) for role in node.models}
        named = getattr(settings, "kind", node.kind)
        return identity(named, settings, node.seed, self.dataset.hash, upstream)

    def path(self, node: Training) -> Path:
        """The node's run directory."""
        named = getattr(node.settings, "kind", node.kind)
        return self.checkpoints / self.dataset.name / named / self.identity(node)[:12]

    def done(self, node: Training) -> bool:
        """Whether its run is finished and whole."""
        path = self.path(node)
        return (path / "DONE").is_file() and not self.damaged(node)

    def damaged(self, node: Training) -> bool:
        """Whether the run says that it is finished but has a lost or damaged ``run.json`` or export."""
        path = self.path(node)
        if not (path / "DONE").is_file():
            return False
        try:
            same = load_run(path)["identity"] == self.identity(node)
            verify_export(path)
        except UserError:
            return True
        return not same or not any((path / "export").glob("*"))

    def command(self, node: Training) -> list[str]:
        """The arguments of ``allmrec`` that train the node."""
        kind = KINDS[node.kind]
        words = ["train", node.kind, "--data", str(self.dataset.path), "--preset", node.preset]
        for name, value in node.changes:
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif name not in kind.fixed:
                words += [flag, str(value)]
        for role, other in zip(kind.upstream, node.upstream, strict=True):
            words += [f"--{role}", str(self.path(other))]
        for role in node.models:
            words += [_OPTIONS[role], self.models[role]]
        if self.mesh is not None:
            words += ["--mesh", str(self.mesh)]
        return [*words, "--seed", str(node.seed), "--checkpoints", str(self.checkpoints), "--resume"]

    def units(self, node: Training) -> float:
        """The amount of training in a run of this kind, in steps or in passes over a user."""
        settings = node.settings
        if getattr(settings, "steps", 0):
            return float(settings.steps)
        lengths = self.dataset.lengths
        everywhere = getattr(settings, "positions", "last") == "all"
        samples = float(np.maximum(lengths - 3, 1).sum() if everywhere else len(lengths))
        return samples * sum(getattr(settings, name, 0) for name in EPOCHS)

    def estimate(self, node: Training) -> float | None:
        """Seconds that the run may take: the median of its kind here, on this data if there are any, else as on the
        embedded data.

        Runs are compared by their units of training, beyond what every one takes to begin. ``None`` where neither is
        known.
        """
        settings = node.settings
        named, model = getattr(settings, "kind", node.kind), getattr(settings, "model", None)
        usual = KINDS[node.kind].seconds_per_unit.get(str(model) if KINDS[node.kind].by_model else named)
        rates: dict[bool, list[float]] = {True: [], False: []}
        for path in self.checkpoints.glob(f"*/{named}/*/{COST}"):
            cost = json.loads(path.read_text())
            if cost.get("units") and cost.get("model") == model:
                same = path.parents[2].name == self.dataset.name
                rates[same].append(max(cost["seconds"] - BEGINNING, 1.0) / cost["units"])
        if known := rates[True] or rates[False]:
            # The median: one that ran beside other work says little.
            return BEGINNING + statistics.median(known) * self.units(node)
        if node.preset == "small" and usual is not None:
            return BEGINNING + usual * self.units(node)
        return None

    def budget(self, node: Training) -> dict[str, Any]:
        """What a finished run was trained with and what it took; ``seconds`` is null where nobody measured."""
        path, settings = self.path(node), node.settings
        steps = max((line["step"] for line in read_lines(path / "metrics.jsonl")), default=0)
        cost = json.loads((path / COST).read_text()) if (path / COST).is_file() else {}
        return {
            "kind": getattr(settings, "kind", node.kind),
            "identity": self.identity(node),
            "preset": node.preset,
            "changes": dict(node.changes),
            "seed": node.seed,
            "steps": steps,
            "unit": "epochs" if node.kind == "cf" else "steps",
            "batch_size": getattr(settings, "batch_size", None),
            "seconds": cost.get("seconds"),
            "peak_mib": cost.get("peak_mib"),
        }


@functools.cache
def _model_hash(role: str, name: str, dtype: str | None) -> str | UserError:
    """A model's hash, or why there is none: found once for all tables, for it may mean 13 GB or a hub out of reach."""
    import jax.numpy as jnp

    try:
        if role == "llm":
            from allmrec_jax.pretrained.llm import llm_hash

            return llm_hash(name)
        if role == "longformer":
            from allmrec_jax.pretrained.longformer import load_longformer

            return load_longformer(name).fingerprint
        from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder

        return fingerprint(load_sentence_encoder(name, jnp.dtype(dtype)))
    except UserError as error:
        return error


def plan(rows: Sequence[Row]) -> list[Training]:
    """Every training that the rows need, each once, after all that it builds on."""
    return list(dict.fromkeys(node for row in rows for node in row.nodes()))


def show_plan(tables: "Sequence[tuple[Workplace, Sequence[Row], Asking | None]]") -> str:
    """The plan in lines: each training, whether it is finished, and how long trainings and answers may take.

    Args:
        tables: where their rows are trained, the rows, and how they are asked, if they are.
    """
    lines: dict[Path, str] = {}
    total, unknown = 0.0, 0
    for work, rows, _ in tables:
        for node in plan(rows):
            path = work.path(node)
            if path in lines:
                continue
            state = "finished"
            if not work.done(node):
                guess = work.estimate(node)
                what = "to train again, half written" if work.damaged(node) else "to train"
                state = what + (", time unknown" if guess is None else f", about {guess:,.0f} s")
                total, unknown = total + (guess or 0.0), unknown + (guess is None)
            lines[path] = f"{path.parent.name}/{path.name}  {state:<28}  {node.name}"
    users, missing = 0, set()
    for work, rows, asking in tables:
        if asking is None:
            continue
        for row in rows:
            path, _ = kept_answers(work, row, asking)
            if path not in missing and not path.is_file():
                missing.add(path)
                users += len(asking.candidates(row).users) if row.few else 0
    rest = f", and {unknown} whose time is unknown" if unknown else ""
    names = {row.name for _, rows, _ in tables for row in rows}
    last = f"{len(names)} rows; about {total:,.0f} s of training{rest}"
    if any(asking for _, _, asking in tables):
        last += f"; {len(missing)} answers to be asked for, about {users * SECONDS_PER_ANSWER:,.0f} s"
    return "\n".join([*lines.values(), last])


def check_texts(dataset: Dataset, rows: Sequence[Row]) -> None:
    """Refuses rows that need titles on data without any, or where all are the same ("No Title")."""
    if len(set(dataset.titles[1:])) > 1:
        return
    for row in rows:
        if row.few or any(KINDS[node.kind].reads_texts for node in row.nodes()):
            raise UserError(
                f"{dataset.path}: no item has a title, and {row.name} needs them; leave it out of --systems"
            )


# Running.


def levels(nodes: Sequence[Training]) -> list[list[Training]]:
    """The nodes in groups, each after all that it builds on; those of one group need nothing of each other."""
    depth: dict[Training, int] = {}
    for node in nodes:
        depth[node] = max((depth[other] + 1 for other in node.upstream if other in depth), default=0)
    return [[node for node in nodes if depth[node] == level] for level in range(max(depth.values(), default=-1) + 1)]


def run_missing(work: Workplace, rows: Sequence[Row], jobs: int = 1) -> None:
    """Trains what is not finished, each in a process of its own, as soon as all that it builds on is there.

    Args:
        jobs: trainings at a time.

    Raises:
        UserError: a training failed (it has said why itself), or another process is at the same one.
    """
    missing = [node for node in plan(rows) if not work.done(node)]
    numbers = {node: f"[{number}/{len(missing)}]" for number, node in enumerate(missing, start=1)}

    def train(node: Training) -> None:
        path = work.path(node)
        with held(path.parent / f".{path.name}.lock") as lock:
            if work.done(node):  # by another experiment, since the plan was made
                return
            click.secho(f"{numbers[node]} {node.name}", bold=True, err=True)
            if work.damaged(node):
                click.echo(f"    {path} is half written; it is trained again", err=True)
                shutil.rmtree(path)
            begun = (path / "steps").is_dir()
            try:
                cost: dict[str, Any] = dict(run_command(work.command(node), node.name, lock))
            except UserError as error:
                if not begun or START_OVER not in str(error):
                    raise
                click.echo(f"    {path} cannot be continued; it is trained again", err=True)
                shutil.rmtree(path)
                begun, cost = False, dict(run_command(work.command(node), node.name, lock))
            if not work.done(node):
                raise UserError(f"{node.name} ended without {path}; its identity is not what was planned: report this")
            if not begun:  # the time of a run that was interrupted is not that of the whole
                cost |= {"units": work.units(node), "model": getattr(node.settings, "model", None)}
            write_text(path / COST, json.dumps(cost) + "\n")

    order = graphlib.TopologicalSorter({node: set(node.upstream) & set(missing) for node in missing})
    order.prepare()
    ready: list[Training] = []
    running: dict[Future[None], Training] = {}
    with ThreadPoolExecutor(jobs) as pool:  # its end waits for what still runs after a failure
        while order.is_active():
            ready += order.get_ready()
            while ready and len(running) < jobs:
                node = ready.pop(0)
                running[pool.submit(train, node)] = node
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                finished.result()
                order.done(running.pop(finished))


def write_slurm(work: Workplace, rows: Sequence[Row], directory: Path) -> Path:
    """Writes the missing trainings as SLURM arrays, one for each level of the graph, and the script that submits them.

    Returns:
        the script; each array starts after the one before it has succeeded.
    """
    Output("folder of SLURM files", signs=("submit.sh",)).claim(directory)
    submit = ["#!/bin/sh", "set -e", 'cd "$(dirname "$0")"', "previous="]
    for number, level in enumerate(levels([node for node in plan(rows) if not work.done(node)])):
        lines = ["#!/bin/bash", f"#SBATCH --job-name=allmrec-{number}", f"#SBATCH --array=0-{len(level) - 1}"]
        lines += [f"cd {shlex.quote(os.getcwd())}", "case $SLURM_ARRAY_TASK_ID in"]
        program = [sys.executable, "-m", "allmrec_jax.cli"]
        lines += [f"{place}) {shlex.join([*program, *work.command(node)])} ;;" for place, node in enumerate(level)]
        write_text(directory / f"level{number}.sbatch", "\n".join([*lines, "esac", ""]))
        wait = "${previous:+--dependency=afterok:$previous}"
        submit.append(f'previous=$(sbatch --parsable {wait} "$@" level{number}.sbatch)')
    write_text(directory / "submit.sh", "\n".join([*submit, ""]))
    return directory / "submit.sh"


def run_command(arguments: Sequence[str], name: str, lock: int) -> dict[str, float]:
    """Runs ``allmrec ARGUMENTS`` as a process of its own; returns its seconds and its peak memory in MiB.

    Args:
        arguments: the command and its options.
        name: what it is called in messages.
        lock: an open lock file that it holds too: it may outlive this process.

    Raises:
        UserError: it failed.
    """
    click.echo(f"    allmrec {' '.join(arguments)}", err=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "allmrec_jax.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(lock,),
    )
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        last = line.decode(errors="replace").strip() or last
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"training {name} failed (exit code {process.returncode}): {last}; the same command goes on")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    cost = {"seconds": round(time.perf_counter() - started, 1), "peak_mib": round(usage.ru_maxrss * unit / 2**20)}
    click.echo(f"    {cost['seconds']:,.0f} s, peak {cost['peak_mib']:,} MiB", err=True)
    return cost


@dataclasses.dataclass(frozen=True)
class Asking:
    """How the rows are asked.

    Attributes:
        scenario: who is asked about.
        candidate_seed: of the candidate file, one for all rows and seeds.
        max_users: users asked at most; ``None`` is all.
        few_users: of these, the first so many for rows that read long prompts.
        settings: batch size, decoding, generation, the wording of text-only prompts.
        question: asked behind the history in place of a recommendation; its answers are favourite genres.
    """

    scenario: Scenario
    candidate_seed: int
    max_users: int | None
    few_users: int | None
    settings: EvaluationSettings
    question: str | None = None

    def candidates(self, row: Row) -> Candidates:
        """What the row is asked to choose from."""
        counts = [count for count in (self.max_users, self.few_users if row.few else None) if count is not None]
        return load_candidates(self.scenario.asked, "overall", "test", self.candidate_seed, min(counts, default=None))

    @property
    def record(self) -> dict[str, Any]:
        """For ``results.json``."""
        counts = {"candidate_seed": self.candidate_seed, "max_users": self.max_users, "llm_users": self.few_users}
        question = {} if self.question is None else {"question": self.question}
        return {"scenario": dict(self.scenario.about), **counts, **question, **dataclasses.asdict(self.settings)}


class _Kept(typing.TypedDict):
    seconds: float
    sha256: typing.NotRequired[str]


def kept_answers(work: Workplace, row: Row, asking: Asking) -> tuple[Path, dict[str, Any]]:
    """Where a row's answers are kept, and what they depend on."""
    dataset, scenario = work.dataset, asking.scenario
    # A system without a training of its own answers by the language model or by the data alone.
    own = [work.identity(node) for node in row.trainings] or [work.model_hash("llm", None) if row.few else dataset.hash]
    asked: dict[str, Any] = {
        "system": row.system,
        "runs": own,
        "seed": row.seed,
        "users": scenario.asked.hash,
        "version": ANSWERS_VERSION,
        "candidates": asking.candidates(row).sha256,
    }
    asked |= {} if scenario.history is None else {"history": scenario.history}
    asked |= {} if asking.question is None else {"question": asking.question}
    body = json.dumps({**asked, "settings": deciding(asking.settings)}, sort_keys=True)
    name = f"{hashlib.sha256(body.encode()).hexdigest()[:16]}.parquet"
    return work.checkpoints / dataset.name / "answers" / name, asked


def answers_of(
    work: Workplace,
    row: Row,
    asking: Asking,
    advance: Callable[[str, int], contextlib.AbstractContextManager],
) -> "tuple[pl.DataFrame, dict[str, Any]]":
    """A row's answers and what is to be known about them; kept beside the runs, for other tables ask the same.

    Returns:
        the users' frame, and the entry of ``results.json``'s ``runs``.
    """
    import polars as pl

    scenario, candidates = asking.scenario, asking.candidates(row)
    kept, asked = kept_answers(work, row, asking)
    about: dict[str, Any] = {
        "system": row.name,
        "scenario": scenario.about["scenario"],
        "seed": row.seed,
        "id": asked["runs"][-1],
        "candidates_sha": candidates.sha256,
        "users": len(candidates.users),
        "trainings": [work.budget(node) for node in row.nodes()],
    }
    if kept.is_file():
        remedy = f"delete {kept} to have the question asked again"
        record = read_json(kept.with_suffix(".json"), _Kept, remedy)
        if "sha256" in record:
            verify(kept.parent, {kept.name: record["sha256"]}, remedy)
        about["seconds"] = record["seconds"]
        return pl.read_parquet(kept).with_columns(system=pl.lit(row.name)), about
    started = time.perf_counter()
    runs = [work.path(node) for node in row.trainings]
    if scenario.transferred:
        from allmrec_jax.evaluation.transfer import TransferredSources

        sources: Sources = TransferredSources(work.dataset, runs, asking.settings, scenario.asked)
    else:
        sources = Sources(work.dataset, runs, asking.settings)
    with advance(row.name, len(candidates.users)) as tell:
        questions = Questions(scenario.asked, candidates, scenario.known, scenario.history)
        if asking.question is not None:
            genres = Genres.of(scenario.asked)
            texts = write_freely(WRITERS[row.system](sources), questions, asking.question, tell)
            favourites = genres.favourites(scenario.asked, candidates)
            frame = genre_frame(genres, row.name, row.seed, candidates.users, favourites, texts)
        else:
            outcome = SYSTEMS[row.system].answer(sources, questions, row.name, tell)
            slices = work.dataset.slices if scenario.known else {}
            frame = users_frame([outcome], candidates.users, candidates.target, candidates.candidates, slices, row.seed)
    about["seconds"] = round(time.perf_counter() - started, 2)
    with atomic_path(kept) as sibling:
        frame.write_parquet(sibling)
        record = {"seconds": about["seconds"], "sha256": sha256(sibling), **asked}
        write_json(kept.with_suffix(".json"), record, indent=None)
    return frame, about


def evaluate_rows(
    work: Workplace,
    rows: Sequence[Row],
    asking: Asking,
    out: Path,
    *,
    data: Mapping[str, Any],
    reference: str = "SASRec",
    baselines: Sequence[str] = (),
    settings: Mapping[str, Any],
    advance: Callable[[str, int], contextlib.AbstractContextManager],
) -> dict[str, Any]:
    """Asks every row, and writes ``results.json`` and ``users.parquet`` into ``out``; returns the former.

    Args:
        data: name and hash of the data set that the scenario was made from.
        reference: the row that every other one is tested against.
        baselines: rows that are systems of others; every other row is also tested against the best of them.
        settings: of the experiment, for the record.
        advance: given a row's name and its number of users, a context that yields what to call after each batch.
    """
    import polars as pl

    frames, runs = [], []
    for row in rows:
        frame, about = answers_of(work, row, asking, advance)
        frames.append(frame)
        runs.append(about)
    if asking.question is not None:
        frames += asked_of_nobody(asking)
    names = list(dict.fromkeys(name for frame in frames for name in frame["system"].unique(maintain_order=True)))
    pairs = [(name, reference) for name in names if name != reference and reference in names]
    for row in rows:
        pairs += [(row.name, other) for other in row.against if other in names and other != reference]
    about = {
        "runs": runs,
        "data": data,
        "pairs": list(dict.fromkeys(pairs)),
        "settings": {**settings, **asking.record},
        "versions": versions(),
        "times": {"systems": {f"{run['system']}, seed {run['seed']}": run["seconds"] for run in runs}},
    }
    if asking.question is not None:
        asked = max((asking.candidates(row) for row in rows), key=lambda each: len(each.users))
        return write_genres(out, pl.concat(frames), asking.scenario.asked, asked, **about)
    return write_results(out, pl.concat(frames), baselines=baselines, **about)


def asked_of_nobody(asking: Asking) -> "list[pl.DataFrame]":
    """The answers to the question about genres of rows that read no history."""
    asked, dataset = asking.candidates(Row("", "", (), few=True)), asking.scenario.asked
    genres = Genres.of(dataset)
    return baselines(genres, asked.users, genres.favourites(dataset, asked))
