"""Draws are those of (seed, purpose, step), and stay the same from version to version."""

import jax
import numpy as np
import pytest

from allmrec_jax.errors import MAX_SEED, UserError
from allmrec_jax.rng import jax_key, numpy_rng


def test_the_draws_that_runs_were_made_with():
    # Recorded: other values would make every earlier run another one at the same identity.
    assert jax.random.key_data(jax_key(0, "a")).tolist() == [4015889124, 4247085848]
    assert jax.random.key_data(jax_key(7, "stage1/negatives", 3)).tolist() == [3593852691, 2417341612]
    assert numpy_rng(0, "a").integers(1000, size=4).tolist() == [18, 518, 778, 74]
    assert numpy_rng(7, "stage1/negatives", 3).integers(1000, size=4).tolist() == [744, 803, 46, 411]


def test_seed_purpose_and_step_each_decide():
    asked = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({tuple(jax.random.key_data(jax_key(*each)).tolist()) for each in asked}) == 4
    assert len({tuple(numpy_rng(*each).integers(2**40, size=2).tolist()) for each in asked}) == 4


@pytest.mark.parametrize("draw", [jax_key, numpy_rng])
def test_seeds_end_at_both_ends(draw):
    for seed in (0, MAX_SEED):
        draw(seed, "a")
    for seed in (-1, MAX_SEED + 1, 10**400):
        with pytest.raises(UserError, match=f"it should be 0 to {MAX_SEED}"):
            draw(seed, "a")


def test_a_traced_step_gives_the_same_key():
    traced = jax.jit(lambda step: jax.random.key_data(jax_key(3, "a", step)))(np.int32(5))
    np.testing.assert_array_equal(traced, jax.random.key_data(jax_key(3, "a", 5)))
