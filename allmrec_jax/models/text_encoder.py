"""Sentence encoders of BERT's kin as one Flax module, with pooling, and their token tables.

DistilBERT (Sanh et al. 2019) is BERT (Devlin et al. 2019) without token types and without dropout behind the
attention's output. RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT start their position tables behind the padding
token's row. So does MPNet (Song et al. 2020), which has no token types and adds a learned bias of the distance to each
layer's attention scores. Weights are read and written by :mod:`allmrec_jax.pretrained.sentence_encoder`.

Shapes: M texts, T tokens, H heads, D hidden size.
"""

import dataclasses
import re
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

FARTHEST = 128
"""MPNet's distances of so many tokens and more share one bias."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """What decides a BERT's computation, named as in its ``config.json``; ``type_vocab_size`` 0 is DistilBERT."""

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
    def family(self) -> str:
        """Hugging Face's ``model_type``."""
        return "bert" if self.type_vocab_size else "distilbert"

    @property
    def first_position(self) -> int:
        """The row of the position table that a text's first token takes."""
        return 0

    @property
    def distance_buckets(self) -> int:
        """Rows of the table of biases by distance; 0 where there is none."""
        return 0

    @property
    def longest(self) -> int:
        """Tokens that the position table has rows for."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a ``config.json`` of this class's families; a key that is left out has Hugging Face's default."""
        if config.get("model_type") == "distilbert":
            return cls(**{ours: config[theirs] for ours, theirs in _DISTIL_NAMES.items() if theirs in config})
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in config.items() if key in known and value is not None}
        return cls(**{"num_hidden_layers": 12, "type_vocab_size": 2} | values)

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` that Hugging Face reads."""
        values = dataclasses.asdict(self)
        if not self.type_vocab_size:
            del values["type_vocab_size"]
        if self.family == "distilbert":
            values = {theirs: values[ours] for ours, theirs in _DISTIL_NAMES.items()}
        return {"model_type": self.family, "architectures": [_ARCHITECTURES[self.family]], **values}


@dataclasses.dataclass(frozen=True)
class RobertaConfig(TextEncoderConfig):
    """A RoBERTa, or one of the families that differ from it in nothing but the tokenizer."""

    pad_token_id: int = 1
    model_type: str = "roberta"

    @property
    def family(self) -> str:
        """Hugging Face's ``model_type``."""
        return self.model_type

    @property
    def first_position(self) -> int:
        """The row behind the padding token's."""
        return self.pad_token_id + 1


@dataclasses.dataclass(frozen=True)
class MPNetConfig(TextEncoderConfig):
    """An MPNet."""

    vocab_size: int = 30527
    pad_token_id: int = 1
    relative_attention_num_buckets: int = 32

    @property
    def family(self) -> str:
        """Hugging Face's ``model_type``."""
        return "mpnet"

    @property
    def first_position(self) -> int:
        """The third row, whatever the padding token is."""
        return 2

    @property
    def distance_buckets(self) -> int:
        """Rows of the table of biases by distance."""
        return self.relative_attention_num_buckets

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a ``config.json``; MPNet has no token types, whatever stands there."""
        return super().from_dict({**config, "type_vocab_size": 0})


_ARCHITECTURES = {
    "distilbert": "DistilBertModel",
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "mpnet": "MPNetModel",
}

_CONFIGS = {"distilbert": TextEncoderConfig, "bert": TextEncoderConfig, "mpnet": MPNetConfig}
_CONFIGS |= dict.fromkeys(("roberta", "xlm-roberta", "camembert"), RobertaConfig)


def text_encoder_config(config: Mapping[str, Any]) -> TextEncoderConfig:
    """The configuration that a ``config.json`` describes.

    Raises:
        UserError: another model type than those known, positions that are not absolute, a decoder, or an activation
            that is not known.
    """
    family = config.get("model_type")
    if family not in _CONFIGS:
        raise UserError(f"model type {family!r} is not supported; known: {', '.join(_ARCHITECTURES)}")
    if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError("only encoders with absolute positions are supported")
    found = _CONFIGS[family].from_dict(config)
    if found.hidden_act not in ACTIVATIONS:
        raise UserError(f"activation {found.hidden_act!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    if found.longest < 1:
        raise UserError(f"max_position_embeddings {found.max_position_embeddings} leaves no position for a token")
    return found


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


def distance_bucket(length: int, buckets: int) -> Int[np.ndarray, "T T"]:
    """The row of the table of biases for each query (row) and key (column): MPNet's, which are T5's (Raffel et al.).

    Half of the rows are for keys behind the query. Near distances have a row each, far ones share by their logarithm.
    """
    behind = np.arange(length)[None] - np.arange(length)[:, None]
    half, near = buckets // 2, buckets // 4
    distance = np.abs(behind)
    scale = np.float32((half - near) / np.log(FARTHEST / near))
    far = near + (np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near)) * scale).astype(np.int64)
    return np.where(behind > 0, half, 0) + np.where(distance < near, distance, np.minimum(far, half - 1))


class Block(nn.Module):
    """One post-norm encoder layer."""

    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "M T D"],
        mask: Bool[Array, "M T"],
        bias: Float[Array, "H T T"] | None,
        deterministic: bool,
    ) -> Float[Array, "M T D"]:
        """Attention over the tokens under ``mask``, its scores with ``bias``, then the feed-forward part."""
        cfg = self.config
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=cfg.layer_norm_eps, dtype=self.dtype)
        dropout = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)

        heads = (cfg.num_attention_heads, cfg.hidden_size // cfg.num_attention_heads)
        q, k, v = (dense(cfg.hidden_size, name=name)(x).reshape(*x.shape[:2], *heads) for name in "qkv")
        scores = jnp.einsum("mthd,mshd->mhts", q, k) * heads[1] ** -0.5
        if bias is not None:
            scores = scores + bias.astype(scores.dtype)[None]
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(self.dtype)
        weights = nn.Dropout(cfg.attention_probs_dropout_prob, deterministic=deterministic)(weights)
        attended = jnp.einsum("mhts,mshd->mthd", weights, v).reshape(x.shape)
        attended = dense(cfg.hidden_size, name="out")(attended)
        if cfg.family != "distilbert":
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
        positions = cfg.first_position + jnp.arange(ids.shape[1])
        x = x + embed(cfg.max_position_embeddings, name="position_embeddings")(positions)[None]
        if cfg.type_vocab_size:
            x = x + embed(cfg.type_vocab_size, name="token_type_embeddings")(jnp.zeros_like(ids))
        x = nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)(x)
        bias = None
        if cfg.distance_buckets:
            by_distance = nn.Embed(
                cfg.distance_buckets, cfg.num_attention_heads, dtype=self.dtype, name="distance_bias"
            )
            bias = by_distance(distance_bucket(ids.shape[1], cfg.distance_buckets)).transpose(2, 0, 1)
        for layer in range(cfg.num_hidden_layers):
            x = Block(cfg, self.dtype, name=f"layer_{layer}")(x, mask, bias, deterministic)
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
        prompt: what stands before every text, such as ``"query: "``.
        prompts: what the encoder was trained with, by name.
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
    prompt: str = ""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def prompted(self, prompt: str) -> "SentenceEncoder":
        """This encoder with another prompt: the name of one of its own, or a text; ``""`` leaves it as it is.

        Raises:
            UserError: a single word that is no prompt's name; a text ends in a space or a colon.
        """
        if not prompt:
            return self
        if prompt not in self.prompts and re.fullmatch(r"[\w-]+", prompt):
            known = ", ".join(self.prompts) or "none"
            raise UserError(f"{self.source}: no prompt is named {prompt!r} (there are: {known}); a text ends in ': '")
        return dataclasses.replace(self, prompt=self.prompts.get(prompt, prompt))

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
    """Tokenise ``texts``, the encoder's prompt before each, with special tokens.

    Each is cut to ``max_length`` tokens (at most the encoder's own).
    """
    limit = min(max_length or encoder.max_length, encoder.max_length)
    tokenizer = encoder.tokenizer
    if limit <= tokenizer.num_special_tokens_to_add(is_pair=False):
        raise UserError(f"a text limit of {limit} tokens leaves no room for text; raise it")
    tokenizer.enable_truncation(limit)
    read = [encoder.prompt + text for text in texts]
    rows = [row.ids for row in tokenizer.encode_batch([text.lower() if encoder.lowercase else text for text in read])]
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
