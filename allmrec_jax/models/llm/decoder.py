"""The decoder that Llama, Mistral, Qwen and Gemma are variants of: rotary positions, root-mean-square norms before each
half of a layer, a gated feed-forward part, and key-value heads that serve several query heads.

Shapes: B batch, T new tokens, S attended columns, L layers, H query heads, K key-value heads, Dh width of a head,
D hidden size, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.models.limits import Epsilon, Layers, Size, Token
from allmrec_jax.models.llm.attention import KVCache, attend, cached, windowed
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import Leaf
from allmrec_jax.models.llm.rotary import THETA, UNSCALED, Rope, Rotation, rotated
from allmrec_jax.models.llm.stack import one_by_one, projected, scanned

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
"""The kernels of a layer."""

PREFIXES = ("model.",)
"""Before the keys of a checkpoint, but the head's; a model without a head is saved without it."""

BUFFERS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""What files of old versions hold beside the weights."""

RULES: sharding.Rules = (
    (r"(embed_tokens|lm_head)/embedding", P("tensor", "fsdp")),
    (r"layers/(q_proj|k_proj|v_proj|gate_proj|up_proj)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/(q_proj|k_proj|v_proj|gate_proj|up_proj)/(bias|kernel_scale)", P(None, "tensor")),
    (r"layers/(o_proj|down_proj)/kernel", P(None, "tensor", "fsdp")),
    (r"layers/(o_proj|down_proj)/(bias|kernel_scale)", P()),
    (r"(layers/\w+norm|norm)/scale", P()),
)
"""Where the parameters lie. A layer's two halves each end in one sum over ``tensor``; nothing else crosses it."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The fields of a Hugging Face ``config.json`` that all variants have, and what they derive from others.

    Attributes:
        norms: of a layer, of width D.
        norm_offset: what the norms' scales are stored short of.
        qk_norm: whether queries and keys are normed, head by head.
        own_head_dim: the width of a head where a file names none; D over H where this is not given.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    norm_offset: ClassVar[float] = 0.0
    qk_norm: ClassVar[bool] = False
    own_head_dim: ClassVar[int | None] = None

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    head_dim: Size = 128
    max_position_embeddings: Size = 2048
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    pad_token_id: Token = 0
    bos_token_id: Token = 1
    eos_token_id: Token | list[Token] = 2
    rope: Rope = UNSCALED

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the object of a ``config.json``; keys that decide nothing here are left aside.

        Of several tokens that end a text the first one is taken, and it pads where no token is named for that.

        Raises:
            ValueError: values that do not go together, or positions of a kind that is not computed here.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"rope"}
        values = {key: value for key, value in config.items() if key in known and value is not None}
        hidden, heads = (values.get(key, getattr(cls, key)) for key in ("hidden_size", "num_attention_heads"))
        values.setdefault("num_key_value_heads", heads)
        values.setdefault("head_dim", cls.own_head_dim or hidden // heads)
        if isinstance(ends := values.get("eos_token_id", cls.eos_token_id), list):
            ends = values["eos_token_id"] = ends[0]
        values.setdefault("pad_token_id", ends)
        found = cls(**{**values, **cls.ropes(config)})
        if found.num_attention_heads % found.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {found.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{found.num_key_value_heads}"
            )
        if found.head_dim % 2:
            raise ValueError(f"head_dim {found.head_dim} is odd; rotary positions turn pairs of numbers")
        return found

    @classmethod
    def ropes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that hold rotary positions, from the object of a ``config.json``."""
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        length = config.get("max_position_embeddings", cls.max_position_embeddings)
        return {"rope": Rope.from_dict(given, config.get("rope_theta", THETA), length)}

    def to_dict(self) -> dict[str, Any]:
        """The object of a ``config.json`` that transformers reads."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "rope"}
        scaling = {"rope_scaling": scaled} if (scaled := self.rope.to_dict()) else {}
        about = {"model_type": self.model_type, "architectures": [self.architecture]}
        return {**about, **values, "rope_theta": self.rope.rope_theta, **scaling}

    @property
    def embed_dim(self) -> int:
        """Width of the word embeddings."""
        return self.hidden_size

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that add a bias."""
        return ()

    @property
    def attended(self) -> int | None:
        """How many tokens a token attends in every layer, itself among them; ``None`` is all."""
        return None


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467), computed in float32.

    Attributes:
        epsilon: added to the mean square.
        dtype: of the result.
        offset: what the stored scale is short of: Gemma's is 1.
    """

    epsilon: float
    dtype: jnp.dtype = jnp.float32
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        """``x`` over the root of its mean square, scaled."""
        start = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", start, x.shape[-1:], jnp.float32).astype(jnp.float32) + self.offset
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * jnp.broadcast_to(scale, x.shape)).astype(self.dtype)


