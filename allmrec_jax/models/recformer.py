"""RECFORMER (Li et al. 2023): a Longformer that reads a history of items as one text.

An item is a text of its attributes, names and values; a history is ``<s>`` and then its items, the latest first, each
with a position of its own. The state at ``<s>`` stands for the user, that of an item's own text for the item, and a
score is their cosine over a temperature.

Shapes: B users, T tokens, D model, K candidates, N items.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.fileio import load_arrays, save_arrays
from allmrec_jax.models.longformer import Longformer, LongformerConfig, param_shapes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, NAME, VALUE, PAD = range(4)
"""Token types."""

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Padded lengths: each is one compiled program."""

ROWS = 32
"""Histories encoded at once outside training."""


@dataclasses.dataclass(frozen=True)
class RecformerConfig:
    """What decides the computation.

    Attributes:
        longformer: with token types and item positions.
        start: id of ``<s>``.
        temperature: that cosines are divided by.
        max_tokens: of a history; what is beyond is cut off.
    """

    longformer: LongformerConfig
    start: int
    temperature: float = 0.05
    max_tokens: int = 1024

    @property
    def max_items(self) -> int:
        """Items of a history at most."""
        return self.longformer.item_positions - 1


class Inputs(NamedTuple):
    """Texts in tokens, padded on the right."""

    ids: Int[Any, "B T"]
    types: Int[Any, "B T"]
    places: Int[Any, "B T"]


@dataclasses.dataclass(frozen=True)
class ItemTokens:
    """The tokens of every item, made once; item 0 has none.

    Attributes:
        ids: [N+1, L], padded on the right.
        types: :data:`NAME` or :data:`VALUE` of each, [N+1, L].
        lengths: [N+1].
    """

    ids: Int[np.ndarray, "N+1 L"]
    types: Int[np.ndarray, "N+1 L"]
    lengths: Int[np.ndarray, "N+1"]

    def inputs(self, config: RecformerConfig, histories: Sequence[np.ndarray]) -> Inputs:
        """Histories in time order (of distinct lengths, without padding) as what the model reads."""
        rows = []
        for history in histories:
            latest = np.asarray(history)[::-1][: config.max_items]
            kept = np.arange(self.ids.shape[1])[None] < self.lengths[latest][:, None]
            places = np.broadcast_to(1 + np.arange(len(latest))[:, None], kept.shape)[kept]
            rows.append((self.ids[latest][kept], self.types[latest][kept], places))
        longest = min(1 + max(len(ids) for ids, _, _ in rows), config.max_tokens)
        length = min(next((size for size in LENGTHS if size >= longest), longest), config.max_tokens)
        shape = (len(rows), length)
        made = Inputs(
            np.full(shape, config.longformer.pad_token_id, np.int32),
            np.full(shape, PAD, np.int32),
            np.zeros(shape, np.int32),
        )
        for row, parts in enumerate(rows):
            count = min(len(parts[0]), length - 1)
            for array, first, part in zip(made, (config.start, START, 0), parts, strict=True):
                array[row, 0], array[row, 1 : 1 + count] = first, part[:count]
        return made


def tokenize_items(tokenizer: "Tokenizer", attributes: Mapping[str, Sequence[str]], max_tokens: int) -> ItemTokens:
    """The items' attributes in tokens: of each its name, then its value, together at most ``max_tokens``.

    Args:
        tokenizer: without padding and truncation.
        attributes: name to the values of items 0..N; item 0 and empty values are left out.
        max_tokens: of one attribute.
    """
    count = len(next(iter(attributes.values())))
    ids: list[list[int]] = [[] for _ in range(count)]
    types: list[list[int]] = [[] for _ in range(count)]
    for name, values in attributes.items():
        head = tokenizer.encode(name, add_special_tokens=False).ids
        encoded = tokenizer.encode_batch(list(values), add_special_tokens=False)
        for item in range(1, count):
            if values[item]:
                tokens = (head + encoded[item].ids)[:max_tokens]
                ids[item] += tokens
                types[item] += [NAME if place < len(head) else VALUE for place in range(len(tokens))]
    lengths = np.array([len(row) for row in ids], np.int32)
    arrays = []
    for rows in (ids, types):
        array = np.zeros((count, max(1, int(lengths.max()))), np.int32)
        array[np.arange(array.shape[1]) < lengths[:, None]] = [token for row in rows for token in row]
        arrays.append(array)
    return ItemTokens(arrays[0], arrays[1], lengths)


def encode(config: RecformerConfig, params: Any, inputs: Inputs, key: jax.Array | None = None) -> Float[Array, "B D"]:
    """The states at ``<s>``; ``key`` is for dropout, ``None`` for none."""
    return states(config, params, inputs, key, first_only=True)[:, 0]


