"""The weights of sentence encoders under Hugging Face's names: which parameter each is, read and written."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from allmrec_jax.models.text_encoder import TextEncoderConfig
from allmrec_jax.pretrained.weights import Weights, check_weights

UNUSED = re.compile(r"pooler\.|cls\.|vocab_(transform|layer_norm|projector)\.|embeddings\.position_ids$")
"""Checkpoint keys that sentence vectors don't depend on: heads of pre-training, and a buffer."""


class _Names(NamedTuple):
    """The names of a layer and of its parts in a family's checkpoints."""

    layer: str
    q: str
    k: str
    v: str
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


_BERT = _Names(
    "encoder.layer.{}",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT = _Names(
    "transformer.layer.{}",
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
_MPNET = _BERT._replace(
    q="attention.attn.q",
    k="attention.attn.k",
    v="attention.attn.v",
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_NAMES = {"distilbert": _DISTILBERT, "mpnet": _MPNET}
"""By family; the others have BERT's."""

_PREFIXES = {"xlm-roberta": "roberta.", "camembert": "roberta."}
"""Before the keys of a checkpoint of a pre-training head, where it is not the family's name."""


def plain(config: TextEncoderConfig, key: str) -> str:
    """A key without the family's name, under which a checkpoint of a pre-training head holds the encoder."""
    name = key.removeprefix(_PREFIXES.get(config.family, f"{config.family}."))
    # TensorFlow's names for a LayerNorm are still found in old BERT files.
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class _Leaf(NamedTuple):
    """A parameter of the module by its path, the shape of its tensor in a checkpoint, and whether that is turned."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False


def _layout(config: TextEncoderConfig) -> dict[str, _Leaf]:
    """Every parameter by its key in a checkpoint."""
    table: dict[str, _Leaf] = {}
    width = config.hidden_size

    def matrix(key: str, outputs: int, inputs: int, *path: str) -> None:
        table[f"{key}.weight"] = _Leaf((*path, "kernel"), (outputs, inputs), transposed=True)
        table[f"{key}.bias"] = _Leaf((*path, "bias"), (outputs,))

    def norm(key: str, *path: str) -> None:
        table[f"{key}.weight"] = _Leaf((*path, "scale"), (width,))
        table[f"{key}.bias"] = _Leaf((*path, "bias"), (width,))

    rows = {"word": config.vocab_size, "position": config.max_position_embeddings, "token_type": config.type_vocab_size}
    for name, count in rows.items():
        if count:
            table[f"embeddings.{name}_embeddings.weight"] = _Leaf((f"{name}_embeddings", "embedding"), (count, width))
    norm("embeddings.LayerNorm", "embedding_norm")
    if config.distance_buckets:
        shape = (config.distance_buckets, config.num_attention_heads)
        table["encoder.relative_attention_bias.weight"] = _Leaf(("distance_bias", "embedding"), shape)
    names = _NAMES.get(config.family, _BERT)
    for index in range(config.num_hidden_layers):
        theirs, ours = names.layer.format(index), f"layer_{index}"
        for part in ("q", "k", "v", "out"):
            matrix(f"{theirs}.{getattr(names, part)}", width, width, ours, part)
        norm(f"{theirs}.{names.attention_norm}", ours, "attention_norm")
        matrix(f"{theirs}.{names.up}", config.intermediate_size, width, ours, "up")
        matrix(f"{theirs}.{names.down}", width, config.intermediate_size, ours, "down")
        norm(f"{theirs}.{names.output_norm}", ours, "output_norm")
    return table


def params_of(config: TextEncoderConfig, weights: Weights, where: Path) -> dict[str, Any]:
    """Parameters, float32, from a checkpoint under Hugging Face's names.

    Args:
        config: of the encoder.
        weights: of the checkpoint; heads of pre-training are left aside.
        where: the directory or file, for messages.

    Raises:
        UserError: a weight is unknown, missing or mis-shaped.
    """
    layout = _layout(config)
    kept = {key: stored for key, stored in weights.items() if key in layout or not UNUSED.match(key)}
    check_weights(kept, {key: leaf.shape for key, leaf in layout.items()}, where)
    params: dict[str, Any] = {}
    for key, leaf in layout.items():
        value = kept[key].read(()).astype(np.float32)
        tree = params
        for name in leaf.path[:-1]:
            tree = tree.setdefault(name, {})
        tree[leaf.path[-1]] = np.ascontiguousarray(value.T if leaf.transposed else value)
    return params


def stored_arrays(config: TextEncoderConfig, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter as it is, with its key in a checkpoint."""
    for key, leaf in _layout(config).items():
        value: Any = params
        for name in leaf.path:
            value = value[name]
        yield key, np.asarray(value)


def state_of(config: TextEncoderConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) under Hugging Face's names and in its shapes, float32."""
    layout = _layout(config)
    return {
        key: np.ascontiguousarray(array.T if layout[key].transposed else array, np.float32)
        for key, array in stored_arrays(config, params)
    }
