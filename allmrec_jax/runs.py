"""A training run's directory: what it is, its checkpoints, its export.

    checkpoints/<data>/<kind>/<first 12 of the identity>/
        run.json         kind, identity, settings, seed, data, upstream identities, versions, machine, command
        metrics.jsonl    one line per logged step
        steps/<n>/       state (Orbax), loop.json and the files' hashes: the last two steps and the best
        best             the step chosen on validation, with its metrics
        export/          what later stages read
        DONE             the summary and the hashes of the export; its presence makes the run usable
        .lock            which process trains

A SIGKILL at any moment leaves either the old or the new form of each of these, never half of one. What is read back is
compared with its hash; runs made before there were hashes are taken as they are. Several processes that train together
share the directory: all write a checkpoint's arrays, the first one everything else.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import jax

from allmrec_jax import sharding
from allmrec_jax.checking import InnerFile, checked
from allmrec_jax.errors import UserError, first_line, out_of_memory
from allmrec_jax.fileio import (
    atomic_path,
    digests,
    load_arrays,
    plain_name,
    read_json,
    recover_all,
    save_arrays,
    take_lock,
    verify,
    write_json,
    writes,
)
from allmrec_jax.records import read_about, read_best, read_done
from allmrec_jax.settings import identity as compute_identity

__all__ = [
    "Run",
    "find_upstream",
    "load_arrays",
    "load_run",
    "require_upstream",
    "run_settings",
    "save_arrays",
    "verify_export",
]

T = TypeVar("T")

START_OVER = "start over without --resume"
"""What the error says where an interrupted run cannot be continued."""

_PACKAGES = ("allmrec-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")

_HASHES = "hashes.json"

_locks: "weakref.WeakValueDictionary[str, IO[str]]" = weakref.WeakValueDictionary()
"""The lock files that this process holds, by their paths: runs opened twice by one process share theirs."""

_verified: set[tuple[Any, ...]] = set()
"""Exports that this process has compared with their hashes, with the state that their files had."""


@dataclasses.dataclass
class Run:
    """One training run, open for writing. Made by :meth:`open`."""

    path: Path
    kind: str
    identity: str
    seed: int
    _lock: IO[str] | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        root: Path | str,
        data_name: str,
        kind: str,
        settings: Any,
        seed: int,
        data_hash: str,
        upstream: Mapping[str, str],
        *,
        resume: bool = False,
    ) -> "Run":
        """Opens ``root/data_name/kind/<identity>``.

        A finished run is left alone (see :attr:`done`). An unfinished one is continued with ``resume`` and started over
        without; it is locked until it is finished, or this object or the process is gone.

        Args:
            root: the checkpoints directory.
            data_name: the data set's name, a directory level.
            kind: what is trained, e.g. ``"stage1"``.
            settings: the resolved settings dataclass.
            seed: of every random draw of the run.
            data_hash: the data set's hash.
            upstream: identities of the frozen inputs by role, e.g. ``{"cf": "…"}``.
            resume: continue an unfinished run from its last checkpoint.

        Raises:
            UserError: the directory cannot be written, another process trains this run (the message says which),
                the export of the finished run is damaged, or the data set's name is none.
        """
        plain_name(data_name, "the data set's name")
        identity = compute_identity(kind, settings, seed, data_hash, upstream)
        run = cls(Path(root) / data_name / kind / identity[:12], kind, identity, seed)
        sharding.wait_for_all()  # before the first process changes what the others are looking at
        if run.done:
            verify_export(run.path)
            if writes():
                run._clear()
            return run
        if writes():
            run._begin(settings, data_name, data_hash, upstream, resume)
        sharding.wait_for_all()
        return run

    def _begin(self, settings: Any, data_name: str, data_hash: str, upstream: Mapping[str, str], resume: bool) -> None:
        """Locks the run, clears what an earlier attempt left unless it is to be continued, and writes ``run.json``."""
        self._lock = _locked(self.path / ".lock")
        if self.done:  # by the process that held the lock until now
            self._unlock()
            return
        for half_written in self.path.rglob(".*.tmp"):
            # Left by a kill in the middle of a write.
            shutil.rmtree(half_written)
        if resume and (self.path / "run.json").is_file():
            self._prune()  # a kill may have come while one was removed
            return
        (self.path / "run.json").unlink(missing_ok=True)  # first: what a kill leaves from here on is not continued
        for stale in (*self.path.glob("steps"), *self.path.glob("export"), *self.path.glob("tensorboard")):
            shutil.rmtree(stale)
        for name in ("best", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        about = {
            "kind": self.kind,
            "identity": self.identity,
            "settings": dataclasses.asdict(settings),
            "seed": self.seed,
            "data": {"name": data_name, "hash": data_hash},
            "upstream": dict(upstream),
            "versions": versions(),
            "machine": machine(),
            "mesh": None if sharding.current() is None else str(sharding.current_shape()),
            "platform": f"{platform.platform()}, {jax.default_backend()} x {jax.device_count()}",
            "commit": _commit(),
            "command": sys.argv,
        }
        write_json(self.path / "run.json", about)

    def _clear(self) -> None:
        """Removes what a process left of this finished run that was killed in the end, its lock too."""
        recover_all(self.path)
        if (self.path / ".lock").exists():
            with contextlib.suppress(UserError):  # held still, or a place that cannot be written
                self._lock = _locked(self.path / ".lock")
                self._unlock()

    def _unlock(self) -> None:
        """Lets other processes have the run; what they find is finished."""
        (self.path / ".lock").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    @property
    def done(self) -> bool:
        """Whether the run was finished, so that its export can be used as it is."""
        return (self.path / "DONE").is_file()

    def save(self, step: int, state: Any, progress: Mapping[str, Any] | None = None) -> None:
        """Writes ``state`` as checkpoint ``step``, then removes all but the last two and the best.

        The files' SHA-256 go beside them: about a second for each gigabyte of state, read once from the system's cache.

        Args:
            step: how many steps the state has seen.
            state: a pytree of arrays.
            progress: the loop's own bookkeeping (JSON), kept beside the state.

        Raises:
            UserError: the disk refuses; earlier checkpoints stay.
        """
        from orbax.checkpoint import v1 as ocp

        with _shared_directory(self.path / "steps" / str(step)) as directory:
            if writes():
                (directory / "loop.json").write_text(json.dumps(dict(progress or {})))
            _silence_orbax()
            ocp.save((directory / "state").absolute(), state)
            if writes():
                (directory / _HASHES).write_text(json.dumps(digests(directory)))
        if writes():
            self._prune()

    def _prune(self) -> None:
        """Removes all checkpoints but the last two and the best."""
        keep = {*self.steps()[-2:], self.best_step()}
        for old in self.steps():
            if old not in keep:
                shutil.rmtree(self.path / "steps" / str(old))

    def steps(self) -> list[int]:
        """The checkpoints there are, ascending."""
        return sorted(int(path.name) for path in self.path.glob("steps/*") if path.name.isdigit())

    def latest_step(self) -> int | None:
        """The last checkpoint, or ``None``."""
        return max(self.steps(), default=None)

    def progress(self, step: int, kind: type[T]) -> T:
        """The loop's bookkeeping saved with checkpoint ``step``, as ``kind``, a dataclass or another type of msgspec's.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / "steps" / str(step) / "loop.json"
        return checked(path, read_json(path, Any, START_OVER), kind, START_OVER)

    def restore(self, abstract: Any, step: int | None = None) -> Any:
        """Reads a checkpoint.

        Args:
            abstract: a pytree of ``jax.ShapeDtypeStruct`` (from ``jax.eval_shape``), never a live state; a leaf without
                a sharding goes to the first device.
            step: which checkpoint; the last one by default.

        Raises:
            UserError: there is none, a file of it is not what was written, or it does not fit ``abstract``.
        """
        from orbax.checkpoint import v1 as ocp

        step = self.latest_step() if step is None else step
        directory = self.path / "steps" / str(step)
        if step is None or not directory.is_dir():
            raise UserError(f"{self.path}: no checkpoint{'' if step is None else f' of step {step}'} to restore")
        if (directory / _HASHES).is_file():
            verify(directory, read_json(directory / _HASHES, dict[InnerFile, str], START_OVER), START_OVER)
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or first), abstract
        )
        try:
            _silence_orbax()
            return ocp.load((directory / "state").absolute(), target)
        except Exception as error:  # Orbax and TensorStore raise whatever the damage leads to
            if out_of_memory(error):
                raise
            raise UserError(
                f"{directory}: damaged, or written by another version ({first_line(error)}); {START_OVER}"
            ) from error

    def mark_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Names ``step`` as the one chosen on validation, with its metrics. Its checkpoint is then kept."""
        write_json(self.path / "best", {"step": step, "metrics": dict(metrics)}, indent=None)

    def best_step(self) -> int | None:
        """The step chosen on validation, or ``None``."""
        best = read_best(self.path, START_OVER)
        return None if best is None else best["step"]

    def export_path(self, name: str) -> Path:
        """Where to write ``name`` for later stages; the directory is made."""
        directory = self.path / "export"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / name

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Declares the run usable. ``summary`` (JSON) goes into ``DONE``, with the SHA-256 of the export's files."""
        if writes():
            write_json(self.path / "DONE", {**summary, "export_sha256": digests(self.path / "export")})
            self._unlock()
        sharding.wait_for_all()


