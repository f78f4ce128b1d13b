"""A toy training that can end itself at a chosen moment: ``killable.py ROOT MOMENT [--resume]``.

The toy has what makes resuming hard: Adam's moments, dropout from step keys, validation with a choice of the best step.
"""

import dataclasses
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from allmrec_jax import fileio
from allmrec_jax.errors import STOPPED, StoppedError
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.runs import Run
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger

SEED = 5
OPTIMIZER = optax.adam(1e-2)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the toy."""

    learning_rate: float = 1e-2


@jax.jit
def train_step(state, batch):
    """One Adam step of a linear model with dropout."""

    def loss_of(kernel):
        keep = jax.random.bernoulli(jax_key(SEED, "dropout", state["step"]), 0.8, batch["x"].shape)
        return jnp.mean((jnp.where(keep, batch["x"], 0.0) @ kernel - batch["y"]) ** 2)

    loss, gradient = jax.value_and_grad(loss_of)(state["kernel"])
    update, opt = OPTIMIZER.update(gradient, state["opt"])
    return {"kernel": state["kernel"] + update, "opt": opt, "step": state["step"] + 1}, {"loss": loss}


def main(root: str, moment: str, resume: bool) -> None:
    """Trains; ``moment`` is ``never``, ``batch N``, ``replace N``, ``best N``, ``term N`` or ``end``."""
    what, _, number = moment.partition(" ")

    def die(here: bool) -> None:
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    def batch_at(index):
        die(what == "batch" and index == int(number))
        if what == "term" and index == int(number):
            os.kill(os.getpid(), signal.SIGTERM)
        x = numpy_rng(SEED, "batch", index).standard_normal((16, 8), np.float32)
        return {"x": x, "y": x.sum(axis=1)}

    def evaluate(state):
        # Worst where the step is a multiple of 20, so that the best step is neither the last nor the latest saved.
        return {"score": -float(jnp.linalg.norm(state["kernel"] - 1.0)) - 10.0 * (int(state["step"]) % 20 == 0)}

    run = Run.open(root, "toy", "toy", Settings(), SEED, "0" * 64, {}, resume=resume)
    mark_best, replace = Run.mark_best, os.replace

    def mark_best_or_die(self, step, metrics):
        die(what == "best" and step == int(number))
        mark_best(self, step, metrics)

    def replace_or_die(source, target):
        die(what == "replace" and str(target).endswith(f"steps/{number}"))
        replace(source, target)

    setattr(Run, "mark_best", mark_best_or_die)  # noqa: B010
    setattr(fileio.os, "replace", replace_or_die)  # noqa: B010
    kernel = jnp.zeros(8)
    state = {"kernel": kernel, "opt": OPTIMIZER.init(kernel), "step": jnp.int32(0)}
    settings = LoopSettings(40, log_every=3, evaluate_every=10, save_every=7, patience=3)
    with MetricsLogger(run.path, settings.total_steps, quiet=True) as log:
        last, best = train_loop(
            run, state, train_step, batch_at, settings, evaluate=evaluate, monitor="score", resume=resume, log=log
        )
    die(what == "end")
    np.save(run.export_path("last.npy"), last["kernel"])
    np.save(run.export_path("best.npy"), best["kernel"])
    run.finish({"best": run.best_step()})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], "--resume" in sys.argv)
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(STOPPED)
