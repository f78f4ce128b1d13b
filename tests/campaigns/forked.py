"""Runs pytest on a copy of the repository, in forked processes that need not import JAX again.

The process that forks has imported the libraries and started no JAX backend; the product is imported by each fork
alone, from the copy, so that one of its modules can be another one in each. Compiled programs are shared through the
cache that ``tests/conftest.py`` keeps.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from coverage import Coverage
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARIES = ("flax.linen", "numpy", "optax", "orbax.checkpoint", "polars", "torch", "transformers")
MEMORY = 10 << 30
"""Bytes that a fork may take: an altered shape must not take the machine's."""


@dataclasses.dataclass(eq=False)  # pytest keeps plugins in sets
class Watch:
    """A pytest plugin that keeps what failed, what passed, how long each test took and, if told, which lines it ran."""

    coverage: Coverage | None = None
    failed: list[str] = dataclasses.field(default_factory=list)
    passed: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def pytest_collection(self) -> None:
        # Every program is kept, the small ones too: most mutants change none of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if self.coverage is not None:
            self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def copy_repository(root: Path) -> None:
    """Brings what git knows of the working tree to ``root``; only files that differ in time or size are written."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        source, target = REPOSITORY / name, root / name
        if name and source.is_file():
            state = source.stat()
            if not target.exists() or (target.stat().st_mtime, target.stat().st_size) != (
                state.st_mtime,
                state.st_size,
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    compiled = Path(".pytest_cache") / "compiled"
    if (REPOSITORY / compiled).is_dir() and not (root / compiled).exists():
        shutil.copytree(REPOSITORY / compiled, root / compiled)


@contextlib.contextmanager
def replaced(path: Path, source: str) -> Any:
    """``path`` holds ``source`` meanwhile; no bytecode of the one is taken for the other's."""
    original, state = path.read_bytes(), path.stat()
    bytecode = list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    for file in bytecode:
        file.unlink()
    try:
        path.write_text(source)
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        for file in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            file.unlink()


def load_libraries() -> None:
    """Imports in the process that forks what tests would import in each fork."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # collections in the forks are of the forks' own objects


def run_tests(root: Path, words: list[str], *, seconds: float, record: bool = False) -> dict[str, Any]:
    """Runs pytest in the copy at ``root`` and ends it after ``seconds`` of processor time, or ten times that.

    Returns ``code``, pytest's exit status or None where the process ended otherwise, with ``ended`` saying how, the
    tests that ``failed`` and ``passed``, the ``seconds`` of each and, if ``record``, its ``lines`` by module.
    """
    outcome = root / "outcome.json"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            outcome.write_text(json.dumps(_in_fork(root, words, seconds, record)))
        finally:
            os._exit(0)
    deadline = time.monotonic() + 10 * seconds
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
        elif time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": None, "ended": "out of time", "failed": [], "passed": [], "seconds": {}}
        else:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what tests started and left
    if outcome.exists():
        return json.loads(outcome.read_text())
    number = os.WTERMSIG(status)
    how = (
        "out of time" if number in (signal.SIGXCPU, signal.SIGKILL) else signal.Signals(number).name if number else "?"
    )
    return {"code": None, "ended": how, "failed": [], "passed": [], "seconds": {}}


def _in_fork(root: Path, words: list[str], seconds: float, record: bool) -> dict[str, Any]:
    os.setsid()
    os.chdir(root)
    Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["PYTHONPATH"] = str(root)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.setdefault("ALLMREC_SHARED_DATA", str(REPOSITORY.parent / "shared" / "data"))
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path).resolve() != Path(__file__).parent)]
    for name in [name for name in sys.modules if name.split(".")[0] == "allmrec_jax"]:
        del sys.modules[name]
    settings.register_profile("campaign", deadline=None, derandomize=True, database=None)
    settings.load_profile("campaign")
    measured = Coverage(data_file=None, include=[f"{root}/allmrec_jax/*"]) if record else None
    watch = Watch(measured)
    if measured is not None:
        measured.start()
    options = "-q --tb=short -p no:cacheprovider -p no:unraisableexception --basetemp temporary"
    code = pytest.main([*options.split(), *words], plugins=[watch])
    product = sys.modules.get("allmrec_jax")
    assert product is None or str(product.__file__).startswith(str(root)), product.__file__
    found: dict[str, Any] = {
        "code": int(code),
        "failed": watch.failed,
        "passed": watch.passed,
        "seconds": watch.seconds,
    }
    if measured is not None:
        measured.stop()
        data = measured.get_data()
        found["lines"] = {
            Path(file).relative_to(root).as_posix(): data.contexts_by_lineno(file) for file in data.measured_files()
        }
    return found
