"""Longformer (Beltagy et al. 2020) in Flax Linen, with RECFORMER's item positions (Li et al. 2023).

Each token attends to the tokens at most ``attention_window / 2`` away and to the first one; the first token (``<s>``)
attends to all, with projections of its own. The sequence is cut into blocks of half a window and each block meets
itself and its two neighbours, so that time and memory grow linearly with the length.

Shapes: B texts, T tokens, D model, H heads, E width of a head, C blocks, W half a window.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.models.text_encoder import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class LongformerConfig:
    """What decides the computation, named as in Longformer's ``config.json``; the defaults are longformer-base-4096's.

    Attributes:
        attention_window: both sides together, even; 64 in RECFORMER.
        type_vocab_size: token types; 4 in RECFORMER (``<s>``, attribute name, value, padding).
        item_positions: of RECFORMER's items in a sequence, 0 for ``<s>``; 0 leaves these embeddings out.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 4098
    type_vocab_size: int = 1
    attention_window: int = 512
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    item_positions: int = 0

    def __post_init__(self) -> None:
        if self.attention_window < 2 or self.attention_window % 2:
            raise UserError(f"Longformer: attention_window {self.attention_window} is not an even number of 2 or more")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"Longformer: {self.num_attention_heads} heads do not divide width {self.hidden_size}")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"Longformer: unknown hidden_act {self.hidden_act!r}; known: {', '.join(ACTIVATIONS)}")


def window_attention(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B T H E"],
    v: Float[Array, "B T H E"],
    mask: Bool[Array, "B T"],
    half: int,
    dropout: Any = lambda weights: weights,
) -> Float[Array, "B T H E"]:
    """What each token sees: those at most ``half`` away, and the first one.

    Args:
        q: scaled queries.
        k: keys, as ``v`` are values.
        mask: True at tokens, False at padding. What is returned at padding means nothing.
        half: W.
        dropout: applied to the attention weights.
    """
    batch, time, heads, width = q.shape
    blocks = -(-time // half)
    fill = blocks * half - time

    def blocked(x: Array, before: int = 0, after: int = 0) -> Array:
        """[B, C, W, …]; with a block of zeros before and after where asked."""
        padded = jnp.pad(x, ((0, 0), (before, fill + after)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(batch, -1, half, *x.shape[2:])

    def neighbours(x: Array) -> Array:
        """[B, C, 3W, …]: each block's own and both adjoining rows."""
        wide = blocked(x, half, half)
        return jnp.concatenate([wide[:, :-2], wide[:, 1:-1], wide[:, 2:]], axis=2)

    # The first token is met in a column of its own, never in a window.
    seen = neighbours(mask.at[:, 0].set(False))
    near = abs(jnp.arange(half)[:, None] + half - jnp.arange(3 * half)[None]) <= half
    queries = blocked(q)
    lowest = jnp.finfo(q.dtype).min
    scores = jnp.einsum("bcqhe,bckhe->bchqk", queries, neighbours(k))
    scores = jnp.where(seen[:, :, None, None] & near[None, None, None], scores, lowest)
    first = jnp.einsum("bcqhe,bhe->bchq", queries, k[:, 0])[..., None]
    weights = jax.nn.softmax(jnp.concatenate([first, scores], axis=-1).astype(jnp.float32), axis=-1)
    weights = dropout(weights.astype(q.dtype))
    out = jnp.einsum("bchqk,bckhe->bcqhe", weights[..., 1:], neighbours(v))
    out = out + jnp.einsum("bchq,bhe->bcqhe", weights[..., 0], v[:, 0])
    return out.reshape(batch, blocks * half, heads, width)[:, :time]


class Layer(nn.Module):
    """Attention and feed-forward, each followed by its LayerNorm."""

    config: LongformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], deterministic: bool, first_only: bool
    ) -> Float[Array, "B T D"]:
        """States after the layer; with ``first_only`` that of the first token only, [B, 1, D]."""
        cfg = self.config
        batch, _, dim = x.shape
        heads = (cfg.num_attention_heads, dim // cfg.num_attention_heads)
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=cfg.layer_norm_eps, dtype=self.dtype, use_fast_variance=False)
        drop = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)
        drop_weights = nn.Dropout(cfg.attention_probs_dropout_prob, deterministic=deterministic)

        def split(name: str, rows: Float[Array, "B X D"]) -> Float[Array, "B X H E"]:
            return dense(dim, name=name)(rows).reshape(batch, -1, *heads)

        scale = heads[1] ** -0.5
        q = split("q_global", x[:, :1])[:, 0] * scale
        scores = jnp.einsum("bhe,bthe->bht", q, split("k_global", x))
        scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = drop_weights(jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(self.dtype))
        attended = jnp.einsum("bht,bthe->bhe", weights, split("v_global", x))[:, None]
        if first_only:
            x = x[:, :1]
        else:
            local = split("q", x) * scale, split("k", x), split("v", x)
            others = window_attention(*local, mask, cfg.attention_window // 2, drop_weights)
            attended = jnp.concatenate([attended, others[:, 1:]], axis=1)
        attended = attended.reshape(x.shape)

        x = norm(name="attention_norm")(x + drop(dense(dim, name="out")(attended)))
        h = ACTIVATIONS[cfg.hidden_act](dense(cfg.intermediate_size, name="up")(x))
        return norm(name="output_norm")(x + drop(dense(dim, name="down")(h)))


class Longformer(nn.Module):
    """Token ids to states.

    Attributes:
        dtype: of the computation; states are float32.
    """

    config: LongformerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B T"],
        types: Int[Array, "B T"],
        places: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
        first_only: bool = False,
    ) -> Float[Array, "B T D"]:
        """States; those at padding mean nothing.

        Args:
            ids: padded on the right with ``pad_token_id``; the first token is ``<s>``.
            types: token types.
            places: item positions, where the configuration has them.
            deterministic: False for dropout, with the rng stream ``dropout``.
            first_only: [B, 1, D], the state at ``<s>`` only, which the last layer makes without the others.
        """
        cfg = self.config
        mask = jnp.asarray(ids) != cfg.pad_token_id
        # As RoBERTa counts: padding has the padding's number, tokens those after it.
        positions = jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32), 0) + cfg.pad_token_id
        embed = partial(nn.Embed, features=cfg.hidden_size, dtype=self.dtype)
        x = embed(cfg.vocab_size, name="word_embeddings")(ids)
        x = x + embed(cfg.max_position_embeddings, name="position_embeddings")(positions)
        x = x + embed(cfg.type_vocab_size, name="token_type_embeddings")(types)
        if cfg.item_positions:
            x = x + embed(cfg.item_positions, name="item_position_embeddings")(places)
        norm = nn.LayerNorm(cfg.layer_norm_eps, dtype=self.dtype, use_fast_variance=False, name="embedding_norm")
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)(norm(x))
        for layer in range(cfg.num_hidden_layers):
            last = layer == cfg.num_hidden_layers - 1
            x = Layer(cfg, self.dtype, name=f"layer_{layer}")(x, mask, deterministic, first_only and last)
        return x.astype(jnp.float32)


