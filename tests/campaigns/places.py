"""Runs every command where there is no place to write, no memory, or a clock that goes back.

    python tests/campaigns/places.py --out benchmarks/results/campaign_places.json

A command meets one fault: a disk that is full or over its quota from the Nth change of a file on (see ``dying.c``), one
that is read-only from then on, or from the start; no memory at the Nth allocation, or no more address space; a clock
that goes back an hour at its Nth reading, to which all files were made in an hour; a standard output that takes
nothing. Then:

- it has ended with exit code 2 and one line that says what and where, without a traceback; with a clock, well;
- what stood there before is there, or the new one, whole, and with a disk that is full nothing else;
- with the fault gone the same command makes what it makes undisturbed, bit for bit, and leaves nothing beside it.

``--out`` is written after each fault; called again, the campaign goes on from there.
"""

import argparse
import contextlib
import errno
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dying import Ended, Server
from kills import JOBS as WRITERS
from kills import Job, World, half_taken, left_behind, state_of
from placed import HOUR

from allmrec_jax.fileio import write_json
from allmrec_jax.runs import machine, versions

JOBS = (
    Job("synthesize", "synthesize --out {out} --preset tiny"),
    *WRITERS,
    Job("fit", "fit --data data --until cf --set cf.epochs=1 --set cf.dim=8 --checkpoints {out}"),
    Job("sbert-nano", "train sbert-nano --steps 1 --checkpoints {out} --resume"),
    Job("opt-nano", "train opt-nano --steps 1 --checkpoints {out} --resume"),
    Job(
        "recommend",
        "recommend --run up/stage2 --cf up/cf --stage1 up/stage1 --data data --item B0UKGHJ4H7 --count 2 "
        "--out {out}/lists.csv",
    ),
    Job("runs list", "runs list --checkpoints up"),
    Job("plan", "plan --llm facebook/opt-1.3b"),
    Job("presets", "presets stage2"),
    Job("parity", "parity --component SASRec --out {out}"),
)
FAULTS = ("full", "read-only", "read-only from the start", "memory", "address space", "clock", "output")
NO_MEMORY = ("memory", "address space")
_ODD = re.compile(r"Traceback|Exception ignored|Fatal Python error|Exception in thread")


