"""Gemma 2 (arXiv 2408.00118) and the text model of Gemma 3 (arXiv 2503.19786).

Word embeddings are scaled, norms stand before and after each half of a layer with scales that are stored short of 1,
and layers that attend a window alternate with layers that attend all. Gemma 2 caps scores and logits softly; Gemma 3
norms queries and keys and turns the layers with a window by a base of their own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.models.limits import Layers, Size, Token
from allmrec_jax.models.llm.attention import KVCache, windowed
from allmrec_jax.models.llm.decoder import (
    BUFFERS,
    PREFIXES,
    PROJECTIONS,
    RULES,
    Decoder,
    DecoderConfig,
    feed_forward,
    layout,
    norm,
    self_attention,
)
from allmrec_jax.models.llm.family import Family
from allmrec_jax.models.llm.gguf_form import NAMES, GGUFForm
from allmrec_jax.models.llm.rotary import THETA, UNSCALED, Rope, Rotation
from allmrec_jax.models.llm.stack import one_by_one

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""Kinds of layers, as ``layer_types`` names them."""


@dataclasses.dataclass(frozen=True)
class Gemma2Config(DecoderConfig):
    """A Gemma 2; the defaults are Gemma 2 2B's.

    Attributes:
        query_pre_attn_scalar: scores are the products of queries and keys over its root.
        local_rope: positions of the layers with a window.
        pattern: one layer of so many, the last of them, attends all tokens.
    """

    model_type: ClassVar[str] = "gemma2"
    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    norms: ClassVar[tuple[str, ...]] = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
    norm_offset: ClassVar[float] = 1.0
    own_head_dim: ClassVar[int | None] = 256
    pattern: ClassVar[int] = 2

    vocab_size: Size = 256000
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    max_position_embeddings: Size = 8192
    tie_word_embeddings: bool = True
    pad_token_id: Token = 0
    bos_token_id: Token = 2
    eos_token_id: Token | list[Token] = 1
    query_pre_attn_scalar: int | float = 256
    sliding_window: Size = 4096
    layer_types: tuple[str, ...] = ()
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    local_rope: Rope = UNSCALED

    @classmethod
    def ropes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """One kind of positions for all layers; and the kinds of the layers."""
        rope = super().ropes(config)["rope"]
        return {"rope": rope, "local_rope": rope, **cls.kinds(config)}

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """``layer_types`` from the object of a ``config.json``, which may name them or leave them to the pattern."""
        count = config.get("num_hidden_layers", cls.num_hidden_layers)
        pattern = config.get("sliding_window_pattern", cls.pattern)
        kinds = config.get("layer_types") or [LOCAL if (layer + 1) % pattern else GLOBAL for layer in range(count)]
        if len(kinds) != count or not set(kinds) <= {LOCAL, GLOBAL}:
            raise ValueError(f"layer_types must name each of the {count} layers {LOCAL!r} or {GLOBAL!r}")
        return {"layer_types": tuple(kinds)}

    def to_dict(self) -> dict[str, Any]:
        """The object of a ``config.json`` that transformers reads."""
        values = super().to_dict()
        del values["local_rope"]
        return {**values, "layer_types": list(self.layer_types)}

    @property
    def local(self) -> np.ndarray:
        """Which layers attend a window only, [L]."""
        return np.array([kind == LOCAL for kind in self.layer_types])


