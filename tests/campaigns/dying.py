"""Runs ``allmrec`` in processes that end themselves: at the Nth change of a file, or after so many seconds.

Or the Nth change of a file fails, and all that follow; ``FAULT`` in a command's environment arms it otherwise, see
``placed.py``.

A server that has imported what commands need forks one for each, which costs a second less of a command's few. A fork
is a process as any: it goes through ``allmrec_jax.cli.main`` to Python's own end, has its own session, working folder,
environment and streams, and JAX starts in it. The server has one thread, so that nothing is forked half done.
"""

import ctypes
import gc
import importlib
import json
import logging
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

IMPORTED = (
    "allmrec_jax.cli",
    "allmrec_jax.baselines.ctrl",
    "allmrec_jax.baselines.mlp_llm",
    "allmrec_jax.baselines.morec",
    "allmrec_jax.baselines.recformer",
    "allmrec_jax.baselines.tallrec",
    "allmrec_jax.commands.train",
    "allmrec_jax.training.cf",
    "orbax.checkpoint",
    "tensorboardX",
    "transformers",
)
"""What the server imports: nothing that starts a thread (Polars does), or JAX's devices."""

LIMIT = 300.0
"""Seconds after which a command counts as hanging."""


shared = mmap.mmap(-1, 8)
"""Where a command counts its changes: memory that it has in common with the server."""


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code; minus the signal's number where that ended it.
        err: what it wrote to standard error.
        changes: how often it changed a file below the folder, or was about to.
        seconds: it took.
    """

    code: int
    err: str
    changes: int
    seconds: float


class Server:
    """Runs commands one after the other. Use it as a context manager.

    Args:
        root: the working folder of the commands; changes below its ``watched`` folder are counted.
        watched: that folder.
        environment: variables beside this process's own.
    """

    def __init__(self, root: Path, watched: Path, environment: dict[str, str]):
        self.root, self.watched = root, watched.resolve()
        self.library = root / "dying.so"
        self.environment = environment

    def __enter__(self) -> "Server":
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True)
        changed = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **changed, **self.environment, "LD_PRELOAD": str(self.library)},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(
        self,
        words: tuple[str, ...],
        *,
        at: int = -1,
        after: float | None = None,
        by: int = signal.SIGKILL,
        **environment: str,
    ) -> Ended:
        """Runs a command to its end, which is ``at`` the change of that number, ``after`` so many seconds, or its own.

        ``by`` is the signal that ends it; minus the number of an error with which changes fail from ``at`` on.

        What it started is waited for: a training outlives the experiment that started it.
        """
        asked = {"words": words, "at": at, "after": after, "by": int(by), "environment": environment}
        asked |= {"root": str(self.root), "watched": str(self.watched)}
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the server ended")
        return Ended(**json.loads(answer))


def serve(library: str) -> tuple[str, ...]:
    """Answers until the input ends; returns a command's words, once in each process forked for one."""
    for name in IMPORTED:
        importlib.import_module(name)
    logging.getLogger().handlers.clear()  # absl's: the command line makes its own
    gc.freeze()  # what was imported need not be looked through again by each fork
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads; a fork has one"
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    for line in sys.stdin:
        asked = json.loads(line)
        shared[:] = bytes(8)
        with tempfile.TemporaryFile() as err:
            started = time.perf_counter()
            process = os.fork()
            if process == 0:
                os.setsid()
                os.chdir(asked["root"])
                os.environ.update(asked["environment"])
                null = os.open(os.devnull, os.O_RDWR)
                for file, number in ((null, 0), (null, 1), (err.fileno(), 2)):
                    os.dup2(file, number)
                # A shell may have told its background jobs to ignore it.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                arm = ctypes.CDLL(library).dying_arm
                arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_void_p)
                arm(os.fsencode(asked["watched"]), asked["at"], asked["by"], address)
                return tuple(asked["words"])
            code = _wait(process, asked["after"], asked["by"])
            seconds = time.perf_counter() - started
            err.seek(0)
            said = err.read().decode(errors="replace")
        changes = int.from_bytes(shared[:], sys.byteorder)
        print(json.dumps({"code": code, "err": said, "changes": changes, "seconds": seconds}), flush=True)
    sys.exit(0)


def _wait(process: int, after: float | None, by: int) -> int:
    """The exit code of a process that is sent a signal after so many seconds; then its session is empty."""
    started, code = time.perf_counter(), None
    while True:
        passed = time.perf_counter() - started
        if code is None:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            elif after is not None and passed >= after:
                os.kill(process, by)
                after = None
        if code is not None and not _session(process):
            return code
        if passed > LIMIT:
            for each in _session(process):
                os.kill(each, signal.SIGKILL)
            return code if code is not None else _HUNG
        time.sleep(0.005 if code is None else 0.05)


_HUNG = -1000
"""What is given as the exit code of a command that did not end."""


def _session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for each in os.listdir("/proc"):
        if each.isdigit():
            try:
                fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(each))
    return found


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    words = serve(sys.argv[1])
    sys.argv = ["allmrec", *words]
    if "FAULT" in os.environ:
        import placed

        placed.arm(json.loads(os.environ["FAULT"]))
    from allmrec_jax import cli

    cli.main()
