"""Training, checkpointing and evaluation by two real processes with two devices each."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sharded_llm
import tiny_llm

from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.training.metrics import read_lines

SCRIPT = Path(__file__).with_name("two_processes.py")


def start(model: Path, out: Path, index: str, port: int, steps: int) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    command = [sys.executable, SCRIPT, model, out, index, str(port), str(steps)]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
    found = [process.communicate(timeout=280) for process in processes]
    for process, (_, errors) in zip(processes, found, strict=True):
        assert process.returncode == 0, errors
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def together(model: Path, out: Path, steps: int) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    port = free_port()
    said = outputs([start(model, out, str(index), port, steps) for index in range(2)])
    return said, [json.loads((out / f"found-{index}.json").read_text()) for index in range(2)]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    llm, params = sharded_llm.llm()
    model = tmp_path / "llm"
    save_checkpoint(model, llm.config, {**params}, tiny_llm.tokenizer())
    said, (first, second) = together(model, tmp_path / "two", steps=2)

    # Only the first process prints and logs. The processes are apart along fsdp: each reads its half of the kernels.
    assert "done 2" in said[0][0] and "step 1/2" in said[0][1]
    assert "done" not in said[1][0] and "step" not in said[1][1]  # Gloo itself greets from each
    (run,) = (tmp_path / "two" / "data" / "stage2").iterdir()
    assert (run / "DONE").is_file()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert first["saved"] == [1, 2]
    assert not list(run.rglob(".*tmp"))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert first["read"] == first["held"] == second["read"] < 0.6 * whole
    assert {**first, "saved": 0} == {**second, "saved": 0}

    outputs([start(model, tmp_path / "one", "alone", 0, 2)])
    alone = json.loads((tmp_path / "one" / "found-0.json").read_text())
    assert first["texts"] == alone["texts"]
    # Sums in another order give other roundings.
    np.testing.assert_allclose(first["scores"], alone["scores"], rtol=1e-3)
    (single,) = (tmp_path / "one" / "data" / "stage2").iterdir()
    losses = [[line["loss"] for line in read_lines(path / "metrics.jsonl")] for path in (run, single)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # float32
