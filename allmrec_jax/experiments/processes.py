"""Commands that run as processes of their own, so that their time and peak memory can be measured."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Literal, NamedTuple

from allmrec_jax.errors import StoppedError

_running: set[int] = set()
_told_to_end = threading.Event()


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        exit_code: 0 where it succeeded.
        last_line: the last line with something in it that it wrote to the stream that was read.
        seconds: from its start to its end.
        cpu_seconds: of all its cores together.
        peak_mib: the most memory that it had resident, in MiB.
    """

    exit_code: int
    last_line: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Passes on SIGTERM, and as such Ctrl-C, to the processes that :func:`run_process` runs: none outlives this one.

    After SIGTERM :func:`run_process` raises. In a thread other than the main one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on() -> None:
        _told_to_end.set()
        for process in list(_running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        pass_on()
        signal.default_int_handler(number, frame)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: pass_on())}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        _told_to_end.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def allmrec_command(arguments: Sequence[str]) -> list[str]:
    """``allmrec ARGUMENTS`` by this interpreter, whatever is on the path."""
    return [sys.executable, "-m", "allmrec_jax.cli", *arguments]


def run_process(
    command: Sequence[str],
    *,
    read: Literal["stdout", "stderr"],
    show: Callable[[str], object] = lambda line: None,
    lock: int | None = None,
) -> Ended:
    """Runs a command to its end.

    Args:
        command: the program and its arguments.
        read: the stream whose lines are read. Standard error that is not read goes where this process's goes; standard
            output that is not read goes nowhere.
        show: called with each line read, its line break too.
        lock: an open lock file that the process holds too, for it may outlive this one.

    Raises:
        StoppedError: this process was told to end, see :func:`ending_together`; the other one has ended.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if read == "stdout" else subprocess.DEVNULL,
        stderr=subprocess.PIPE if read == "stderr" else None,
        pass_fds=() if lock is None else (lock,),
    )
    _running.add(process.pid)
    if _told_to_end.is_set():  # before it was among those that are told
        process.terminate()
    stream = process.stdout if read == "stdout" else process.stderr
    assert stream is not None
    last = ""
    with stream:
        for raw in stream:
            line = raw.decode(errors="replace")
            show(line)
            last = line.strip() or last
    _, status, usage = os.wait4(process.pid, 0)
    _running.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    if _told_to_end.is_set():
        raise StoppedError("told to end, and what was under way has ended; the same command goes on from there")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    seconds, cpu_seconds = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return Ended(process.returncode, last, seconds, cpu_seconds, usage.ru_maxrss * unit / 2**20)
