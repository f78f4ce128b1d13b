"""Ends commands at every kind of moment, runs them again, and compares what they made with the unbroken run's.

    python tests/campaigns/kills.py --kills 216 --out benchmarks/results/campaign_kills.json

An end comes at the Nth change of a file (opened for writing, half of a write, a rename, an exchange, a removal), the
changes of a command shared out evenly over its kills, or after a random time; with SIGKILL, SIGTERM or SIGINT. Then:

- the command has ended with that signal's code, at once, and without a traceback;
- what stands at its place is what stood there before, or the new one, whole; no run counts as finished and no results
  as those of their users unless they are;
- the command runs again, and its result is that of the unbroken run bit for bit, checkpoints' arrays too;
- nothing is left behind, neither in its place nor beside it.

The file is written after each kill. Called again, with the same ``--work`` to spare the preparations, the campaign
makes what is missing of it; ``--job NAME --anew`` makes one job's again.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dying import Ended, Server

from allmrec_jax.errors import STOPPED, UserError
from allmrec_jax.evaluation.results import read_users
from allmrec_jax.fileio import read_json, verify, write_json
from allmrec_jax.runs import machine, versions

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to kill.

    Attributes:
        name: what it is called.
        words: its arguments; ``{out}`` is where it writes.
        old: words that make what stands at ``{out}`` before, if anything does.
        replaces: whether the folder ``{out}`` is replaced as a whole.
        share: how often it is killed where a training is once.
    """

    name: str
    words: str
    old: str | None = None
    replaces: bool = False
    share: int = 1


def training(name: str, words: str, share: int = 1) -> Job:
    """The job that trains something into ``{out}``."""
    return Job(name, f"train {words} --data data --checkpoints {{out}} --resume", share=share)


CF = "--epochs 3 --evaluate-every 1 --dim 8 --max-length 10 --buckets 1"
TEXTS = "--validation-users 20 --set text_max_tokens=8"
PROMPTS = "--steps 4 --batch-size 2 --history-length 2 --validation-users 4 --positions last"
REPORT = "report results --no-models --out {out}"
EVAL = "eval overall --data data --runs up/cf --out {out} --max-users"
PREPARE = "prepare raw/Nano_{}.json.gz --out {{out}}"
STAGES = "--data data --stage1 up/stage1 --stage2 up/stage2 --out {out}"
JOBS = (
    training("sasrec", f"cf {CF} --blocks 1", share=2),
    training("gru4rec", f"cf --model gru4rec {CF} --set hidden=8", share=2),
    training("nextitnet", f"cf --model nextitnet {CF} --dilations 1,2 --set repeats=1", share=2),
    training("ncf", f"cf --model ncf {CF}", share=2),
    training("stage1", f"stage1 --cf up/cf --epochs 3 --batch-size 64 {TEXTS}"),
    training("stage2", f"stage2 --cf up/cf --stage1 up/stage1 --candidates 4 --warm-start-steps 2 {PROMPTS}"),
    training("mlp-llm", f"mlp-llm --cf up/cf --candidates 4 --warm-start-steps 2 {PROMPTS}"),
    training("tallrec", f"tallrec --rank 2 {PROMPTS}"),
    training("morec", f"morec --epochs 3 --dim 8 --blocks 1 --max-length 6 {TEXTS}"),
    training("ctrl", f"ctrl {CF} --blocks 1 --contrast-epochs 1 --history-titles 2 --subspaces 2 {TEXTS}"),
    training("recformer", "recformer --epochs 2 --pretrain-epochs 1 --max-tokens 32 --max-items 4"),
    Job("prepare", PREPARE.format("Movies"), replaces=True, share=10),
    Job("prepare over another", PREPARE.format("Movies"), old=PREPARE.format("Games"), replaces=True, share=12),
    Job("eval over another", f"{EVAL} 8", old=f"{EVAL} 5", share=3),
    Job(
        "experiment",
        "experiment table1 --data data --systems Popularity --systems SASRec --set cf.epochs=2 --set cf.dim=8 "
        "--set cf.blocks=1 --set cf.buckets=1 --max-users 8 --checkpoints {out}/checkpoints --out {out}/results",
    ),
    Job("report over another", REPORT, old=f"{REPORT} --title Other", replaces=True, share=12),
    Job("convert to-official", f"convert to-official --cf up/cf {STAGES}", share=5),
    Job(
        "convert from-official",
        "convert from-official official --name Nano_Movies --data {out}/data --checkpoints {out}/checkpoints "
        "--sentence-encoder sbert-nano --llm opt-nano",
        share=2,
    ),
    Job("convert export", f"convert export {STAGES}", replaces=True, share=8),
)


