"""Sentence encoders of the DistilBERT and BERT families as one Flax module, with pooling, and their token tables.

DistilBERT (Sanh et al. 2019) is BERT (Devlin et al. 2019) without token types and without dropout behind the
attention's output; everything else is shared. Weights are read and written by
:mod:`allmrec_jax.pretrained.sentence_encoder`.

Shapes: M texts, T tokens, H heads, D hidden size.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Pooling = Literal["mean", "cls", "max"]

LENGTH_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Padded lengths: each is one compiled program, and padding wastes at most half of a batch."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """What decides the computation, named as in BERT's ``config.json``; ``type_vocab_size`` 0 is DistilBERT."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    @property
    def distil(self) -> bool:
        """Whether this is DistilBERT."""
        return self.type_vocab_size == 0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a ``config.json`` of model type ``distilbert`` or ``bert``; another type is a :class:`UserError`."""
        family = config.get("model_type")
        if family == "distilbert":
            values = {ours: config[theirs] for ours, theirs in _DISTIL_NAMES.items() if theirs in config}
        elif family == "bert":
            known = {field.name for field in dataclasses.fields(cls)}
            values = {key: value for key, value in config.items() if key in known and value is not None}
            values = {"num_hidden_layers": 12, "type_vocab_size": 2} | values
        else:
            raise UserError(f"model type {family!r} is not supported; use a DistilBERT or BERT encoder")
        if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError("only encoders with absolute positions are supported")
        if values.get("hidden_act", "gelu") not in ACTIVATIONS:
            raise UserError(f"activation {values['hidden_act']!r} is not supported; known: {', '.join(ACTIVATIONS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` that Hugging Face reads."""
        values = dataclasses.asdict(self)
        if self.distil:
            distil = {theirs: values[ours] for ours, theirs in _DISTIL_NAMES.items()}
            return {"model_type": "distilbert", "architectures": ["DistilBertModel"], **distil}
        return {"model_type": "bert", "architectures": ["BertModel"], **values}


_DISTIL_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "pad_token_id": "pad_token_id",
}


class Block(nn.Module):
    """One post-norm encoder layer."""

    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "M T D"], mask: Bool[Array, "M T"], deterministic: bool
    ) -> Float[Array, "M T D"]:
        """Attention over the tokens under ``mask``, then the feed-forward part."""
        cfg = self.config
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=cfg.layer_norm_eps, dtype=self.dtype)
        dropout = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)

        heads = (cfg.num_attention_heads, cfg.hidden_size // cfg.num_attention_heads)
        q, k, v = (dense(cfg.hidden_size, name=name)(x).reshape(*x.shape[:2], *heads) for name in "qkv")
        scores = jnp.einsum("mthd,mshd->mhts", q, k) * heads[1] ** -0.5
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(self.dtype)
        weights = nn.Dropout(cfg.attention_probs_dropout_prob, deterministic=deterministic)(weights)
        attended = jnp.einsum("mhts,mshd->mthd", weights, v).reshape(x.shape)
        attended = dense(cfg.hidden_size, name="out")(attended)
        if not cfg.distil:
            attended = dropout(attended)
        x = norm(name="attention_norm")(x + attended)

        h = ACTIVATIONS[cfg.hidden_act](dense(cfg.intermediate_size, name="up")(x))
        h = dropout(dense(cfg.hidden_size, name="down")(h))
        return norm(name="output_norm")(x + h)


class TextEncoder(nn.Module):
    """Token ids to one vector per text.

    Attributes:
        pooling: over the tokens of a text: their mean, their maximum, or the first one's state.
        normalize: to length 1.
        dtype: of the computation; the vectors are float32.
    """

    config: TextEncoderConfig
    pooling: Pooling = "mean"
    normalize: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "M T"], lengths: Int[Array, " M"], deterministic: bool = True
    ) -> Float[Array, "M D"]:
        """Sentence vectors of right-padded ``ids``; ``deterministic=False`` needs an rng named ``dropout``."""
        cfg = self.config
        mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        embed = partial(nn.Embed, features=cfg.hidden_size, dtype=self.dtype)
        x = embed(cfg.vocab_size, name="word_embeddings")(ids)
        x = x + embed(cfg.max_position_embeddings, name="position_embeddings")(jnp.arange(ids.shape[1]))[None]
        if not cfg.distil:
            x = x + embed(cfg.type_vocab_size, name="token_type_embeddings")(jnp.zeros_like(ids))
        x = nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)(x)
        for layer in range(cfg.num_hidden_layers):
            x = Block(cfg, self.dtype, name=f"layer_{layer}")(x, mask, deterministic)
        vectors = pool(x.astype(jnp.float32), mask, self.pooling)
        if self.normalize:
            vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors


