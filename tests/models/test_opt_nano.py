"""The shipped language model does on held-out lists what A-LLMRec asks of a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.convert.opt import load_opt, load_tokenizer
from allmrec_jax.data.list_tasks import Shape, TaskWriter
from allmrec_jax.models.opt import OPT
from allmrec_jax.prompts import STYLES
from allmrec_jax.training.opt_nano import answer_logits, score

SHAPE = Shape(batch=16, length=288, titles="words", candidates=20, history=6, queries=1)
POSITIONS = 1024


@pytest.fixture(scope="module")
def nano():
    config, params = load_opt("opt-nano", jnp.float32)
    return OPT(config), params, load_tokenizer("opt-nano")


def marks(nano, writer, skill, style=None, count=16):
    """Shares of ``count`` answers that are right, and that are copied right once begun."""
    model, params, _ = nano
    forward = jax.jit(lambda params, batch: answer_logits(model, params, batch, jax.random.key(0)).argmax(-1))
    with jax.numpy_dtype_promotion("standard"):
        return score(forward, params, writer, np.random.default_rng(5), SHAPE._replace(batch=count), skill, style).mean(
            0
        )


@pytest.mark.parametrize("style", range(len(STYLES)), ids=list(STYLES))
def test_chooses_and_copies_with_every_verb(nano, style):
    chosen, copied = marks(nano, TaskWriter(nano[2], certain=True), "user", style)
    # Of 16 answers; chance is 0.07. Blends of 4 to 16 words are often nearly alike, so that being right is hard.
    assert chosen >= 0.5
    assert copied >= 0.9


def test_positions_and_tokenizer(nano):
    config, tokenizer = nano[0].config, nano[2]
    assert config.max_position_embeddings == POSITIONS
    text = 'Amélie 猫 \U0001f600 \x00\n"[CandidateEmb]"'
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