class World:
    """What the commands read, and the server that runs them.

    Args:
        server: in whose root they are made, where they are not there.
        jobs: that will be killed; only what they need is made.
    """

    def __init__(self, server: Server, jobs: list[Job]):
        self.server, self.root, self.out = server, server.root, server.watched / "out"
        shutil.rmtree(server.watched, ignore_errors=True)
        server.watched.mkdir()
        self._make("raw", "synthesize --out {out} --preset tiny --seed 0")
        self._make("data", PREPARE.format("Movies"))
        words = " ".join(job.words for job in jobs)
        for name in ("cf", "stage1", "stage2"):
            if f"up/{name}" in words or "official" in words or "results" in words:
                job = next(job for job in JOBS if job.name == {"cf": "sasrec"}.get(name, name))
                self._make(f"made {name}", job.words)
                (run,) = (self.root / f"made {name}" / "Nano_Movies" / name).iterdir()
                (self.root / "up").mkdir(exist_ok=True)
                shutil.copytree(run, self.root / "up" / name, dirs_exist_ok=True)
        if "results" in words:
            self._make("results", f"{EVAL} 8")
        if "from-official" in words:
            self._make("official", next(job.words for job in JOBS if job.name == "convert to-official"))

    def _make(self, name: str, words: str) -> Path:
        """What a command makes, kept in the root."""
        path = self.root / name
        if not path.exists():
            shutil.rmtree(self.root / "in the making", ignore_errors=True)
            ended = self.run(words, self.root / "in the making")
            if ended.code:
                raise RuntimeError(f"allmrec {words}: {ended.err}")
            (self.root / "in the making").rename(path)
        return path

    def run(self, words: str, out: Path | None = None, **end: Any) -> Ended:
        """Runs a job's command."""
        given = (word.format(out=out or self.out) for word in shlex.split(words))
        return self.server.run(tuple(given), **end)

    def begin(self, job: Job) -> None:
        """Puts what stood there before in the job's place."""
        shutil.rmtree(self.out, ignore_errors=True)
        if job.old is not None:
            shutil.copytree(self._make(f"old {job.name}", job.old), self.out)


IN_PASSING = {"times", "command", "machine", "platform", "versions", "commit", "seconds", "peak_mib", "units"}
"""What JSON files say of the run that wrote them and another one would not."""


TIMED = {".lock", "cost.json", "report.html", "table1.md"}
"""Files that say who is at it and what took how long; that of a training which was interrupted is not known."""


