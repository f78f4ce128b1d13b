"""Longformer in the Hugging Face format: a local directory or a name on the hub, as RECFORMER's start.

RECFORMER has token types and item positions that a Longformer lacks; these are drawn anew, as its authors do.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from allmrec_jax.assets import ASSETS
from allmrec_jax.errors import UserError
from allmrec_jax.models.longformer import LongformerConfig, draw_params, param_shapes
from allmrec_jax.pretrained.hub import LONGFORMER, locate, locate_weights
from allmrec_jax.pretrained.schemas import LongformerFile, read_object
from allmrec_jax.pretrained.tokenizer import check_vocabulary, read_tokenizer, vocabulary_size
from allmrec_jax.pretrained.weights import check_weights, open_weights
from allmrec_jax.rng import numpy_rng

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FRESH = ("token_type_embeddings", "item_position_embeddings")
"""Embeddings that RECFORMER adds to a Longformer."""

UNUSED = ("pooler.", "embeddings.position_ids", "lm_head.decoder.")
"""Checkpoint keys that nothing here depends on: a pooler, a buffer, the output layer (it is the word embeddings)."""


@dataclasses.dataclass(frozen=True)
class LoadedLongformer:
    """A Longformer with its weights and tokenizer.

    Attributes:
        config: of the checkpoint.
        params: ``encoder`` and ``head``.
        tokenizer: of the ``tokenizers`` library, padding and truncation off.
        start: id of ``<s>``; ``mask`` of the mask token.
        fingerprint: SHA-256 of weights, configuration and tokenizer.
    """

    config: LongformerConfig
    params: dict[str, Any]
    tokenizer: "Tokenizer"
    start: int
    mask: int
    fingerprint: str


def load_longformer(name_or_path: str | Path) -> LoadedLongformer:
    """Load a Longformer with its masked-token head (drawn anew where the checkpoint has none).

    Args:
        name_or_path: a directory with ``config.json``, ``tokenizer.json`` and ``model.safetensors`` or
            ``pytorch_model.bin``, or a name on the Hugging Face hub.

    Raises:
        UserError: a file is missing or not a Longformer's, or a weight is unknown, missing or mis-shaped.
    """
    path = locate(name_or_path, LONGFORMER)
    config = _read_config(path / "config.json")
    tokenizer, start, mask = load_tokenizer(path / "tokenizer.json", "<s>", "<mask>")
    check_vocabulary(vocabulary_size(tokenizer), config.vocab_size, path)
    weights = open_weights(locate_weights(name_or_path, LONGFORMER), lambda key: key.removeprefix("longformer."))
    weights = {name: stored for name, stored in weights.items() if not name.startswith(UNUSED)}
    head = any(name.startswith("lm_head.") for name in weights)
    layout = {key: at for key, at in _layout(config).items() if head or not key.startswith("lm_head.")}
    params = param_shapes(config)
    shapes = {key: _node(params, names).shape[:: -1 if transpose else 1] for key, (names, transpose) in layout.items()}
    check_weights(weights, shapes, path)
    for key, (names, transpose) in layout.items():
        value = weights[key].read(()).astype(np.float32)
        _node(params, names[:-1])[names[-1]] = np.ascontiguousarray(value.T if transpose else value)
    if not head:
        params["head"] = draw_params(params["head"], numpy_rng(0, "longformer/head"))
    return LoadedLongformer(config, params, tokenizer, start, mask, _fingerprint(config, params, tokenizer))


def nano_longformer(config: LongformerConfig, seed: int) -> LoadedLongformer:
    """A Longformer from scratch with ``sbert-nano``'s tokenizer, which decides ``vocab_size`` and the padding's id."""
    tokenizer, start, mask = load_tokenizer(ASSETS / "sbert-nano" / "tokenizer.json", "[CLS]", "[MASK]")
    config = dataclasses.replace(config, vocab_size=tokenizer.get_vocab_size(), pad_token_id=0)
    params = draw_params(param_shapes(config), numpy_rng(seed, "longformer/init"))
    return LoadedLongformer(config, params, tokenizer, start, mask, _fingerprint(config, params, tokenizer))


def as_recformer(loaded: LoadedLongformer, window: int, items: int, seed: int) -> LoadedLongformer:
    """The same weights with RECFORMER's window, and new embeddings of four token types and ``items`` positions."""
    config = dataclasses.replace(loaded.config, attention_window=window, type_vocab_size=4, item_positions=items + 1)
    shapes = param_shapes(config)["encoder"]
    fresh = draw_params({name: shapes[name] for name in FRESH}, numpy_rng(seed, "recformer/init"))
    encoder = {**loaded.params["encoder"], **fresh}
    return dataclasses.replace(loaded, config=config, params={**loaded.params, "encoder": encoder})