class MaskedTokenHead(nn.Module):
    """From states to logits of tokens: dense, GELU, LayerNorm, the word embeddings, a bias."""

    config: LongformerConfig

    @nn.compact
    def __call__(self, states: Float[Array, "*S D"], words: Float[Array, "V D"]) -> Float[Array, "*S V"]:
        """Logits of every token."""
        h = nn.gelu(nn.Dense(self.config.hidden_size, name="dense")(states), approximate=False)
        h = nn.LayerNorm(self.config.layer_norm_eps, use_fast_variance=False, name="norm")(h)
        bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))
        return h @ words.T + jnp.broadcast_to(bias, (*h.shape[:-1], len(bias)))


def param_shapes(config: LongformerConfig) -> dict[str, Any]:
    """The shapes of the parameters of ``encoder`` and ``head``."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    states = jax.ShapeDtypeStruct((1, config.hidden_size), jnp.float32)
    words = jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), jnp.float32)
    return {
        "encoder": jax.eval_shape(Longformer(config).init, jax.random.key(0), ids, ids, ids)["params"],
        "head": jax.eval_shape(MaskedTokenHead(config).init, jax.random.key(0), states, words)["params"],
    }


def draw_params(shapes: Any, rng: np.random.Generator) -> Any:
    """Random parameters of these shapes as BERT initialises them: N(0, 0.02) matrices, zero biases."""

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("kernel", "embedding"):
            return rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, 1.0 if path[-1].key == "scale" else 0.0, np.float32)

    return jax.tree.map_with_path(draw, shapes)