def state_of(folder: Path) -> dict[str, str]:
    """What a command made: a hash of each file, without what differs from run to run, as times do.

    Of checkpoints only the last counts, by its arrays: SIGTERM adds one.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or "tensorboard" in path.parts or "steps" in path.parts:
            if path.name == "steps" and (numbers := [int(each.name) for each in path.iterdir() if each.name.isdigit()]):
                found[f"{name}/{max(numbers)}"] = _arrays(path / str(max(numbers)))
            continue
        found[name] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.name in TIMED or path.suffix == ".lock":
        return ""
    content = path.read_bytes()
    if path.suffix == ".json" or path.name == "DONE":
        with contextlib.suppress(ValueError):
            content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in IN_PASSING}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def _arrays(step: Path) -> str:
    import jax
    from orbax.checkpoint import v1 as ocp

    digest = hashlib.sha256((step / "loop.json").read_bytes())
    for key, leaf in jax.tree_util.tree_leaves_with_path(ocp.load(step / "state")):
        array = np.asarray(leaf)
        digest.update(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def half_taken(folder: Path, unbroken: dict[str, str], old: dict[str, str], job: Job) -> list[str]:
    """What stands in the job's place after it was ended and a reader would take for what it is not."""
    found = []
    left = {name: value for name, value in state_of(folder).items() if not _temporary(name)}
    if job.replaces and left and left not in (unbroken, old):
        found.append(f"neither the old nor the new: {_differing(left, unbroken)}")
    for done in folder.rglob("DONE"):
        run = done.parent.relative_to(folder).as_posix() + "/export"
        if _below(left, run) != _below(unbroken, run):
            found.append(f"a run with DONE and another export: {run}")
    for results in folder.rglob("results.json"):
        try:
            read_users(results.parent)
        except UserError:
            continue
        beneath = results.parent.relative_to(folder).as_posix()
        pair = [f"{beneath}/{name}".removeprefix("./") for name in ("results.json", "users.parquet")]
        if not any(all(left[name] == state.get(name) for name in pair) for state in (unbroken, old)):
            found.append(f"a pair of two evaluations is read: {beneath}")
    for step in folder.rglob("steps/*"):
        if step.name.isdigit():
            try:
                verify(step, read_json(step / "hashes.json", dict[str, str], ""), "")
            except UserError as error:
                if step == max(step.parent.iterdir(), key=lambda each: each.name.isdigit() and int(each.name)):
                    found.append(f"the last checkpoint is damaged: {error}")
    return found


def left_behind(folder: Path, unbroken: dict[str, str]) -> list[str]:
    """What lies below the watched folder after the command ran again, and would not after the unbroken run."""
    beside = [path.name for path in folder.parent.iterdir() if path != folder]
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    found = [*beside, *(name for name in names if _temporary(name))]
    for step in folder.rglob("steps/*"):
        try:
            verify(step, read_json(step / "hashes.json", dict[str, str], ""), "")
        except UserError as error:
            found.append(f"half a checkpoint: {error}")
    return found + sorted(state_of(folder).keys() - unbroken.keys())


def _temporary(name: str) -> bool:
    return any(part.startswith(".") and part.endswith(".tmp") for part in name.split("/"))


def _below(state: dict[str, str], folder: str) -> dict[str, str]:
    return {name: value for name, value in state.items() if name.startswith(f"{folder}/")}


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))[:10]


