"""A training run's directory: what it is, its checkpoints, its export.

    checkpoints/<data>/<kind>/<first 12 of the identity>/
        run.json         kind, identity, settings, seed, data, upstream identities, versions, machine, command
        metrics.jsonl    one line per logged step
        steps/<n>/       state (Orbax) and loop.json: the last two steps and the best
        best             the step chosen on validation, with its metrics
        export/          what later stages read
        DONE             the summary; its presence makes the run usable

A SIGKILL at any moment leaves either the old or the new form of each of these, never half of one. Several processes
that train together share the directory: all write a checkpoint's arrays, the first one everything else.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_arrays, save_arrays, write_text, writes
from allmrec_jax.settings import identity as compute_identity

__all__ = ["Run", "find_upstream", "load_arrays", "load_run", "require_upstream", "save_arrays"]

START_OVER = "start over without --resume"
"""What the error says where an interrupted run cannot be continued."""

_PACKAGES = ("allmrec-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")


@dataclasses.dataclass
class Run:
    """One training run, open for writing. Made by :meth:`open`."""

    path: Path
    kind: str
    identity: str
    seed: int

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
        without.

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
            UserError: the directory cannot be written.
        """
        identity = compute_identity(kind, settings, seed, data_hash, upstream)
        run = cls(Path(root) / data_name / kind / identity[:12], kind, identity, seed)
        sharding.wait_for_all()  # before the first process changes what the others are looking at
        if run.done:
            return run
        if writes():
            run._begin(settings, data_name, data_hash, upstream, resume)
        sharding.wait_for_all()
        return run

    def _begin(self, settings: Any, data_name: str, data_hash: str, upstream: Mapping[str, str], resume: bool) -> None:
        """Clears what an earlier attempt left, unless it is to be continued, and writes ``run.json``."""
        for half_written in self.path.rglob(".*.tmp"):
            # Left by a kill in the middle of a write.
            shutil.rmtree(half_written)
        if resume and (self.path / "run.json").is_file():
            return
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
        write_text(self.path / "run.json", json.dumps(about, indent=2) + "\n")

    @property
    def done(self) -> bool:
        """Whether the run was finished, so that its export can be used as it is."""
        return (self.path / "DONE").is_file()

    def save(self, step: int, state: Any, progress: Mapping[str, Any] | None = None) -> None:
        """Writes ``state`` as checkpoint ``step``, then removes all but the last two and the best.

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
        if not writes():
            return
        keep = {*self.steps()[-2:], step, self.best_step()}
        for old in self.steps():
            if old not in keep:
                shutil.rmtree(self.path / "steps" / str(old))

    def steps(self) -> list[int]:
        """The checkpoints there are, ascending."""
        return sorted(int(path.name) for path in self.path.glob("steps/*") if path.name.isdigit())

    def latest_step(self) -> int | None:
        """The last checkpoint, or ``None``."""
        return max(self.steps(), default=None)

    def progress(self, step: int) -> dict[str, Any]:
        """The loop's bookkeeping saved with checkpoint ``step``."""
        return json.loads((self.path / "steps" / str(step) / "loop.json").read_text())

    def restore(self, abstract: Any, step: int | None = None) -> Any:
        """Reads a checkpoint.

        Args:
            abstract: a pytree of ``jax.ShapeDtypeStruct`` (from ``jax.eval_shape``), never a live state; a leaf without
                a sharding goes to the first device.
            step: which checkpoint; the last one by default.

        Raises:
            UserError: there is none, or it does not fit ``abstract``.
        """
        from orbax.checkpoint import v1 as ocp

        step = self.latest_step() if step is None else step
        directory = self.path / "steps" / str(step)
        if step is None or not directory.is_dir():
            raise UserError(f"{self.path}: no checkpoint{'' if step is None else f' of step {step}'} to restore")
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or first), abstract
        )
        try:
            _silence_orbax()
            return ocp.load((directory / "state").absolute(), target)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"{directory}: damaged, or written by another version ({_first_line(error)}); {START_OVER}"
            ) from error

    def mark_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Names ``step`` as the one chosen on validation, with its metrics. Its checkpoint is then kept."""
        write_text(self.path / "best", json.dumps({"step": step, "metrics": dict(metrics)}) + "\n")

    def best_step(self) -> int | None:
        """The step chosen on validation, or ``None``."""
        path = self.path / "best"
        return json.loads(path.read_text())["step"] if path.is_file() else None

    def export_path(self, name: str) -> Path:
        """Where to write ``name`` for later stages; the directory is made."""
        directory = self.path / "export"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / name

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Declares the run usable. ``summary`` (JSON) goes into ``DONE``."""
        write_text(self.path / "DONE", json.dumps(dict(summary), indent=2) + "\n")
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
    try:
        return json.loads((path / "run.json").read_text())
    except ValueError as error:
        raise UserError(f"{path / 'run.json'}: damaged ({error}); train this run again") from error


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
    return found[0]


def require_upstream(path: Path | str, about: Mapping[str, Any], role: str, identity: str) -> None:
    """Checks that the run at ``path`` (its ``run.json``: ``about``) was built on the ``role`` of this ``identity``.

    Raises:
        UserError: it was built on another, and both are named.
    """
    built_on = about["upstream"].get(role)
    if built_on != identity:
        raise UserError(
            f"{path} was built on {role} {str(built_on)[:12]}, but the {role} in use is {identity[:12]}; "
            f"name the matching --{role}, or train {about['kind']} again"
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
