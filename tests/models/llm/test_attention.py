"""Attention's windows and grouped heads against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.models.llm.attention import attend, causal_blocks, windowed

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""The same products in float32, summed in another order."""


def draw(length, heads=4, key_values=2, width=6):
    rng = np.random.default_rng(0)
    shapes = [(2, heads, length, width), *[(2, key_values, length, width)] * 2]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(q, k, v, mask, scale, soft_cap=None):
    """Each query head by itself."""
    out = np.zeros(q.shape, np.float32)
    groups = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = np.einsum("btd,bsd->bts", q[:, head], k[:, head // groups]) * scale
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        out[:, head] = np.einsum("bts,bsd->btd", weights, v[:, head // groups])
    return out


def test_a_window_over_several_blocks():
    length, window = 150, 70
    assert len(causal_blocks(length)) == 3
    q, k, v = draw(length)
    distance = np.arange(length)[:, None] - np.arange(length)
    mask = ((distance >= 0) & (distance < window))[None]
    np.testing.assert_allclose(attend(q, k, v, None, window=window), plain(q, k, v, mask, 6**-0.5), **TOLERANCE)


def test_masks_scales_and_soft_caps():
    q, k, v = draw(9)
    mask = np.tril(np.ones((2, 9, 9), bool)) & (np.arange(9) != 2)
    mask[:, 2, 2] = True
    ours = attend(q, k, v, jnp.asarray(mask), scale=0.7, soft_cap=1.5)
    np.testing.assert_allclose(ours, plain(q, k, v, mask, 0.7, 1.5), **TOLERANCE)


def test_a_window_counts_the_columns_that_a_token_may_attend():
    """Columns between that hold pads are no part of the window."""
    mask = jnp.asarray([[[1, 0, 1, 1, 0, 0, 1, 0]]], bool)
    assert windowed(mask, 2).astype(int).tolist() == [[[0, 0, 0, 1, 0, 0, 1, 0]]]
    assert windowed(mask, 9).tolist() == mask.tolist()