def states(
    config: RecformerConfig, params: Any, inputs: Inputs, key: jax.Array | None = None, *, first_only: bool = False
) -> Float[Array, "B T D"]:
    """The states of all tokens, or, [B, 1, D], of the first one."""
    rngs = None if key is None else {"dropout": key}
    model = Longformer(config.longformer)
    found = model.apply({"params": params}, *inputs, deterministic=key is None, first_only=first_only, rngs=rngs)
    return jnp.asarray(found)


def normalized(vectors: Float[Array | np.ndarray, "*S D"]) -> Float[Array, "*S D"]:
    """Vectors of length 1."""
    return jnp.asarray(vectors) / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


@partial(jax.jit, static_argnums=0)
def _encode(config: RecformerConfig, params: Any, inputs: Inputs) -> Float[Array, "B D"]:
    return sharding.constrain(encode(config, params, inputs), P())


def encode_histories(
    config: RecformerConfig, params: Any, tokens: ItemTokens, histories: Sequence[np.ndarray]
) -> Float[np.ndarray, "U D"]:
    """Vectors of many histories, without dropout, the long ones batched with the long."""
    sizes = [int(tokens.lengths[history].sum()) for history in histories]
    order = np.argsort(sizes, kind="stable").tolist()
    vectors = np.zeros((len(histories), config.longformer.hidden_size), np.float32)
    params, size = sharding.place(params), len(sharding.padded_rows(ROWS, sharding.AXES))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        inputs = tokens.inputs(config, [histories[row] for row in itertools.islice(itertools.cycle(rows), size)])
        found = sharding.on_mesh(_encode)(config, params, sharding.place_batch(inputs, sharding.AXES))
        vectors[rows] = np.asarray(found)[: len(rows)]
    return vectors


def item_table(config: RecformerConfig, params: Any, tokens: ItemTokens) -> Float[np.ndarray, "N+1 D"]:
    """The vector of every item, read as a history of its own; row 0 is zero."""
    items = [np.array([item]) for item in range(1, len(tokens.lengths))]
    vectors = encode_histories(config, params, tokens, items)
    return np.concatenate([np.zeros_like(vectors[:1]), vectors])


class RecformerCF:
    """A trained RECFORMER behind the CF protocol (:mod:`allmrec_jax.models.cf.protocol`)."""

    live = True

    def __init__(
        self, config: RecformerConfig, params: Any, table: np.ndarray, tokens: ItemTokens, identity: str = ""
    ) -> None:
        self.config, self.tokens, self.identity = config, tokens, identity
        self.params, self.table = jax.tree.map(jnp.asarray, params), np.asarray(table)

    @classmethod
    def from_export(cls, directory: Path, config: Mapping[str, Any], identity: str) -> "RecformerCF":
        """A model from a run's ``export``.

        Raises:
            UserError: a file is missing or damaged, or a parameter is missing, unexpected or of another shape.
        """
        settled = RecformerConfig(**{**config, "longformer": LongformerConfig(**config["longformer"])})
        params = load_arrays(directory / "params.safetensors", param_shapes(settled.longformer)["encoder"])
        items = load_arrays(directory / "items.safetensors")
        tokens = ItemTokens(items["ids"], items["types"], items["lengths"])
        return cls(settled, params, items["table"], tokens, identity)

    def save(self, directory: Path) -> None:
        """Writes what :meth:`from_export` reads, but for ``cf.json``."""
        save_arrays(directory / "params.safetensors", jax.device_get(self.params))
        tokens = {"ids": self.tokens.ids, "types": self.tokens.types, "lengths": self.tokens.lengths}
        save_arrays(directory / "items.safetensors", {"table": self.table, **tokens})

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.table) - 1

    @property
    def dim(self) -> int:
        """D."""
        return self.table.shape[1]

    def at(self, cut: str) -> "RecformerCF":
        """Itself."""
        return self

    def item_vectors(self) -> Float[np.ndarray, "N+1 D"]:
        """The item table."""
        return self.table

    def user_vectors(
        self, users: Any, items: Int[Array | np.ndarray, "B T"], *, key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """The states at ``<s>``; ``users`` is not used. A key means live dropout."""
        histories = [row[row > 0] for row in np.asarray(items)]
        if key is not None:
            return encode(self.config, self.params, self.tokens.inputs(self.config, histories), key)
        return jnp.asarray(encode_histories(self.config, self.params, self.tokens, histories))

    def score(
        self, users: Any, items: Int[Array | np.ndarray, "B T"], candidates: Int[Array | np.ndarray, "B K"]
    ) -> Float[Array, "B K"]:
        """Cosines over the temperature."""
        return jnp.take_along_axis(self.score_catalogue(users, items), jnp.asarray(candidates), axis=1)

    def score_catalogue(self, users: Any, items: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B N+1"]:
        """Cosines with every item over the temperature; column 0, padding's, means nothing."""
        return normalized(self.user_vectors(users, items)) @ normalized(self.table).T / self.config.temperature
