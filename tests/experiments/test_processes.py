"""Commands as processes of their own, measured."""

import signal
import subprocess
import sys

import pytest

from allmrec_jax.experiments.processes import run_process

PROGRAM = "import sys; print('one'); print('two'); print(); print('three', file=sys.stderr); sys.exit(7)"


@pytest.mark.parametrize(
    ("read", "lines", "last"), [("stdout", ["one", "two", ""], "two"), ("stderr", ["three"], "three")]
)
def test_lines_of_one_stream_are_shown_and_the_end_is_told(read, lines, last, capfd):
    shown = []
    ended = run_process([sys.executable, "-c", PROGRAM], read=read, show=shown.append)
    assert [line.rstrip() for line in shown] == lines
    assert (ended.exit_code, ended.last_line) == (7, last)
    # Standard error that is not read goes on to this process's; standard output that is not read does not.
    assert capfd.readouterr() == ("", "three\n" if read == "stdout" else "")


def test_memory_and_time_are_those_of_the_process():
    program = "import time; block = b'x' * (300 << 20)\nwhile time.process_time() < 0.5: pass"
    ended = run_process([sys.executable, "-c", program], read="stdout")
    assert ended.exit_code == 0 and ended.peak_mib > 300
    assert ended.seconds > 0 and ended.cpu_seconds > 0.4


PARENT = """
import sys
from allmrec_jax import cli
from allmrec_jax.experiments.processes import ending_together, run_process
child = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(75)); "
child += "print('begun', flush=True); time.sleep(60)"
@ending_together()
def main(**_):
    run_process([sys.executable, "-c", child], read="stdout", show=lambda line: print(line, end="", flush=True))
cli.allmrec.main = main
cli.main([])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_what_ends_this_process_ends_the_others_too(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=50)  # standard error is open for as long as the child lives
    assert process.returncode == code and said.count("\n") == 1