def load_run(path: Path | str) -> dict[str, Any]:
    """The ``run.json`` of a finished run.

    Raises:
        UserError: there is no run at ``path``, or it is unfinished.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise UserError(f"{path}: not a training run (it has no run.json)")
    if not (path / "DONE").is_file():
        raise UserError(f"{path}: this run is not finished (it has no DONE); run its command again with --resume")
    return read_about(path)


def run_settings(path: Path | str, about: Mapping[str, Any], kind: type[T]) -> T:
    """The settings of the run at ``path`` (its ``run.json``: ``about``) as the dataclass ``kind``.

    Raises:
        UserError: one is unknown, missing, or of another type than the dataclass says.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    file, remedy = Path(path) / "run.json", "it is of another version, or damaged: train this run again"
    if unknown := sorted(about["settings"].keys() - known):
        raise UserError(f"{file}, settings: {unknown[0][:80]!r} is unknown; {remedy}")
    return checked(f"{file}, settings", about["settings"], kind, remedy)


def verify_export(path: Path | str) -> None:
    """Compares the export of a finished run with the hashes in ``DONE``, once for each state of its files.

    Raises:
        UserError: a file of it is missing or is not what was written.
    """
    path = Path(path)
    remedy = f"delete {path} and train it again"
    hashes = read_done(path, remedy).get("export_sha256", {})
    stats = [name.stat() for name in (path / "DONE", *(path / "export" / each for each in hashes)) if name.exists()]
    state = (path.resolve(), *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))
    if state not in _verified:
        verify(path / "export", hashes, remedy)
        _verified.add(state)