def norm(block: Any, name: str) -> RMSNorm:
    """A norm of a layer, made inside it."""
    return RMSNorm(block.config.rms_norm_eps, block.dtype, block.config.norm_offset, name=name)


def self_attention(
    block: Any,
    x: Float[Array, "B T D"],
    cache: KVCache | None,
    rotation: Rotation,
    mask: Bool[Array, "B T S"] | None,
    start: Int[Array, ""],
    **how: Any,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """A layer's attention, called inside it; ``how`` goes to :func:`allmrec_jax.models.llm.attention.attend`."""
    cfg = block.config

    def heads(name: str, count: int) -> Float[Array, "B T N Dh"]:
        out = projected(block, name, count * cfg.head_dim, x, use_bias=name in cfg.biases)
        return out.reshape(*x.shape[:2], count, cfg.head_dim)

    q, k = heads("q_proj", cfg.num_attention_heads), heads("k_proj", cfg.num_key_value_heads)
    if cfg.qk_norm:
        q, k = norm(block, "q_norm")(q), norm(block, "k_norm")(k)
    q, k, v = (part.swapaxes(1, 2) for part in (q, k, heads("v_proj", cfg.num_key_value_heads)))
    k, v, cache = cached(cache, rotated(k, rotation), v, start, mask)
    out = attend(rotated(q, rotation), k, v, mask, **how).swapaxes(1, 2).reshape(*x.shape[:2], -1)
    return projected(block, "o_proj", cfg.hidden_size, out, use_bias="o_proj" in cfg.biases), cache


def feed_forward(
    block: Any, x: Float[Array, "B T D"], activation: Callable[[jax.Array], jax.Array] = nn.silu
) -> Float[Array, "B T D"]:
    """A layer's gated feed-forward part (Shazeer 2020, arXiv 2002.05202), called inside it."""
    cfg = block.config

    def unit(name: str, features: int, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        return projected(block, name, features, x, use_bias=name in cfg.biases)

    h = activation(unit("gate_proj", cfg.intermediate_size, x)) * unit("up_proj", cfg.intermediate_size, x)
    return unit("down_proj", cfg.hidden_size, h)


class Block(nn.Module):
    """One layer of Llama, Mistral or Qwen."""

    config: Any
    dtype: jnp.dtype = jnp.float32
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: KVCache | None,
        rotation: Rotation,
        mask: Bool[Array, "B T S"] | None,
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """One layer; ``cache`` holds this layer's columns [B, K, S, Dh]."""
        h = norm(self, "input_layernorm")(x)
        h, cache = self_attention(self, h, cache, rotation, mask, start, window=self.config.attended)
        x = x + h
        return x + feed_forward(self, norm(self, "post_attention_layernorm")(x)), cache


class Decoder(nn.Module):
    """The whole model. Parameters are the plain arrays of the checkpoint, layers stacked on axis 0.

    The layers' kernels may be int8, see :mod:`allmrec_jax.models.llm.int8`. A collection ``lora`` beside ``params``
    adds low-rank terms to the projections that it names, see :mod:`allmrec_jax.models.llm.lora`.

    Attributes:
        config: of the model, a :class:`DecoderConfig` of some variant.
        dtype: of the computation; parameters keep the type that they were loaded in.
        remat: recompute each layer in the backward pass instead of keeping its activations.
        lora_dropout: of the low-rank terms' inputs, where a ``dropout`` key is given.
    """

    config: Any
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    lora_dropout: float = 0.0

    block: ClassVar[type[nn.Module]] = Block
    in_axes: ClassVar[Sequence[Any]] = (0, nn.broadcast, nn.broadcast, nn.broadcast)

    def setup(self) -> None:  # noqa: D102
        cfg = self.config
        self.embed_tokens = nn.Embed(cfg.vocab_size, cfg.hidden_size, dtype=self.dtype)
        rules = family_of(cfg).rules_on(cfg, sharding.current_shape())
        self.layers = scanned(self.block, self, rules, self.in_axes)(cfg, self.dtype, self.lora_dropout)
        self.norm = RMSNorm(cfg.rms_norm_eps, self.dtype, cfg.norm_offset)
        if not cfg.tie_word_embeddings:
            self.lm_head = nn.Embed(cfg.vocab_size, cfg.hidden_size, dtype=self.dtype)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Word embeddings."""
        return jnp.take(self._rows(self.embed_tokens), ids, axis=0)

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
        shared = (
            cfg.rope.rotation(positions, cfg.head_dim),
            _within(mask, cfg.attended),
            jnp.asarray(start, jnp.int32),
        )
        if layers is None:
            x, cache = self.layers(x, cache, *shared)
        else:
            x, cache = one_by_one(self.block(cfg, self.dtype, parent=None), layers, x, cache, *shared)
        return self.norm(x), cache

    def logits(self, hidden: Float[Array, "*N D"]) -> Float[Array, "*N V"]:
        """Next-token logits, accumulated and returned in float32."""
        table = self._rows(self.embed_tokens if self.config.tie_word_embeddings else self.lm_head)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    def _rows(self, table: nn.Embed) -> Float[Array, "V D"]:
        return sharding.constrain(table.embedding.astype(self.dtype), P("tensor"))


def _within(mask: Bool[Array, "B T S"] | None, attended: int | None) -> Bool[Array, "B T S"] | None:
    return mask if mask is None or attended is None else windowed(mask, attended)


def layout(config: DecoderConfig) -> list[Leaf]:
    """Every parameter of a model of this configuration, and where it stands in a checkpoint."""
    cfg, hidden = config, config.hidden_size
    words = (cfg.vocab_size, hidden)
    queries, keys = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    units = cfg.intermediate_size
    leaves = [Leaf(("embed_tokens", "embedding"), "embed_tokens.weight", words)]
    for name, inputs, outputs in (
        ("q_proj", hidden, queries),
        ("k_proj", hidden, keys),
        ("v_proj", hidden, keys),
        ("o_proj", queries, hidden),
        ("gate_proj", hidden, units),
        ("up_proj", hidden, units),
        ("down_proj", units, hidden),
    ):
        key = f"layers.{{layer}}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
        leaves.append(Leaf(("layers", name, "kernel"), f"{key}.weight", (outputs, inputs), transposed=True))
        if name in cfg.biases:
            leaves.append(Leaf(("layers", name, "bias"), f"{key}.bias", (outputs,)))
    for name in ("q_norm", "k_norm") if cfg.qk_norm else ():
        leaves.append(Leaf(("layers", name, "scale"), f"layers.{{layer}}.self_attn.{name}.weight", (cfg.head_dim,)))
    for name in cfg.norms:
        leaves.append(Leaf(("layers", name, "scale"), f"layers.{{layer}}.{name}.weight", (hidden,)))
    leaves.append(Leaf(("norm", "scale"), "norm.weight", (hidden,)))
    if not cfg.tie_word_embeddings:
        leaves.append(Leaf(("lm_head", "embedding"), "lm_head.weight", words))
    return leaves
