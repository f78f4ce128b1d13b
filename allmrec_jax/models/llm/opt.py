"""OPT (Zhang et al. 2022, arXiv 2205.01068) as a Flax module: every published size, layers stacked under a scan.

Shapes: B batch, T new tokens, S attended columns, L layers, H heads, D hidden size, E word width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.models.llm.int8 import SCALE, Dense

POSITION_OFFSET = 2
"""OPT's position table starts two rows late (Hugging Face, ``OPTLearnedPositionalEmbedding``)."""

LAYER_NORM_EPSILON = 1e-5

CAUSAL_BLOCKS, CAUSAL_BLOCK = 4, 64
"""Without fused attention causal attention runs in so many blocks of queries, of so many tokens at least."""


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """The fields of a Hugging Face ``config.json`` that decide the computation."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    word_embed_proj_dim: int = 768
    do_layer_norm_before: bool = True
    pad_token_id: int = 1
    bos_token_id: int = 2
    eos_token_id: int = 2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the dictionary of a ``config.json``; keys that decide nothing here are left aside."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in config.items() if key in known and value is not None}
        values.setdefault("word_embed_proj_dim", values.get("hidden_size", cls.hidden_size))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that Hugging Face's ``OPTConfig`` reads."""
        return {"model_type": "opt", "architectures": ["OPTForCausalLM"], **dataclasses.asdict(self)}

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

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


class KVCache(NamedTuple):
    """Keys and values of every layer; columns not yet written hold zeros."""

    k: Float[Array, "L B H S Dh"]
    v: Float[Array, "L B H S Dh"]


def init_cache(config: OPTConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache of ``length`` columns."""
    shape = (config.num_hidden_layers, batch, config.num_attention_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def unstacked(tree: Any) -> list[Any]:
    """The layers of stacked weights or caches, each a tree of arrays of its own."""
    return [jax.tree.map(itemgetter(index), tree) for index in range(len(jax.tree.leaves(tree)[0]))]


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
            self._project(name, x).reshape(*x.shape[:2], *heads).swapaxes(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if cache is not None:
            cache = KVCache(
                jax.lax.dynamic_update_slice_in_dim(cache.k, k.astype(cache.k.dtype), start, axis=2),
                jax.lax.dynamic_update_slice_in_dim(cache.v, v.astype(cache.v.dtype), start, axis=2),
            )
            if mask is not None:
                k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
        out = self._attend(q, k, v, mask).swapaxes(1, 2).reshape(*x.shape[:2], cfg.hidden_size)
        return Dense(cfg.hidden_size, dtype=self.dtype, name="out_proj")(out), cache

    def _project(self, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        out = Dense(self.config.hidden_size, dtype=self.dtype, name=name)(x)
        if not self.has_variable("lora", name):
            return out
        low = self.get_variable("lora", name)
        x = nn.Dropout(self.lora_dropout, deterministic=not self.has_rng("dropout"))(x)
        return out + ((x.astype(jnp.float32) @ low["a"]) @ low["b"]).astype(self.dtype)

    def _attend(
        self,
        q: Float[Array, "B H T Dh"],
        k: Float[Array, "B H S Dh"],
        v: Float[Array, "B H S Dh"],
        mask: Bool[Array, "B T S"] | None,
    ) -> Float[Array, "B H T Dh"]:
        # cuDNN's fused attention takes 16-bit floats and heads of at most 128 in steps of 8 only, behind the columns:
        # one new token alone would not pay for turning the whole cache.
        fits = q.shape[2] > 1 and self.config.head_dim % 8 == 0 and self.config.head_dim <= 128
        half = jnp.dtype(self.dtype) in (jnp.bfloat16, jnp.float16)
        if jax.default_backend() == "gpu" and half and fits:
            mask = None if mask is None else mask[:, None]
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, implementation="cudnn")
            return out.swapaxes(1, 2)
        return causal_attention(q, k, v) if mask is None else _masked_attention(q, k, v, mask)


def _masked_attention(
    q: Float[Array, "B H T Dh"], k: Float[Array, "B H S Dh"], v: Float[Array, "B H S Dh"], mask: Bool[Array, "#B T S"]
) -> Float[Array, "B H T Dh"]:
    # Heads beside the batch: plain batched products, which a CPU does faster than einsums over [B, T, H, Dh].
    scores = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)


def causal_blocks(length: int) -> list[tuple[int, int]]:
    """Blocks of queries, first and end, that causal attention without a fused kernel computes one after the other."""
    size = max(CAUSAL_BLOCK, -(-length // CAUSAL_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def causal_attention(
    q: Float[Array, "B H T Dh"], k: Float[Array, "B H T Dh"], v: Float[Array, "B H T Dh"]
) -> Float[Array, "B H T Dh"]:
    """Causal attention without a fused kernel: block by block of queries, each with the keys up to its end."""
    out = []
    for start, end in causal_blocks(q.shape[2]):
        seen = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
        out.append(_masked_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], seen[None]))
    return jnp.concatenate(out, axis=2)


def _gathering(block: type[nn.Module], dtype: jnp.dtype) -> Any:
    """The layer, its weights gathered over ``fsdp`` where it runs, and again in the backward pass: never kept."""

    def gather(variables: Any) -> Any:
        layer = jax.tree.map_with_path(cast, variables["params"])
        return {"params": sharding.gathered(layer, OPT_RULES, "layers/", stacked=True)}

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        # int8 is gathered as it is stored, which is what makes it small.
        stored = x.dtype == jnp.int8 or sharding.path_name(path).endswith(SCALE)
        return x if stored else x.astype(dtype)

    # The constraints that gather are the only ones in a layer; all else is kept as it would be without this.
    return nn.remat(
        nn.map_variables(block, "params", trans_in_fn=gather),
        prevent_cse=False,
        policy=lambda primitive, *_, **__: primitive.name != "sharding_constraint",
    )


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
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        if sharding.gathers() and not self.is_initializing():
            block = _gathering(block, self.dtype)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=cfg.num_hidden_layers,
        )(cfg, self.dtype, self.lora_dropout)
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
            layers: :func:`unstacked` weights to use in place of those that were given stacked; ``cache`` is then
                unstacked too. A loop over tokens on a CPU is so spared a copy of each layer for every token, which the
                scan over layers makes.

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
            x, cache = self._one_by_one(layers, x, cache, mask, start)
        if self.config.do_layer_norm_before:
            x = self.final_layer_norm(x)
        if self.config.projects:
            x = self.project_out(x)
        return x, cache

    def _one_by_one(
        self, layers: list[Any], x: Float[Array, "B T D"], caches: Any, mask: Any, start: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], list[KVCache]]:
        block, written = Block(self.config, self.dtype, parent=None), []
        for layer, cache in zip(layers, caches, strict=True):
            x, cache = block.apply({"params": layer}, x, cache, mask, start)
            written.append(cache)
        return x, written

    def logits(self, hidden: Float[Array, "*N E"]) -> Float[Array, "*N V"]:
        """Next-token logits by the tied head, accumulated and returned in float32."""
        return jnp.einsum("...e,ve->...v", hidden, self._words(), preferred_element_type=jnp.float32)

    def _words(self) -> Float[Array, "V E"]:
        return sharding.constrain(self.embed_tokens.embedding.astype(self.dtype), P("tensor"))


def init_params(config: OPTConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters of the checkpoint's layout (Flax's default initialisers)."""
    model = OPT(config)
    zeros = jnp.zeros((1, 1), jnp.int32)

    def run(module: OPT) -> jax.Array:
        return module.logits(module(module.embed(zeros), zeros)[0])

    return nn.init(run, model)(key)["params"]