def pool(states: Float[Array, "M T D"], mask: Bool[Array, "M T"], pooling: Pooling) -> Float[Array, "M D"]:
    """One vector per text from its tokens' states (sentence-transformers, ``Pooling``)."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return jnp.where(mask[..., None], states, -jnp.inf).max(axis=1)
    total = jnp.where(mask[..., None], states, 0.0).sum(axis=1)
    return total / mask.sum(axis=1, keepdims=True, dtype=states.dtype)


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder with its weights and tokenizer.

    Attributes:
        model: the module, in the dtype asked for.
        params: its float32 parameters.
        tokenizer: of the ``tokenizers`` library, padding and truncation off.
        tokenizer_config: the ``tokenizer_config.json`` that is written back on saving.
        lowercase: texts are lower-cased before the tokenizer sees them.
        max_length: longest text in tokens, special tokens included.
        source: where it was loaded from.
    """

    model: TextEncoder
    params: Mapping[str, Any]
    tokenizer: "Tokenizer"
    tokenizer_config: Mapping[str, Any]
    max_length: int
    lowercase: bool = False
    source: str = ""

    @property
    def config(self) -> TextEncoderConfig:
        """The module's configuration."""
        return self.model.config

    @property
    def pooling(self) -> Pooling:
        """The module's pooling."""
        return self.model.pooling

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1."""
        return self.model.normalize

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.config.hidden_size


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The tokens of many texts, made once.

    Attributes:
        ids: int32 [N, L], padded on the right.
        lengths: int32 [N], at least 1.
        max_length: the longest a row may be.
    """

    ids: np.ndarray
    lengths: np.ndarray
    max_length: int

    def bucket(self, rows: np.ndarray) -> int:
        """The padded length that holds all of ``rows``."""
        longest = int(self.lengths[rows].max(initial=1))
        return min(next((size for size in LENGTH_BUCKETS if size >= longest), longest), self.max_length)

    def take(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [M, length] and lengths [M] of ``rows``."""
        ids = self.ids[rows, :length]
        return np.pad(ids, ((0, 0), (0, length - ids.shape[1]))), self.lengths[rows]


def tokenize_texts(encoder: SentenceEncoder, texts: Sequence[str], max_length: int | None = None) -> TokenTable:
    """Tokenise ``texts`` with special tokens, each cut to ``max_length`` tokens (at most the encoder's own)."""
    limit = min(max_length or encoder.max_length, encoder.max_length)
    tokenizer = encoder.tokenizer
    if limit <= tokenizer.num_special_tokens_to_add(is_pair=False):
        raise UserError(f"a text limit of {limit} tokens leaves no room for text; raise it")
    tokenizer.enable_truncation(limit)
    rows = [row.ids for row in tokenizer.encode_batch([text.lower() if encoder.lowercase else text for text in texts])]
    tokenizer.no_truncation()
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), int(lengths.max(initial=1))), encoder.config.pad_token_id, np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = [token for row in rows for token in row]
    return TokenTable(ids, lengths, limit)


def encode_table(
    model: TextEncoder, params: Mapping[str, Any], table: TokenTable, *, batch_size: int = 256
) -> Float[np.ndarray, "N D"]:
    """Vectors of all texts of ``table``, without dropout, the long ones batched with the long."""
    order = np.argsort(table.lengths, kind="stable")
    vectors = np.empty((len(order), model.config.hidden_size), np.float32)
    params = sharding.place(params)
    batch_size = len(sharding.padded_rows(min(batch_size, len(order)), sharding.AXES))
    encode = sharding.on_mesh(_encode)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        padded = np.resize(rows, batch_size)
        tokens = sharding.place_batch(table.take(padded, table.bucket(rows)), sharding.AXES)
        vectors[rows] = encode(model, params, *tokens)[: len(rows)]
    return vectors


@partial(jax.jit, static_argnums=0)
def _encode(model: TextEncoder, params: Mapping[str, Any], ids: jax.Array, lengths: jax.Array) -> jax.Array:
    return sharding.constrain(model.apply({"params": params}, ids, lengths), P())


def encode_texts(encoder: SentenceEncoder, texts: Sequence[str], max_length: int | None = None) -> np.ndarray:
    """Vectors float32 [len(texts), D] of ``texts``."""
    if not texts:
        return np.zeros((0, encoder.dim), np.float32)
    return encode_table(encoder.model, encoder.params, tokenize_texts(encoder, texts, max_length))


def init_params(config: TextEncoderConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters as BERT initialises them: N(0, 0.02) matrices, zero biases."""
    model = TextEncoder(config)
    shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))["params"]
    leaves, tree = jax.tree.flatten_with_path(shapes)
    keys = jax.random.split(key, len(leaves))

    def draw(path: tuple, shape: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        name = path[-1].key
        if name in ("kernel", "embedding"):
            return 0.02 * jax.random.normal(key, shape.shape)
        return jnp.full(shape.shape, 1.0 if name == "scale" else 0.0, jnp.float32)

    return jax.tree.unflatten(tree, [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)])