@dataclasses.dataclass(frozen=True)
class Gemma3Config(Gemma2Config):
    """The text model of a Gemma 3; the defaults are transformers' own."""

    model_type: ClassVar[str] = "gemma3_text"
    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    qk_norm: ClassVar[bool] = True
    pattern: ClassVar[int] = 6

    vocab_size: Size = 262208
    max_position_embeddings: Size = 131072
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @classmethod
    def ropes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Positions of the layers that attend all, and of those with a window; and the kinds of the layers."""
        given = config.get("rope_parameters") or {}
        length = config.get("max_position_embeddings", cls.max_position_embeddings)
        whole = given.get(GLOBAL) or config.get("rope_scaling") or {}
        return {
            "rope": Rope.from_dict(whole, config.get("rope_theta", 1e6), length),
            "local_rope": Rope.from_dict(given.get(LOCAL) or {}, config.get("rope_local_base_freq", THETA), length),
            **cls.kinds(config),
        }

    def to_dict(self) -> dict[str, Any]:
        """The object of a ``config.json`` that transformers reads."""
        return {**super().to_dict(), "rope_local_base_freq": self.local_rope.rope_theta}


class Block(nn.Module):
    """One layer, with a norm before and after each half."""

    config: Any
    dtype: jnp.dtype = jnp.float32
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: KVCache | None,
        local: Bool[Array, ""],
        rotations: tuple[Rotation, Rotation],
        masks: tuple[Bool[Array, "B T S"], Bool[Array, "B T S"]] | None,
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """One layer; of the rotations and masks the second is for layers with a window."""
        cfg = self.config

        def chosen(pair: Any) -> Any:
            return jax.tree.map(lambda whole, window: jnp.where(local, window, whole), *pair)

        h, cache = self_attention(
            self,
            norm(self, "input_layernorm")(x),
            cache,
            chosen(rotations),
            None if masks is None else chosen(masks),
            start,
            scale=cfg.query_pre_attn_scalar**-0.5,
            soft_cap=cfg.attn_logit_softcapping,
            window=None if x.shape[1] <= cfg.sliding_window else jnp.where(local, cfg.sliding_window, x.shape[1]),
        )
        x = x + norm(self, "post_attention_layernorm")(h)
        h = norm(self, "pre_feedforward_layernorm")(x)
        h = feed_forward(self, h, partial(nn.gelu, approximate=True))
        return x + norm(self, "post_feedforward_layernorm")(h), cache


class Gemma(Decoder):
    """The whole model, see :class:`allmrec_jax.models.llm.decoder.Decoder`."""

    block: ClassVar[type[nn.Module]] = Block
    in_axes: ClassVar[Sequence[Any]] = (0, 0, nn.broadcast, nn.broadcast, nn.broadcast)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Word embeddings times the root of their width, which is rounded to the type of the computation."""
        return super().embed(ids) * jnp.asarray(self.config.hidden_size**0.5, self.dtype)

    def __call__(
        self,
        embeds: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None = None,
        cache: KVCache | list[KVCache] | None = None,
        start: int | Int[Array, ""] = 0,
        layers: list[Any] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | list[KVCache] | None]:
        """Hidden states after the final norm, see :class:`allmrec_jax.models.llm.family.LanguageModel`."""
        cfg, x = self.config, embeds.astype(self.dtype)
        rotations = tuple(rope.rotation(positions, cfg.head_dim) for rope in (cfg.rope, cfg.local_rope))
        local = jnp.asarray(cfg.local)
        start = jnp.asarray(start, jnp.int32)
        masks = None if mask is None else (mask, windowed(mask, cfg.sliding_window))
        if layers is None:
            x, cache = self.layers(x, cache, local, rotations, masks, start)
        else:
            block = self.block(cfg, self.dtype, parent=None)
            x, cache = one_by_one(block, layers, x, cache, rotations, masks, start, each=list(local))
        return self.norm(x), cache

    def logits(self, hidden: Float[Array, "*N D"]) -> Float[Array, "*N V"]:
        """Next-token logits, float32, softly capped in Gemma 2."""
        out, cap = super().logits(hidden), self.config.final_logit_softcapping
        return out if cap is None else cap * jnp.tanh(out / cap)


def _queries(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file leaves out: queries are scaled by the width of a head, but in the largest models (27B)."""
    largest = config["num_hidden_layers"] in (46, 62)
    width = config["hidden_size"] // config["num_attention_heads"] if largest else config.get("head_dim", 256)
    return {"query_pre_attn_scalar": width}


_NAMES = {
    **NAMES,
    "blk.{layer}.post_attention_norm": "layers.{layer}.post_attention_layernorm",
    "blk.{layer}.ffn_norm": "layers.{layer}.pre_feedforward_layernorm",
    "blk.{layer}.post_ffw_norm": "layers.{layer}.post_feedforward_layernorm",
}


def _published(cls: type[Gemma2Config], *sizes: int, **other: Any) -> Any:
    hidden, units, layers, heads, key_values = sizes
    return cls.from_dict(
        {
            "hidden_size": hidden,
            "intermediate_size": units,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_values,
            **other,
        }
    )


PUBLISHED: dict[str, Gemma2Config] = {
    "google/gemma-2-2b": _published(Gemma2Config, 2304, 9216, 26, 8, 4),
    "google/gemma-2-9b": _published(Gemma2Config, 3584, 14336, 42, 16, 8),
    "google/gemma-2-27b": _published(Gemma2Config, 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
}
"""Published sizes of Gemma 2, by hub name."""

PUBLISHED3: dict[str, Gemma3Config] = {
    "google/gemma-3-270m": _published(
        Gemma3Config, 640, 2048, 18, 4, 1, vocab_size=262144, max_position_embeddings=32768, sliding_window=512
    ),
    "google/gemma-3-1b-pt": _published(
        Gemma3Config, 1152, 6912, 26, 4, 1, vocab_size=262144, max_position_embeddings=32768, sliding_window=512
    ),
}
"""Published sizes of Gemma 3 without vision, by hub name."""

GEMMA2 = Family(
    title="Gemma 2",
    model_types=("gemma2",),
    config=Gemma2Config,
    module=Gemma,
    layout=layout,
    prefixes=PREFIXES,
    rules=RULES,
    variants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": False},
    adapts=PROJECTIONS,
    published=PUBLISHED,
    buffers=BUFFERS,
    gguf=GGUFForm("gemma2", _NAMES, norm_offset=1.0, derived=_queries),
    kept_units=4.5,
)
"""Gemma 2."""

GEMMA3 = dataclasses.replace(
    GEMMA2,
    title="Gemma 3",
    model_types=("gemma3_text",),
    config=Gemma3Config,
    published=PUBLISHED3,
    gguf=GGUFForm("gemma3", _NAMES, norm_offset=1.0, derived=_queries),
)
"""The text model of Gemma 3."""
