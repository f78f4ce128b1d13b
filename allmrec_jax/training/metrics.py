"""Where a run's metrics go: a progress bar or the log, ``metrics.jsonl`` and TensorBoard."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import write_text, writes, writing
from allmrec_jax.progress import live_console

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 30
"""How often TensorBoard's files are brought up to date."""


class MetricsLogger:
    """Writes each logged step once, across interruptions. Use it as a context manager.

    Args:
        run_dir: the run's directory; ``metrics.jsonl`` and ``tensorboard/`` are written in it.
        total: how many steps the run has.
        unit: what a step is called, e.g. ``"epoch"``.
        quiet: show no progress.
    """

    def __init__(self, run_dir: Path, total: int, unit: str = "step", quiet: bool = False):
        self.run_dir, self.total, self.unit, self.quiet = Path(run_dir), total, unit, quiet or not writes()
        self._file: IO[str] | None = None
        self._board: _Board | None = None
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @property
    def path(self) -> Path:
        """The JSON-lines file."""
        return self.run_dir / "metrics.jsonl"

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        # What is still to be written may be refused; an error that is under way says more than this one.
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(self.run_dir) if error is None else contextlib.suppress(OSError))
            for each in (self._file, self._board):
                if each is not None:
                    stack.callback(each.close)

    def start(self, step: int) -> None:
        """Opens the outputs to go on after ``step``; what an interrupted session logged beyond it is dropped.

        Of several processes the first one logs.
        """
        if not writes():
            return
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
            try:
                self._board = _Board(self.run_dir / "tensorboard", step + 1)
            except ImportError:
                self._say("tensorboardX is not installed: no TensorBoard files")
        console = None if self.quiet else live_console()
        if console is not None:
            self._progress = Progress(
                TextColumn(self.unit),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                speed_estimate_period=120,
            )
            self._task = self._progress.add_task(
                self.unit, total=self.total, completed=step, shown="compiling the first step", rate=""
            )
            self._progress.start()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar to ``step``."""
        if self._progress is None:
            return
        speed = self._progress.tasks[0].speed
        rate = "" if not speed else f"{speed:.1f} {self.unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{self.unit}"
        self._progress.update(self._task, completed=step, shown=f"loss {metrics['loss']:.4f}", rate=rate)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs ``metrics`` as those of ``step``, which must be later than every step logged before."""
        if not writes():
            return
        if self._file is None:
            raise RuntimeError("MetricsLogger.start was not called")
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            if self._board is not None:
                self._board.write(step, metrics)
        if self._progress is None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self._say(f"{self.unit} {step}/{self.total}  {shown}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            logger.info("%s", line)


class _Board:
    """TensorBoard's files, written in this thread: tensorboardX's own thread ends where the disk is full, and its
    queue, once full, blocks the training.

    Args:
        folder: where they go.
        first: the first step of this session; what others say of it and later ones is hidden.
    """

    def __init__(self, folder: Path, first: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        self._writer.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """A point of each curve."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is not written yet."""
        self._writer.close()


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The logged steps of a ``metrics.jsonl``, ascending; a line cut short by a kill is left out.

    Raises:
        UserError: a line is no JSON object of numbers, or has no step.
    """
    path, found = Path(path), []
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            logged = json.loads(line)
            msgspec.convert(logged, dict[str, float])
            if not isinstance(logged.get("step"), int):
                raise ValueError("no whole number 'step'")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {first_line(error)}; train this run again") from error
        found.append(logged)
    return found