def find_upstream(
    root: Path | str, kind: str, data_name: str, data_hash: str, given: Path | str | None = None
) -> tuple[Path, dict[str, Any]]:
    """The finished run that a stage builds on: ``given``, or the only one of its kind for the data set.

    Args:
        root: the checkpoints directory to look in.
        kind: what the run must have trained, e.g. ``"cf"``.
        data_name: the data set's name.
        data_hash: the data set's hash.
        given: the run directory that the user named, if any.

    Returns:
        The run's directory and its ``run.json``.

    Raises:
        UserError: there is none, there are several, or the one given is of another kind or another data set.
    """
    if given is not None:
        about = load_run(given)
        verify_export(given)
        if about["kind"] != kind:
            raise UserError(f"{given} is a {about['kind']} run; a {kind} run is needed here")
        if about["data"]["hash"] != data_hash:
            raise UserError(
                f"{given} was trained on data set {about['data']['name']} (hash {about['data']['hash'][:12]}), not on "
                f"{data_name} (hash {data_hash[:12]}); train {kind} on this data set first"
            )
        return Path(given), about
    found = []
    for done in sorted(Path(root).glob(f"{data_name}/{kind}/*/DONE")):
        about = load_run(done.parent)
        if about["data"]["hash"] == data_hash:
            found.append((done.parent, about))
    if not found:
        raise UserError(
            f"no finished {kind} run of data set {data_name} (hash {data_hash[:12]}) under {root}: "
            f"run `allmrec train {kind}` on it first, or name a run with --{kind}"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path, _ in found)
        raise UserError(f"several finished {kind} runs of data set {data_name}: {names}; name one with --{kind}")
    verify_export(found[0][0])
    return found[0]


def require_upstream(
    path: Path | str, about: Mapping[str, Any], role: str, identity: str, option: str | None = None
) -> None:
    """Checks that the run at ``path`` (its ``run.json``: ``about``) was built on the ``role`` of this ``identity``.

    Raises:
        UserError: it was built on another, and both are named.
    """
    built_on = about["upstream"].get(role)
    if built_on != identity:
        raise UserError(
            f"{path} was built on {role} {str(built_on)[:12]}, but the {role} in use is {identity[:12]}; "
            f"name the matching one with {option or f'--{role}'}, or train {about['kind']} again"
        )


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """The machine that this runs on: times, and the last digits of values, depend on it.

    Returns:
        ``{"processor": model name, "cores": those this process may use, "platform": system and kernel}``, and
        ``"accelerator"``, its kind, where JAX computes on one.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "processor": next(filter(None, named), "") or platform.processor() or platform.machine(),
        "cores": cores,
        "platform": platform.platform(),
    }
    if jax.default_backend() != "cpu":
        found["accelerator"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found


def _commit() -> str | None:
    """The commit of the code, where it runs from a git checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", os.fspath(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


@contextlib.contextmanager
def _shared_directory(path: Path) -> Iterator[Path]:
    """:func:`allmrec_jax.fileio.atomic_path` of a directory that every process writes into."""
    if jax.process_count() == 1:
        with atomic_path(path) as directory:
            directory.mkdir()
            yield directory
        return
    directory = path.with_name(f".{path.name}.all.tmp")
    if writes():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    sharding.wait_for_all()
    yield directory
    sharding.wait_for_all()
    if writes():
        shutil.rmtree(path, ignore_errors=True)
        os.replace(directory, path)
    sharding.wait_for_all()


def _silence_orbax() -> None:
    """Orbax's threads log a traceback each when the disk is full, some after the error that says it all."""
    logging.getLogger("absl").addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _locked(path: Path) -> IO[str]:
    """The lock at ``path``, taken now or held by this process already."""
    key = str(path.absolute())
    held = _locks.get(key)
    # Another folder may stand here by now.
    if held is None or held.closed or not path.exists() or not os.path.samestat(os.fstat(held.fileno()), path.stat()):
        held = _locks[key] = take_lock(path)
    return held
