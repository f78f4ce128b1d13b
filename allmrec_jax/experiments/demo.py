"""The demo: the whole pipeline on the embedded data, from raw files to the report.

Each step is the command that a user would type, run as a process of its own, so that its peak memory can be measured.
Trainings that are finished are found by their identity and not repeated; an interrupted one goes on.

Expected on 2 cores: about 10 minutes and less than 4 GiB, A-LLMRec's Hit@1 near SASRec's on all users and far above it
on cold items.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from allmrec_jax.errors import UserError
from allmrec_jax.experiments.processes import allmrec_command, ending_together, run_process
from allmrec_jax.fileio import read_json, write_json
from allmrec_jax.outputs import Output

log = logging.getLogger(__name__)

DOMAIN = "Nano_Movies"


@dataclass(frozen=True)
class Step:
    """What a step took: wall-clock seconds and the peak of its resident memory."""

    name: str
    seconds: float
    peak_mib: float


@ending_together()
def make_demo(
    out: Path,
    checkpoints: Path,
    *,
    data_seed: int = 0,
    seed: int = 0,
    data_preset: str = "demo",
    llm: str = "opt-nano",
    sentence_encoder: str = "sbert-nano",
    max_users: int = 1000,
    mesh: str | None = None,
) -> tuple[list[Step], Path]:
    """Makes data, trains every stage, evaluates, and writes ``results.json``, ``users.parquet`` and ``report.html``.

    Args:
        out: where they go.
        checkpoints: the folder of runs.
        data_seed: of the synthetic data.
        seed: of training and evaluation.
        data_preset: size of the synthetic data.
        llm: name or directory of the language model.
        sentence_encoder: name or directory of the sentence encoder.
        max_users: test users to evaluate.
        mesh: devices that training and evaluation use.

    Returns:
        what each step took, and the page to open.

    Raises:
        UserError: a step failed.
    """
    Output("folder of results", signs=("raw-*/oracle.npz",)).claim(out)
    raw, data = out / f"raw-{data_seed}", out / f"data-{data_seed}"
    steps: list[Step] = []

    def step(name: str, *arguments: str | Path) -> str:
        before = {done.parent.resolve() for done in checkpoints.glob("*/*/*/DONE")}
        measured, last = run_step(name, arguments, number=len(steps) + 1)
        reused = Path(last).resolve() in before
        steps.append(replace(measured, name=f"{name}, trained before") if reused else measured)
        return last

    step("synthesize", "synthesize", "--out", raw, "--seed", str(data_seed), "--preset", data_preset)
    step("prepare", "prepare", raw / f"{DOMAIN}.json.gz", "--out", data)
    devices = ("--mesh", mesh) if mesh else ()
    common = (*devices, "--data", data, "--preset", "small", "--seed", str(seed))
    common = (*common, "--checkpoints", checkpoints, "--resume")
    cf = step("train cf", "train", "cf", *common)
    stage1 = step("train stage1", "train", "stage1", *common, "--cf", cf, "--sentence-encoder", sentence_encoder)
    stage2 = step("train stage2", "train", "stage2", *common, "--cf", cf, "--stage1", stage1, "--llm", llm)
    asked = ("--oracle", raw / "oracle.npz", "--llm", llm, "--seed", str(seed), "--max-users", str(max_users))
    generation = ("--preset", "paper")
    asked_of = (*devices, "--data", data, "--runs", stage2)
    step("eval overall", "eval", "overall", *asked_of, *asked, *generation, "--out", out)
    record_steps(out, steps)
    page = step("report", "report", out, cf, stage1, stage2, "--data", data)
    return steps, Path(page)


def run_step(name: str, arguments: Sequence[str | Path], number: int) -> tuple[Step, str]:
    """Runs ``allmrec ARGUMENTS`` as a process of its own.

    Returns:
        What it took, and the last line it printed.

    Raises:
        UserError: it failed; it has said why itself.
    """
    words = list(map(str, arguments))
    log.info("\n[%d] allmrec %s", number, " ".join(words))
    ended = run_process(allmrec_command(words), read="stdout", show=lambda line: log.info(line.rstrip("\n")))
    if ended.exit_code:
        raise UserError(
            f"the demo stopped at step {number}, {name} (exit code {ended.exit_code}, see above); "
            "the same command goes on from there"
        )
    log.info(f"    {ended.seconds:.1f} s, peak {ended.peak_mib:,.0f} MiB")
    return Step(name, ended.seconds, ended.peak_mib), ended.last_line


def record_steps(out: Path, steps: list[Step]) -> None:
    """Add the steps so far to the times in ``results.json``, for the report."""
    path = out / "results.json"
    results = read_json(path, dict[str, Any], "run the demo again")
    results.setdefault("times", {})["steps"] = [asdict(step) for step in steps]
    write_json(path, results)
