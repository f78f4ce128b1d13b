"""What every training has in common: its run is opened, or found finished; a state is trained; the run is finished.

training = TrainingRun.open(dataset, "stage1", settings, seed, out, upstream, resume=resume, quiet=quiet)
if training.done:
    return training.path
…
chosen = training.fit(TrainState.start(params, optimizer), step, batch_at, LoopSettings(…), evaluate=evaluate)
…
return training.finish({…})
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax

from allmrec_jax.runs import Run
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger

SAVE_EVERY = 500
"""Steps between checkpoints, where an epoch or the steps between validations are not fewer."""

State = TypeVar("State")


class Data(Protocol):
    """What a run records of its data: a :class:`allmrec_jax.data.dataset.Dataset`, or the source of generated texts."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def hash(self) -> str: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run that is being trained.

    Attributes:
        run: its directory.
        resume: whether it goes on from its last checkpoint.
        quiet: whether no progress is shown.
    """

    run: Run
    resume: bool
    quiet: bool

    @classmethod
    def open(
        cls,
        data: Data,
        kind: str,
        settings: Any,
        seed: int,
        out: Path | str,
        upstream: Mapping[str, str],
        *,
        resume: bool,
        quiet: bool,
    ) -> "TrainingRun":
        """Opens the run of this kind, data, settings, seed and upstream; see :meth:`allmrec_jax.runs.Run.open`.

        Raises:
            UserError: the directory cannot be written.
        """
        run = Run.open(out, data.name, kind, settings, seed, data.hash, upstream, resume=resume)
        return cls(run, resume, quiet)

    @property
    def done(self) -> bool:
        """Whether the run was finished before, so that nothing is left to do."""
        return self.run.done

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.run.path

    @property
    def seed(self) -> int:
        """Of every random draw."""
        return self.run.seed

    @property
    def continues(self) -> bool:
        """Whether the state will come from a checkpoint, so that a costly start is of no use."""
        return self.resume and self.run.latest_step() is not None

    def fit(
        self,
        state: State,
        step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]],
        batch_at: Callable[[int], Any],
        settings: LoopSettings,
        *,
        evaluate: Callable[[State], Mapping[str, float]] | None = None,
        monitor: str | None = None,
        unit: str = "step",
    ) -> State:
        """Trains a state as :func:`allmrec_jax.training.loop.train_loop` does, with its metrics logged.

        Args:
            state: the initial one.
            step: the jitted step.
            batch_at: the batch of each step.
            settings: when to do what.
            evaluate: validation metrics of a state.
            monitor: the one of them that chooses the state to be returned; ``None`` chooses the last state.
            unit: what a step is called in the log.

        Returns:
            The state to export.
        """
        with MetricsLogger(self.path, settings.total_steps, unit=unit, quiet=self.quiet) as log:
            _, chosen = train_loop(
                self.run,
                state,
                step,
                batch_at,
                settings,
                evaluate=evaluate,
                monitor=monitor,
                resume=self.resume,
                log=log,
            )
        return chosen

    def export_path(self, name: str) -> Path:
        """Where to write ``name`` for later stages."""
        return self.run.export_path(name)

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Declares the run usable, with a summary (JSON), and returns its directory."""
        self.run.finish(summary)
        return self.path