def load_tokenizer(file: Path, start: str, mask: str) -> tuple["Tokenizer", int, int]:
    """A fast tokenizer and two of its special tokens; :class:`UserError` if it is missing, damaged or lacks them."""
    tokenizer = read_tokenizer(file)
    first, masked = tokenizer.token_to_id(start), tokenizer.token_to_id(mask)
    if first is None or masked is None:
        raise UserError(f"{file}: no {start} or no {mask} among its tokens; this is not a Longformer's tokenizer")
    return tokenizer, first, masked


def _read_config(file: Path) -> LongformerConfig:
    read = read_object(file, LongformerFile)
    if read["model_type"] != "longformer":
        raise UserError(f"{file}: model_type is {read['model_type']!r}, not 'longformer'")
    names = {field.name for field in dataclasses.fields(LongformerConfig)} - {"item_positions"}
    values = {name: read[name] for name in names if name in read}
    window = values.get("attention_window", LongformerConfig.attention_window)
    if isinstance(window, list):
        if len(set(window)) != 1:
            raise UserError(f"{file}: layers of different attention_window are not supported")
        values["attention_window"] = window[0]
    try:
        return LongformerConfig(**values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _node(tree: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        tree = tree[name]
    return tree


def _layout(config: LongformerConfig) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Checkpoint key → where it lies in our tree, and whether it is transposed there."""
    table: dict[str, tuple[tuple[str, ...], bool]] = {}

    def matrix(key: str, *names: str) -> None:
        table[f"{key}.weight"] = ((*names, "kernel"), True)
        table[f"{key}.bias"] = ((*names, "bias"), False)

    def norm(key: str, *names: str) -> None:
        table[f"{key}.weight"] = ((*names, "scale"), False)
        table[f"{key}.bias"] = ((*names, "bias"), False)

    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table[f"embeddings.{name}.weight"] = (("encoder", name, "embedding"), False)
    norm("embeddings.LayerNorm", "encoder", "embedding_norm")
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{layer}", ("encoder", f"layer_{layer}")
        for ending in ("", "_global"):
            for short, name in zip("qkv", ("query", "key", "value"), strict=True):
                matrix(f"{theirs}.attention.self.{name}{ending}", *ours, f"{short}{ending}")
        matrix(f"{theirs}.attention.output.dense", *ours, "out")
        norm(f"{theirs}.attention.output.LayerNorm", *ours, "attention_norm")
        matrix(f"{theirs}.intermediate.dense", *ours, "up")
        matrix(f"{theirs}.output.dense", *ours, "down")
        norm(f"{theirs}.output.LayerNorm", *ours, "output_norm")
    matrix("lm_head.dense", "head", "dense")
    norm("lm_head.layer_norm", "head", "norm")
    table["lm_head.bias"] = (("head", "bias"), False)
    return table


def _fingerprint(config: LongformerConfig, params: Any, tokenizer: "Tokenizer") -> str:
    digest = hashlib.sha256(repr(config).encode())
    digest.update(tokenizer.to_str().encode())
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()
