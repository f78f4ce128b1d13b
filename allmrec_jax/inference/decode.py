"""Greedy generation from prompts with soft tokens: one prefill, then one compiled loop over a static KV cache.

Shapes: B batch, S prompt length, E word embedding size, V vocabulary, M new tokens.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.models.llm.attention import KVCache, init_cache
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.llm.stack import unstacked
from allmrec_jax.settings import setting


@dataclass(frozen=True)
class DecodeSettings:
    """How titles are generated. Decoding is greedy."""

    max_new_tokens: int = setting(64, "most tokens to generate")
    repetition_penalty: float = setting(1.0, "divides positive and multiplies negative logits of tokens met before")
    penalize_end: bool = setting(
        False, "the penalty's history starts with the end-of-text token, as it does in transformers 4.32.1"
    )


PRESETS = {
    "paper": DecodeSettings(),
    "official": DecodeSettings(max_new_tokens=511, repetition_penalty=1.5, penalize_end=True),
    "small": DecodeSettings(max_new_tokens=32),
}


class Prefix(NamedTuple):
    """A batch of prompts, read once: what ranking and generation go on from.

    Attributes:
        cache: keys and values of the S prompt columns.
        last: hidden state of each prompt's last token, [B, E].
        lengths: tokens of each prompt, [B]; the columns beyond are padding.
    """

    cache: KVCache
    last: Float[Array, "B E"]
    lengths: Int[Array, "B"]


def prefill(llm: LanguageModel, params: Any, embeds: Float[Array, "B S E"], lengths: Int[Array, "B"]) -> Prefix:
    """Reads right-padded prompts."""
    batch, size, _ = embeds.shape
    positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
    cache = init_cache(llm.config, batch, size, llm.dtype)
    hidden, cache = llm.apply({"params": params}, embeds, positions, None, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prefix(cache, last, lengths)


def extend(cache: KVCache, columns: int) -> KVCache:
    """The cache with room for so many more columns."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, columns), (0, 0))), cache)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    tokens: Int[Array, "B M"]
    done: Bool[Array, "B"]
    seen: Bool[Array, "B V"]
    logits: Float[Array, "B V"]
    cache: KVCache | list[KVCache]


def generate(llm: LanguageModel, params: Any, prefix: Prefix, settings: DecodeSettings) -> Int[Array, "B M"]:
    """Greedily generated token ids; after a row's end-of-text token comes padding.

    A row also ends where the language model's positions do. The loop stops as soon as all rows have ended.
    """
    cfg = llm.config
    batch, size = prefix.last.shape[0], prefix.cache.k.shape[3]
    room = settings.max_new_tokens
    column = jnp.arange(size + room)[None]
    in_prompt = column < prefix.lengths[:, None]
    variables = {"params": params}
    layers: list[Any] | None = None
    cache: KVCache | list[KVCache] = extend(prefix.cache, room)
    if jax.default_backend() == "cpu" and sharding.current() is None:
        layers, cache = unstacked(params["layers"]), unstacked(cache)

    def going(loop: _Loop) -> Bool[Array, ""]:
        return (loop.step < room) & ~loop.done.all()

    def body(loop: _Loop) -> _Loop:
        penalized = jnp.where(
            loop.logits > 0, loop.logits / settings.repetition_penalty, loop.logits * settings.repetition_penalty
        )
        token = jnp.argmax(jnp.where(loop.seen, penalized, loop.logits), axis=-1)
        token = jnp.where(loop.done, cfg.pad_token_id, token)
        positions = prefix.lengths + loop.step
        done = loop.done | (token == cfg.eos_token_id) | (positions >= cfg.max_position_embeddings)
        mask = in_prompt | ((column >= size) & (column <= size + loop.step))
        hidden, cache = llm.apply(
            variables,
            llm.apply(variables, token[:, None], method="embed"),
            jnp.minimum(positions, cfg.max_position_embeddings - 1)[:, None],
            mask[:, None],
            loop.cache,
            size + loop.step,
            layers,
        )
        return _Loop(
            loop.step + 1,
            jax.lax.dynamic_update_slice_in_dim(loop.tokens, token[:, None], loop.step, axis=1),
            done,
            loop.seen.at[jnp.arange(batch), token].set(True),
            llm.apply(variables, hidden[:, 0], method="logits"),
            cache,
        )

    seen = jnp.zeros((batch, cfg.vocab_size), bool)
    if settings.penalize_end:
        seen = seen.at[:, cfg.eos_token_id].set(True)
    start = _Loop(
        jnp.asarray(0, jnp.int32),
        jnp.full((batch, room), cfg.pad_token_id, jnp.int32),
        jnp.zeros(batch, bool),
        seen,
        llm.apply(variables, prefix.last, method="logits"),
        cache,
    )
    return jax.lax.while_loop(going, body, start).tokens


def decode_texts(tokenizer: Any, tokens: Int[Array | np.ndarray, "B M"], eos: int = 2) -> list[str]:
    """The text of each row up to its end-of-text token."""
    texts = []
    for row in jax.device_get(tokens).tolist():
        ids = row[: row.index(eos)] if eos in row else row
        texts.append(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return texts
