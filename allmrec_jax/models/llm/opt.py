"""OPT (Zhang et al. 2022, arXiv 2205.01068) as a Flax module: every published size, layers stacked under a scan.

Shapes: B batch, T new tokens, S attended columns, L layers, H heads, D hidden size, E word width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.models.limits import Layers, Size, Token
from allmrec_jax.models.llm.attention import KVCache, attend, cached
from allmrec_jax.models.llm.family import Family, Leaf
from allmrec_jax.models.llm.int8 import Dense
from allmrec_jax.models.llm.stack import one_by_one, projected, scanned

POSITION_OFFSET = 2
"""OPT's position table starts two rows late (Hugging Face, ``OPTLearnedPositionalEmbedding``)."""

LAYER_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """The fields of a Hugging Face ``config.json`` that decide the computation."""

    model_type: ClassVar[str] = "opt"

    vocab_size: Size = 50272
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    ffn_dim: Size = 3072
    max_position_embeddings: Size = 2048
    word_embed_proj_dim: Size = 768
    do_layer_norm_before: bool = True
    pad_token_id: Token = 1
    bos_token_id: Token = 2
    eos_token_id: Token = 2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the dictionary of a ``config.json``; keys that decide nothing here are left aside.

        Raises:
            ValueError: the heads do not divide the width.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in config.items() if key in known and value is not None}
        values.setdefault("word_embed_proj_dim", values.get("hidden_size", cls.hidden_size))
        found = cls(**values)
        if found.hidden_size % found.num_attention_heads:
            raise ValueError(
                f"hidden_size {found.hidden_size} is not a multiple of num_attention_heads {found.num_attention_heads}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that Hugging Face's ``OPTConfig`` reads."""
        return {"model_type": self.model_type, "architectures": ["OPTForCausalLM"], **dataclasses.asdict(self)}

    @property
    def embed_dim(self) -> int:
        """Width of the word embeddings."""
        return self.word_embed_proj_dim

    @property
    def intermediate_size(self) -> int:
        """Units of a feed-forward part."""
        return self.ffn_dim

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads."""
        return self.num_attention_heads

    @property
    def projects(self) -> bool:
        """Whether word embeddings have another width than the layers (OPT-350m)."""
        return self.word_embed_proj_dim != self.hidden_size


def _size(hidden: int, layers: int, heads: int, **other: Any) -> OPTConfig:
    other.setdefault("word_embed_proj_dim", hidden)
    return OPTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden, **other
    )


PUBLISHED: dict[str, OPTConfig] = {
    "facebook/opt-125m": _size(768, 12, 12),
    "facebook/opt-350m": _size(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": _size(2048, 24, 32),
    "facebook/opt-2.7b": _size(2560, 32, 32),
    "facebook/opt-6.7b": _size(4096, 32, 32),
    "facebook/opt-13b": _size(5120, 40, 40),
    "facebook/opt-30b": _size(7168, 48, 56),
    "facebook/opt-66b": _size(9216, 64, 72),
}
"""The published sizes, by hub name."""


OPT_RULES: sharding.Rules = (
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"embed_positions/embedding", P(None, "fsdp")),
    (r"layers/(q_proj|k_proj|v_proj|fc1)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/(q_proj|k_proj|v_proj|fc1)/(bias|kernel_scale)", P(None, "tensor")),
    (r"layers/(out_proj|fc2)/kernel", P(None, "tensor", "fsdp")),
    (r"layers/(out_proj|fc2)/(bias|kernel_scale)", P()),
    (r"(layers/(self_attn|final)_layer_norm|final_layer_norm)/(scale|bias)", P()),
    (r"project_(in|out)/kernel", P()),
)
"""The frozen OPT. A layer's two halves each end in one sum over ``tensor``; nothing else crosses it."""


def _layer_norm(name: str, dtype: jnp.dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)


class Block(nn.Module):
    """One decoder layer, pre-norm or (350m) post-norm."""

    config: OPTConfig
    dtype: jnp.dtype = jnp.float32
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], cache: KVCache | None, mask: Bool[Array, "B T S"] | None, start: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """One layer; ``cache`` holds this layer's columns [B, H, S, Dh]."""
        cfg = self.config
        attention_norm = _layer_norm("self_attn_layer_norm", self.dtype)
        final_norm = _layer_norm("final_layer_norm", self.dtype)

        h = attention_norm(x) if cfg.do_layer_norm_before else x
        h, cache = self._attention(h, cache, mask, start)
        x = x + h
        if not cfg.do_layer_norm_before:
            x = attention_norm(x)

        h = final_norm(x) if cfg.do_layer_norm_before else x
        h = Dense(cfg.ffn_dim, dtype=self.dtype, name="fc1")(h)
        h = Dense(cfg.hidden_size, dtype=self.dtype, name="fc2")(nn.relu(h))
        x = x + h
        if not cfg.do_layer_norm_before:
            x = final_norm(x)
        return x, cache

    def _attention(
        self, x: Float[Array, "B T D"], cache: KVCache | None, mask: Bool[Array, "B T S"] | None, start: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        cfg = self.config
        heads = (cfg.num_attention_heads, cfg.head_dim)
        q, k, v = (
            projected(self, name, cfg.hidden_size, x).reshape(*x.shape[:2], *heads).swapaxes(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        k, v, cache = cached(cache, k, v, start, mask)
        out = attend(q, k, v, mask).swapaxes(1, 2).reshape(*x.shape[:2], cfg.hidden_size)
        return Dense(cfg.hidden_size, dtype=self.dtype, name="out_proj")(out), cache


class OPT(nn.Module):
    """The decoder with its tied head. Parameters are the plain arrays of the checkpoint, layers stacked on axis 0.

    The layers' kernels may be int8, see :mod:`allmrec_jax.models.llm.int8`. A collection ``lora`` beside ``params``
    adds low-rank terms to the projections that it names, see :mod:`allmrec_jax.models.llm.lora`.

    Attributes:
        dtype: of the computation; parameters keep the type that they were loaded in.
        remat: recompute each layer in the backward pass instead of keeping its activations.
        lora_dropout: of the low-rank terms' inputs, where a ``dropout`` key is given.
    """

    config: OPTConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    lora_dropout: float = 0.0

    def setup(self) -> None:  # noqa: D102
        cfg = self.config
        self.embed_tokens = nn.Embed(cfg.vocab_size, cfg.word_embed_proj_dim, dtype=self.dtype)
        self.embed_positions = nn.Embed(
            cfg.max_position_embeddings + POSITION_OFFSET, cfg.hidden_size, dtype=self.dtype
        )
        self.layers = scanned(Block, self, OPT_RULES)(cfg, self.dtype, self.lora_dropout)
        if cfg.do_layer_norm_before:
            self.final_layer_norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        if cfg.projects:
            self.project_in = nn.Dense(cfg.hidden_size, use_bias=False, dtype=self.dtype)
            self.project_out = nn.Dense(cfg.word_embed_proj_dim, use_bias=False, dtype=self.dtype)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Word embeddings, without positions."""
        return jnp.take(self._words(), ids, axis=0)

    def __call__(
        self,
        embeds: Float[Array, "B T E"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None = None,
        cache: KVCache | list[KVCache] | None = None,
        start: int | Int[Array, ""] = 0,
        layers: list[Any] | None = None,
    ) -> tuple[Float[Array, "B T E"], KVCache | list[KVCache] | None]:
        """Hidden states ready for :meth:`logits`.

        Args:
            embeds: word embeddings, soft tokens among them.
            positions: 0-based positions; below ``max_position_embeddings``.
            mask: True where a token (row) may attend a column. ``None`` is causal over the T tokens themselves, under
                which padding on the right needs no mask; columns written before are then not read.
            cache: columns written so far; the T new ones go to ``start … start + T``.
            layers: :func:`allmrec_jax.models.llm.stack.unstacked` weights to use in place of those that were given
                stacked; ``cache`` is then unstacked too. A loop over tokens on a CPU is so spared a copy of each layer
                for every token, which the scan over layers makes.

        Returns:
            hidden states after the final norm and ``project_out``, and the cache with the new columns.
        """
        x = embeds.astype(self.dtype)
        if self.config.projects:
            x = self.project_in(x)
        table = sharding.constrain(self.embed_positions.embedding.astype(self.dtype), P())
        x = x + jnp.take(table, positions + POSITION_OFFSET, axis=0)
        start = jnp.asarray(start, jnp.int32)
        if layers is None:
            x, cache = self.layers(x, cache, mask, start)
        else:
            x, cache = one_by_one(Block(self.config, self.dtype, parent=None), layers, x, cache, mask, start)
        if self.config.do_layer_norm_before:
            x = self.final_layer_norm(x)
        if self.config.projects:
            x = self.project_out(x)
        return x, cache

    def logits(self, hidden: Float[Array, "*N E"]) -> Float[Array, "*N V"]:
        """Next-token logits by the tied head, accumulated and returned in float32."""
        return jnp.einsum("...e,ve->...v", hidden, self._words(), preferred_element_type=jnp.float32)

    def _words(self) -> Float[Array, "V E"]:
        return sharding.constrain(self.embed_tokens.embedding.astype(self.dtype), P("tensor"))


def layout(config: OPTConfig) -> list[Leaf]:
    """Every parameter of a model of this configuration, and where ``OPTForCausalLM`` keeps it."""
    hidden, ffn, embed = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    leaves = [
        Leaf(("embed_tokens", "embedding"), "embed_tokens.weight", (config.vocab_size, embed)),
        Leaf(
            ("embed_positions", "embedding"),
            "embed_positions.weight",
            (config.max_position_embeddings + POSITION_OFFSET, hidden),
        ),
    ]
    for name, module, inputs, outputs in (
        ("q_proj", "self_attn.q_proj", hidden, hidden),
        ("k_proj", "self_attn.k_proj", hidden, hidden),
        ("v_proj", "self_attn.v_proj", hidden, hidden),
        ("out_proj", "self_attn.out_proj", hidden, hidden),
        ("fc1", "fc1", hidden, ffn),
        ("fc2", "fc2", ffn, hidden),
    ):
        key = f"layers.{{layer}}.{module}"
        leaves.append(Leaf(("layers", name, "kernel"), f"{key}.weight", (outputs, inputs), transposed=True))
        leaves.append(Leaf(("layers", name, "bias"), f"{key}.bias", (outputs,)))
    norms: list[tuple[tuple[str, ...], str]] = [
        (("layers", name), f"layers.{{layer}}.{name}") for name in ("self_attn_layer_norm", "final_layer_norm")
    ]
    if config.do_layer_norm_before:
        norms.append((("final_layer_norm",), "final_layer_norm"))
    for path, key in norms:
        leaves.append(Leaf((*path, "scale"), f"{key}.weight", (hidden,)))
        leaves.append(Leaf((*path, "bias"), f"{key}.bias", (hidden,)))
    if config.projects:
        leaves.append(Leaf(("project_in", "kernel"), "project_in.weight", (hidden, embed), transposed=True))
        leaves.append(Leaf(("project_out", "kernel"), "project_out.weight", (embed, hidden), transposed=True))
    return leaves


FAMILY = Family(
    title="OPT",
    model_types=("opt",),
    config=OPTConfig,
    module=OPT,
    layout=layout,
    prefixes=("model.decoder.", "decoder."),  # of OPTForCausalLM and of OPTModel
    rules=OPT_RULES,
    variants={
        "activation_function": "relu",
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "_remove_final_layer_norm": False,
    },
    published=PUBLISHED,
    bos="behind user",
)
"""All published sizes have the same variant of the architecture."""