class Campaign:
    """Kills jobs in turn, and keeps what came of it.

    Args:
        kills: of all jobs together.
        seed: of when and how.
        jobs: to kill.
        record: what an earlier call kept.
        keep: called with the record after each kill.
    """

    def __init__(
        self, kills: int, seed: int, jobs: list[Job], record: dict[str, Any], keep: Callable[[dict[str, Any]], None]
    ):
        self.seed, self.jobs, self.keep = seed, jobs, keep
        once = math.ceil(kills / sum(job.share for job in jobs))
        self.kills = {job.name: once * job.share for job in jobs}
        self.record = {"seed": seed, "machine": machine(), "versions": versions(), "jobs": {}, **record}

    def run(self, root: Path, seconds: float) -> dict[str, Any]:
        """Makes the kills that the record lacks, in so much time, and returns the record."""
        started = time.monotonic()
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # a few steps take less than optimizing them would
        }
        todo = [job for job in self.jobs if len(self._made(job)) < self.kills[job.name]]
        with Server(root, root / "watched", compiled) as server:
            world = World(server, todo)
            while todo and time.monotonic() - started < seconds:
                job = min(todo, key=lambda job: len(self._made(job)) / self.kills[job.name])
                self._made(job).append(self._kill(world, job, len(self._made(job))))
                self.keep(self.record)
                if len(self._made(job)) == self.kills[job.name]:
                    todo.remove(job)
        return self.record

    def _made(self, job: Job) -> list[dict[str, Any]]:
        return self.record["jobs"].setdefault(job.name, {"command": f"allmrec {job.words}", "kills": []})["kills"]

    def _unbroken(self, world: World, job: Job) -> list[dict[str, str]]:
        """What a job makes, and what stood in its place before; kept in the root."""
        kept = world.root / f"{job.name}.json"
        if not kept.exists():
            world.begin(job)
            before = state_of(world.out)
            ended = world.run(job.words)
            if ended.code:
                raise RuntimeError(f"allmrec {job.words}: {ended.err}")
            about = {"changes": ended.changes, "seconds": round(ended.seconds, 2)}
            write_json(kept, {"states": [state_of(world.out), before], "about": about})
        found = json.loads(kept.read_text())
        self.record["jobs"][job.name] = {**found["about"], **self.record["jobs"][job.name]}
        return found["states"]

    def _kill(self, world: World, job: Job, number: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {job.name} {number}")
        unbroken, old = self._unbroken(world, job)
        about = self.record["jobs"][job.name]
        by = SIGNALS[number % len(SIGNALS)]
        if number % 5 == 4:
            end: dict[str, Any] = {"after": round(rng.random() * about["seconds"], 3)}
        else:
            end = {"at": int((number + rng.random()) / self.kills[job.name] * about["changes"])}
        world.begin(job)
        # What was compiled is read, and nothing written: a kill may come while JAX writes it.
        first = world.run(job.words, by=by, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9", **end)
        faults = [] if first.code in _codes(by, job) else [f"exit code {first.code}: {first.err[-300:]}"]
        if "Traceback" in first.err:
            faults.append(f"a traceback: {first.err[-2000:]}")
        faults += half_taken(world.out, unbroken, old, job)
        again = world.run(job.words)
        about["seconds"] = round(again.seconds, 2)  # the first time it was compiled too
        if again.code:
            faults.append(f"the next run failed: {again.err[-300:]}")
        elif (after := state_of(world.out)) != unbroken:
            faults.append(f"another result: {_differing(after, unbroken)}")
        if behind := left_behind(world.out, unbroken):
            faults.append(f"left behind: {behind}")
        for path in world.out.parent.iterdir():
            shutil.rmtree(path)
        return {"signal": by.name, **end, "code": first.code, "faults": faults}


def _codes(by: signal.Signals, job: Job) -> tuple[int, ...]:
    """Exit codes that a command may have: it has finished before, or was ended so."""
    return {
        signal.SIGKILL: (0, -signal.SIGKILL),
        signal.SIGTERM: (0, -signal.SIGTERM, *((STOPPED,) if job.words.startswith(("train", "experiment")) else ())),
        signal.SIGINT: (0, 130),
    }[by]


def campaign(
    root: Path,
    kills: int,
    seed: int,
    jobs: Sequence[Job] = JOBS,
    record: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Kills the jobs so often in all; see :class:`Campaign`."""
    return Campaign(kills, seed, list(jobs), record or {}, keep).run(root, seconds)


def faults_of(record: dict[str, Any]) -> list[str]:
    """What went wrong, a line each."""
    return [
        f"{name}, kill {number} ({kill['signal']}): {fault}"
        for name, job in record["jobs"].items()
        for number, kill in enumerate(job["kills"])
        for fault in kill["faults"]
    ]


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all jobs together, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", default=[], choices=[job.name for job in JOBS])
    parser.add_argument("--anew", action="store_true", help="make these jobs' kills again")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no kill after so long")
    parser.add_argument("--work", type=Path, help="where what commands read is made and kept")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    record = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if given.anew:
        for name in given.job or [job.name for job in JOBS]:
            record.get("jobs", {}).pop(name, None)

    def keep(record: dict[str, Any]) -> None:
        command = f"python tests/campaigns/kills.py --kills {given.kills} --seed {given.seed} --out {given.out.name}"
        write_json(given.out, {**record, "command": command, "asked": given.kills})

    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        jobs = [job for job in JOBS if job.name in given.job or not given.job]
        kills = math.ceil(given.kills * sum(job.share for job in jobs) / sum(job.share for job in JOBS))
        found = campaign(work, kills, given.seed, jobs, record, keep, given.seconds)
    faults = faults_of(found)
    print("\n".join(faults) or "no faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