class Campaign:
    """Lets jobs meet faults, and keeps what came of it.

    Args:
        world: what the commands read.
        seed: of moments and sizes.
    """

    def __init__(self, world: World, seed: int):
        self.world, self.seed = world, seed

    def undisturbed(self, job: Job) -> dict[str, Any]:
        """What a job makes, what stood there before, and how many moments there are for a fault."""
        counts = self.world.root / "counts.json"
        self.world.begin(job)
        old = state_of(self.world.out)
        ended = self._run(job, FAULT=json.dumps({"kind": "none", "count": str(counts)}))
        if ended.code:
            raise RuntimeError(f"allmrec {job.words}: {ended.err}")
        moments = {**json.loads(counts.read_text()), "changes": ended.changes}
        return {"old": old, "new": state_of(self.world.out), **moments}

    def meet(self, job: Job, fault: str, number: int, known: dict[str, Any]) -> dict[str, Any]:
        """Runs a job with a fault, and without it where something of the first is left."""
        rng = random.Random(f"{self.seed} {job.name} {fault} {number}")
        happens: dict[str, Any] = {"fault": fault}
        disk: dict[str, Any] = {}
        if fault in ("full", "read-only", "read-only from the start"):
            happens["errno"] = errno.EROFS if fault != "full" else rng.choice((errno.ENOSPC, errno.EDQUOT))
            happens["at"] = 0 if fault == "read-only from the start" else rng.randrange(known["changes"])
            disk = {"at": happens["at"], "by": -happens["errno"]}
        else:
            happens |= {"bytes": rng.choice((64, 256, 1024)) << 20} if fault == "address space" else {}
            happens |= {"at": rng.randrange(known[fault])} if fault in known else {}
            disk = {"FAULT": json.dumps({"kind": fault, **happens})}
        self.world.begin(job)
        if fault == "clock":
            for path in self.world.out.rglob("*"):
                os.utime(path, (time.time() + HOUR,) * 2)
        names = sorted(self.world.out.parent.rglob("*"))
        first = self._run(job, **disk)
        faults = _ended_wrong(fault, job, first)
        faults += half_taken(self.world.out, known["new"], known["old"], job) if self.world.out.exists() else []
        if fault == "full" and (behind := _temporary(self.world.out.parent)):
            faults.append(f"left behind: {behind}")
        after = state_of(self.world.out)
        again = first.code != 0 and not (names == sorted(self.world.out.parent.rglob("*")) and after == known["old"])
        if again:
            ended, after = self._run(job), state_of(self.world.out)
            faults += [f"the next run failed: {ended.err[-300:]}"] if ended.code else []
        if (again or first.code == 0) and after != known["new"]:
            differ = sorted(name for name in {*after, *known["new"]} if after.get(name) != known["new"].get(name))
            faults.append(f"another result: {differ[:10]}")
        if (again or first.code == 0) and (behind := left_behind(self.world.out, known["new"])):
            faults.append(f"left behind: {behind}")
        return {**happens, "code": first.code, "again": again, "faults": faults}

    def _run(self, job: Job, **how: Any) -> Ended:
        return self.world.run(job.words, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9", **how)


def _temporary(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob(".*.tmp")]


def _ended_wrong(fault: str, job: Job, ended: Ended) -> list[str]:
    """How a command's end is not as it must be."""
    if ended.code == 0:
        return [f"said: {ended.err[-700:]}"] if _ODD.search(ended.err) else []
    if fault == "address space" and ended.code < 0:
        return []  # a library ended the process, as libraries in C++ do that find none
    lines = ended.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    says = "out of memory" if fault in NO_MEMORY else "standard output" if fault == "output" else "watched"
    right = ended.code == 2 and len(errors) == 1 and errors == lines[-1:] and says in errors[0]
    return [] if right and not _ODD.search(ended.err) else [f"exit code {ended.code}: {ended.err[-900:]}"]


def campaign(
    root: Path,
    times: int,
    seed: int,
    names: tuple[str, ...] = (),
    faults: tuple[str, ...] = FAULTS,
    record: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Each job (of these names; all where there are none) meets each fault ``times`` times; what ``record`` lacks.

    Returns:
        by job its command, and a dictionary for each fault: the moment, the exit code, whether the command ran
        ``again``, and ``faults``, what went wrong.
    """
    record, started = {"jobs": {}, **(record or {})}, time.monotonic()
    jobs = [job for job in JOBS if not names or job.name in names]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with Server(root, root / "watched", compiled) as server:
        world = World(server, jobs)
        here = Campaign(world, seed)
        for job in jobs:
            made = record["jobs"].setdefault(job.name, {"command": f"allmrec {job.words}", "met": []})["met"]
            known = None
            for number, fault in enumerate(faults * times):
                if time.monotonic() - started > seconds:
                    return record
                if number < len(made):
                    continue
                if known is None:
                    world.begin(job)
                    world.run(job.words)  # what is compiled is kept
                    known = here.undisturbed(job)
                writes = known["changes"] or fault not in ("full", "read-only", "read-only from the start")
                if not writes or known.get(fault) == 0:
                    made.append({"fault": fault, "none": "there is no moment for it", "faults": []})
                else:
                    made.append(here.meet(job, fault, number, known))
                keep(record)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(world.out)
    return record


def faults_of(record: dict[str, Any]) -> list[str]:
    """What went wrong, a line each."""
    return [
        f"{name}, {met['fault']} at {met.get('at')}: {fault}"
        for name, job in record["jobs"].items()
        for met in job["met"]
        for fault in met["faults"]
    ]


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2, help="that each command meets each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", default=[], choices=[job.name for job in JOBS])
    parser.add_argument("--anew", action="store_true", help="let these jobs meet them again")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after so long")
    parser.add_argument("--work", type=Path, help="where what commands read is made and kept")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    record = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if given.anew:
        for name in given.job or [job.name for job in JOBS]:
            record.get("jobs", {}).pop(name, None)

    def keep(record: dict[str, Any]) -> None:
        command = f"python tests/campaigns/places.py --times {given.times} --seed {given.seed} --out {given.out.name}"
        write_json(given.out, {**record, "command": command, "machine": machine(), "versions": versions()})

    with tempfile.TemporaryDirectory() as folder:
        work = (given.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        names = tuple(given.job)
        found = campaign(work, given.times, given.seed, names, record=record, keep=keep, seconds=given.seconds)
    faults = faults_of(found)
    print("\n".join(faults) or "no faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
