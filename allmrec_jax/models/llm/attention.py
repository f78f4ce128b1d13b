"""Attention of a language model and its cache of keys and values.

Shapes: B batch, T new tokens, S attended columns, L layers, H query heads, K key-value heads (each serves H / K query
heads that follow each other), Dh width of a head.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding

CAUSAL_BLOCKS, CAUSAL_BLOCK = 4, 64
"""Without fused attention causal attention runs in so many blocks of queries, of so many tokens at least."""


class Sizes(Protocol):
    """What of a configuration decides the cache."""

    @property
    def num_hidden_layers(self) -> int: ...  # noqa: D102
    @property
    def num_key_value_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102


class KVCache(NamedTuple):
    """Keys and values of every layer; columns not yet written hold zeros."""

    k: Float[Array, "L B K S Dh"]
    v: Float[Array, "L B K S Dh"]


def init_cache(config: Sizes, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache of ``length`` columns."""
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def cached(
    cache: KVCache | None,
    k: Float[Array, "B K T Dh"],
    v: Float[Array, "B K T Dh"],
    start: Int[Array, ""],
    mask: Bool[Array, "B T S"] | None,
) -> tuple[Float[Array, "B K S Dh"], Float[Array, "B K S Dh"], KVCache | None]:
    """One layer's keys and values to attend, and its cache with the T new columns from ``start`` on.

    Without a mask the new tokens attend each other only, see :func:`attend`.
    """
    if cache is None:
        return k, v, None
    cache = KVCache(
        jax.lax.dynamic_update_slice_in_dim(cache.k, k.astype(cache.k.dtype), start, axis=2),
        jax.lax.dynamic_update_slice_in_dim(cache.v, v.astype(cache.v.dtype), start, axis=2),
    )
    if mask is None:
        return k, v, cache
    return cache.k.astype(k.dtype), cache.v.astype(v.dtype), cache


def windowed(mask: Bool[Array, "B T S"], window: int) -> Bool[Array, "B T S"]:
    """The mask without all but the last ``window`` columns of each row.

    A row holds a token and those before it, so that these are the columns of a sliding window, wherever in the cache
    they stand.
    """
    return mask & (jnp.flip(jnp.cumsum(jnp.flip(mask, -1), -1), -1) <= window)


def attend(
    q: Float[Array, "B H T Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    mask: Bool[Array, "B T S"] | None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | Int[Array, ""] | None = None,
) -> Float[Array, "B H T Dh"]:
    """Attention, by cuDNN's fused kernel where there is one for it.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where a token (row) may attend a column. ``None`` is causal over the T tokens themselves.
        scale: of the products of queries and keys; Dh ** -0.5 if not given.
        soft_cap: bounds the scores by ``soft_cap * tanh(score / soft_cap)`` (Gemma 2).
        window: how many tokens a token attends, itself among them, where there is no mask; a mask holds it already
            (:func:`windowed`). It may be traced, where layers differ in it.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # cuDNN's fused attention takes 16-bit floats and heads of at most 128 in steps of 8 only, behind the columns:
    # one new token alone would not pay for turning the whole cache.
    fits = q.shape[2] > 1 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and soft_cap is None
    fits &= mask is not None or not isinstance(window, jax.Array)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and fits:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=None if mask is None else mask[:, None],
            is_causal=mask is None,
            scale=scale,
            local_window_size=(window - 1, 0) if isinstance(window, int) and mask is None else None,
            implementation="cudnn",
        )
        return out.swapaxes(1, 2)
    if mask is None:
        return causal_attention(q, k, v, scale=scale, soft_cap=soft_cap, window=window)
    return _masked_attention(q, k, v, mask, scale, soft_cap)


def _masked_attention(
    q: Float[Array, "B H T Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    mask: Bool[Array, "#B T S"],
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B H T Dh"]:
    batch, heads, tokens, width = q.shape
    if k.shape[1] % sharding.current_shape().tensor:
        # Key-value heads that ``tensor`` does not divide are whole on each device: it takes those of its query heads.
        k, v = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    groups = heads // k.shape[1]
    if groups > 1:  # the query heads of one key-value head stand beside the tokens: one product reads it once
        q, mask = q.reshape(batch, -1, groups * tokens, width), jnp.tile(mask, (1, groups, 1))
    # Heads beside the batch: plain batched products, which a CPU does faster than einsums over [B, T, H, Dh].
    scores = jnp.einsum("bhtd,bhsd->bhts", q * scale, k, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    out = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)
    return out.reshape(batch, heads, tokens, width)


def causal_blocks(length: int) -> list[tuple[int, int]]:
    """Blocks of queries, first and end, that causal attention without a fused kernel computes one after the other."""
    size = max(CAUSAL_BLOCK, -(-length // CAUSAL_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def causal_attention(
    q: Float[Array, "B H T Dh"],
    k: Float[Array, "B K T Dh"],
    v: Float[Array, "B K T Dh"],
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | Int[Array, ""] | None = None,
) -> Float[Array, "B H T Dh"]:
    """Causal attention without a fused kernel, block by block of queries, each with the keys that it may see."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = []
    for start, end in causal_blocks(q.shape[2]):
        first = max(0, start - window + 1) if isinstance(window, int) else 0
        distance = jnp.arange(start, end)[:, None] - jnp.arange(first, end)[None]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        keys, values = k[:, :, first:end], v[:, :, first:end]
        out.append(_masked_attention(q[:, :, start:end], keys, values, seen[None], scale, soft_cap))
    return jnp.concatenate(out, axis=2)
