"""The one training loop: it runs a pure step over batches, and logs, evaluates, saves and resumes."""

import contextlib
import dataclasses
import itertools
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from allmrec_jax import sharding
from allmrec_jax.errors import StoppedError, UserError
from allmrec_jax.runs import Run
from allmrec_jax.training.metrics import MetricsLogger

State = TypeVar("State")

AGREE = 10
"""Steps after which processes that train together ask each other whether one was told to stop."""

PREFETCH = 2
"""Batches prepared ahead by the background thread."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When to do what, in steps.

    Attributes:
        total_steps: how many steps to take.
        log_every: a line of metrics, their means since the last line, every so many steps and at each evaluation.
        evaluate_every: 0 is never.
        save_every: a checkpoint every so many steps; the last step and each best one are saved anyway. 0 is only those.
        patience: stop after so many evaluations in a row without improvement; 0 is never.
        maximize: whether more of the monitored metric is better.
    """

    total_steps: int
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    patience: int = 0
    maximize: bool = True


@dataclasses.dataclass
class _Progress:
    """What the loop itself must remember across an interruption; saved beside each checkpoint."""

    best_step: int | None = None
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    stale: int = 0
    window: dict[str, float] = dataclasses.field(default_factory=dict)
    window_steps: int = 0

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.window_steps += 1

    def means(self) -> dict[str, float]:
        means = {name: value / self.window_steps for name, value in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means


def train_loop(
    run: Run,
    state: State,
    step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]],
    batch_at: Callable[[int], Any],
    settings: LoopSettings,
    *,
    evaluate: Callable[[State], Mapping[str, float]] | None = None,
    monitor: str | None = None,
    resume: bool,
    log: MetricsLogger,
) -> tuple[State, State]:
    """Trains until ``total_steps`` or until patience runs out.

    Interrupted at any moment and resumed, it ends bit for bit where the unbroken run does, provided that ``step`` draws
    from keys made of the step counter in ``state`` and ``batch_at(i)`` depends on nothing but ``i``.

    Args:
        run: where checkpoints go.
        state: the initial state; donated to ``step`` if that donates.
        step: the jitted ``(state, batch) -> (state, metrics)``; metrics are scalars and hold ``"loss"``.
        batch_at: the batch of step ``i``, 0-based; called in a background thread.
        settings: when to do what.
        evaluate: validation metrics of a state.
        monitor: the one of them that chooses the best step; without it there is no choice.
        resume: start from the run's last checkpoint, if there is one.
        log: where metrics go; entered by the caller.

    Returns:
        The last state, and the best one on the monitored metric (the last one where nothing is monitored).

    Raises:
        UserError: the loss is not finite (the step is named, the last good checkpoint is kept), or the disk is full.
        StoppedError: SIGTERM came; the step under way was finished and its state is saved.
    """
    with _asked_to_stop() as asked:
        return _train_loop(
            run, state, step, batch_at, settings, asked, evaluate=evaluate, monitor=monitor, resume=resume, log=log
        )


def _train_loop(
    run: Run,
    state: State,
    step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]],
    batch_at: Callable[[int], Any],
    settings: LoopSettings,
    asked: Callable[[int], bool],
    *,
    evaluate: Callable[[State], Mapping[str, float]] | None,
    monitor: str | None,
    resume: bool,
    log: MetricsLogger,
) -> tuple[State, State]:
    """:func:`train_loop`; ``asked(step)`` says whether to stop after this step."""
    abstract = jax.tree.map(_abstract, state)
    done, progress = 0, _Progress()
    if resume and (latest := run.latest_step()) is not None:
        state, done, progress = run.restore(abstract, latest), latest, run.progress(latest, _Progress)
        if progress.best_step is not None:
            # A kill may have come between the checkpoint and this file.
            run.mark_best(progress.best_step, progress.best_metrics)
    log.start(done)

    def evaluates(number: int) -> bool:
        if evaluate is None or settings.evaluate_every == 0:
            return False
        return number % settings.evaluate_every == 0 or number == settings.total_steps

    def settle(number: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Fetches the metrics of step ``number`` and returns what is to be logged of them."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if not math.isfinite(values["loss"]):
            kept = run.latest_step()
            raise UserError(
                f"{run.path}: the loss is {values['loss']} at step {number}; "
                + (
                    f"the checkpoint of step {kept} is kept; "
                    if kept is not None
                    else "no checkpoint was written yet; "
                )
                + "try a lower learning rate or float32"
            )
        log.advance(number, values)
        progress.add(values)
        due = number % settings.log_every == 0 or number == settings.total_steps or evaluates(number)
        return progress.means() if due else {}

    pending: tuple[int, Mapping[str, jax.Array]] | None = None
    batches = _prefetch(batch_at, range(done, settings.total_steps))
    for number, batch in zip(itertools.count(done + 1), batches, strict=False):
        if settings.patience and progress.stale >= settings.patience:
            break
        state, metrics = step(state, batch)
        # Fetching the previous step's metrics only now keeps the device busy meanwhile.
        if pending is not None and (record := settle(*pending)):
            log.write(pending[0], record)
        pending = number, metrics

        last = number == settings.total_steps
        stopping = asked(number)
        saving = last or stopping or (settings.save_every and number % settings.save_every == 0)
        if not (evaluates(number) or saving):
            continue
        record, pending = settle(number, metrics), None
        best = False
        if evaluate is not None and evaluates(number):
            scores = {name: float(value) for name, value in evaluate(state).items()}
            record |= {f"valid/{name}": value for name, value in scores.items()}
            if monitor is not None:
                best = _better(scores[monitor], progress.best_metrics.get(monitor), settings.maximize)
                if best:
                    progress.best_step, progress.best_metrics = number, scores
                progress.stale = 0 if best else progress.stale + 1
                saving = saving or best or (settings.patience and progress.stale >= settings.patience)
        if record:
            log.write(number, record)
        if saving:
            run.save(number, state, dataclasses.asdict(progress))
        if best:
            run.mark_best(number, progress.best_metrics)
        if stopping:
            batches.close()
            raise StoppedError(
                f"{run.path}: asked to end (SIGTERM) and saved at step {number}; the same command goes on from there "
                "(`allmrec train` with --resume)"
            )
    batches.close()

    if progress.best_step is None or progress.best_step == run.latest_step():
        return state, state
    return state, run.restore(abstract, progress.best_step)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[int], bool]]:
    """SIGTERM, what schedulers send some time before SIGKILL, asks to stop; elsewhere it ends the process at once.

    Yields:
        a function of the step: whether to stop after it. Several processes agree on that every :data:`AGREE` steps.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        yield lambda step: False
        return
    came = threading.Event()

    def asked(step: int) -> bool:
        if jax.process_count() == 1:
            return came.is_set()
        return step % AGREE == 0 and sharding.any_process(came.is_set())

    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _better(value: float, best: float | None, maximize: bool) -> bool:
    return math.isfinite(value) and (best is None or (value > best if maximize else value < best))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    shaped = jax.eval_shape(lambda: leaf)
    return jax.ShapeDtypeStruct(shaped.shape, shaped.dtype, sharding=sharding)


def _prefetch(batch_at: Callable[[int], Any], indices: range) -> Generator[Any, None, None]:
    """``batch_at(i)`` for each index, prepared ahead in one background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future] = deque()
        try:
            for index in indices:
                waiting.append(pool.submit(batch_at, index))
                if len(waiting) > PREFETCH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
