"""The constructed start of opt-nano chooses and copies before any training, and a step trains it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.embedded.list_tasks import Shape, TaskWriter
from allmrec_jax.embedded.opt_nano import (
    OptNanoSettings,
    answer_logits,
    make_optimizer,
    make_step,
    new_model,
    score,
)
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.pretrained.llm import load_tokenizer
from allmrec_jax.training.state import CountedState

SHAPE = Shape(batch=32, length=288, titles="words", candidates=20, history=6, queries=1)
SETTINGS = OptNanoSettings()


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("opt-nano")


@pytest.mark.parametrize("skill", ["user", "words", "text"])
def test_construction_chooses_untrained(tokenizer, skill):
    config, params = new_model(SETTINGS, tokenizer, 0)
    model = OPT(config)
    forward = jax.jit(lambda params, batch: answer_logits(model, params, batch, jax.random.key(0)))
    writer, first = TaskWriter(tokenizer, certain=True), []

    def guess(params, batch):
        guessed = np.asarray(forward(params, batch).argmax(-1))
        first.append(np.mean((guessed == batch.answer)[batch.first > 0]))
        return guessed

    score(guess, params, writer, np.random.default_rng(0), SHAPE, skill)
    # Chance to begin with the right title is 0.07; 32 answers have a standard error of 0.08 at 0.7.
    assert first[0] > (0.25 if skill == "text" else 0.45)


def test_a_step_lowers_the_loss_and_donates(tokenizer):
    settings = OptNanoSettings(learning_rate=3e-4)
    config, params = new_model(settings, tokenizer, 0)
    model, shape = OPT(config), SHAPE._replace(batch=4, candidates=4, history=2, length=96)
    batch = TaskWriter(tokenizer).batch(np.random.default_rng(1), shape, settings.positions)
    state = CountedState(params, make_optimizer(settings).init(params), jnp.zeros((), jnp.int32))
    step, losses = make_step(model, settings, 0), []
    kept = jax.tree.leaves(state.params)
    for _ in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert int(state.step) == 15
    assert all(leaf.is_deleted() for leaf in kept)
