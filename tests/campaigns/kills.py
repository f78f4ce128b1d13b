"""Ends commands at every kind of moment, runs them again, and compares what they made with the unbroken run's.

    python tests/campaigns/kills.py --kills 200 --out benchmarks/results/campaign_kills.json

A kill comes at the Nth file operation of a command (a write's end, a rename, an exchange, a removal) or after a random
time, with SIGKILL, SIGTERM or SIGINT. Before the command runs again, whatever stands at its place must be what stood
there before, or the new one, whole. When it has run again, the result must be that of the unbroken run bit for bit, and
nothing may be left beside it. Commands: CF training, `prepare`, `eval`, `report`, `convert`.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mutations

from allmrec_jax.fileio import write_json

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to kill.

    Attributes:
        name: of the command.
        words: its arguments; ``{out}`` is where it writes.
        old: words that make what stands at ``{out}`` before, if anything does.
        resumes: whether it goes on with ``--resume``, so that what an end left may be neither old nor new.
    """

    name: str
    words: tuple[str, ...]
    old: tuple[str, ...] | None = None
    resumes: bool = False


def environment(**further: str) -> dict[str, str]:
    """One thread a library, so that several campaigns do not disturb each other."""
    return {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu", **further}


def allmrec(words: tuple[str, ...], cwd: Path, **further: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process that may end itself, see ``dying.py``."""
    program = Path(__file__).with_name("dying.py")
    return subprocess.run(
        [sys.executable, program, *words], cwd=cwd, env=environment(**further), capture_output=True, text=True
    )


def prepared(root: Path) -> None:
    """Raw reviews; and a data set, a run and results, for the commands that read them."""
    done = allmrec(("synthesize", "--out", "raw", "--preset", "tiny", "--seed", "0"), root)
    assert done.returncode == 0, done.stderr
    mutations.make(root / "made")
    (root / "made" / "data").rename(root / "data")
    (root / "made" / "results").rename(root / "results")
    next((root / "made" / "checkpoints" / "tiny" / "cf").iterdir()).rename(root / "cf")


TRAINING = ("--preset", "small", "--epochs", "3", "--dim", "8", "--max-length", "10")
ASKED = ("--max-users", "8")
JOBS = (
    Job("prepare", ("prepare", "raw/Nano_Movies.json.gz", "--out", "{out}")),
    Job(
        "prepare over another",
        ("prepare", "raw/Nano_Movies.json.gz", "--out", "{out}"),
        old=("prepare", "raw/Nano_Games.json.gz", "--out", "{out}"),
    ),
    Job("train cf", ("train", "cf", "--data", "data", *TRAINING, "--checkpoints", "{out}", "--resume"), resumes=True),
    Job(
        "eval over another",
        ("eval", "overall", "--data", "data", "--runs", "cf", *ASKED, "--out", "{out}"),
        old=("eval", "overall", "--data", "data", "--runs", "cf", "--max-users", "5", "--out", "{out}"),
    ),
    Job("report", ("report", "results", "--no-models", "--out", "{out}")),
    Job(
        "report over another",
        ("report", "results", "--no-models", "--out", "{out}"),
        old=("report", "results", "--no-models", "--title", "Other", "--out", "{out}"),
    ),
    Job("convert", ("convert", "to-official", "--data", "data", "--cf", "cf", "--out", "{out}")),
)


def state_of(folder: Path) -> dict[str, str]:
    """What a command made, without what differs from run to run: times, paths and commands."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".lock",) and "tensorboard" not in path.parts:
            content = path.read_bytes()
            if path.name in ("results.json", "run.json", "DONE") and isinstance(about := json.loads(content), dict):
                for key in ("times", "command", "machine", "platform", "versions", "commit", "seconds"):
                    about.pop(key, None)
                content = json.dumps(about, sort_keys=True).encode()
            if "steps" in path.parts:  # Orbax writes when it was
                continue
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def campaign(root: Path, kills: int, seed: int, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Kills each job in turn, ``kills`` times in all; what went wrong is in ``faults``."""
    prepared(root)
    jobs = [job for job in JOBS if not names or job.name in names]
    rng = random.Random(seed)
    unbroken, old, operations, seconds = {}, {}, {}, {}
    for job in jobs:
        out = root / "out"
        if job.old is not None:
            assert allmrec(_at(job.old, out), root).returncode == 0
            old[job.name] = state_of(out)
            shutil.copytree(out, root / f"old {job.name}")
        started = time.perf_counter()
        counted = root / "operations"
        done = allmrec(_at(job.words, out), root, DYING_COUNT=str(counted))
        assert done.returncode == 0, done.stderr
        seconds[job.name] = time.perf_counter() - started
        operations[job.name] = int(counted.read_text())
        unbroken[job.name] = state_of(out)
        shutil.rmtree(out)
    ended: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(kills):
        job = jobs[number % len(jobs)]
        number_of_signal = rng.choice(SIGNALS)
        at_operation = rng.random() < 0.8
        moment = rng.randrange(operations[job.name]) if at_operation else rng.random() * seconds[job.name]
        place = "operation" if at_operation else "second"
        told = f"kill {number}, {job.name}, {number_of_signal.name} at {place} {moment}"
        out = root / "out"
        if job.old is not None:
            shutil.copytree(root / f"old {job.name}", out)
        where = {"DYING_AT" if at_operation else "DYING_AFTER": str(moment), "DYING_BY": str(int(number_of_signal))}
        first = allmrec(_at(job.words, out), root, **where)
        ended[f"{number_of_signal.name} {'finished' if first.returncode == 0 else 'ended'}"] += 1
        if "Traceback" in first.stderr:
            faults.append(f"{told}: a traceback: {first.stderr[-300:]}")
        left = state_of(out)
        whole = [unbroken[job.name], old.get(job.name, {})]
        if job.name.startswith("prepare") and _without_temporary(left) not in whole:
            faults.append(f"{told}: neither the old nor the new: {sorted(left)[:20]}")
        again = allmrec(_at(job.words, out), root)
        if again.returncode != 0:
            faults.append(f"{told}: the next run failed: {again.stderr[-300:]}")
        elif state_of(out) != unbroken[job.name]:
            after = state_of(out)
            differing = sorted(k for k in {*after, *unbroken[job.name]} if after.get(k) != unbroken[job.name].get(k))
            faults.append(f"{told}: another result: {differing[:10]}")
        beside = sorted(path.name for path in root.iterdir() if path.name.startswith("."))
        if beside or any(".tmp/" in name for name in state_of(out)):
            faults.append(f"{told}: left behind: {beside}")
        for path in (out, *(root / name for name in beside)):
            shutil.rmtree(path, ignore_errors=True)
    return {
        "kills": kills,
        "seed": seed,
        "jobs": {job.name: {"operations": operations[job.name]} for job in jobs},
        "ended": dict(sorted(ended.items())),
        "faults": faults,
    }


def _at(words: tuple[str, ...], out: Path) -> tuple[str, ...]:
    return tuple(word.format(out=out) for word in words)


def _without_temporary(state: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in state.items() if ".tmp/" not in name}


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", default=[], choices=[job.name for job in JOBS])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), given.kills, given.seed, tuple(given.job))
    print(json.dumps(found, indent=2))
    if given.out is not None:
        write_json(given.out, {"command": " ".join(["python", *sys.argv]), **found})
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
