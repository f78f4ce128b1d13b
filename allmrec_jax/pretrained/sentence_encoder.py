"""Sentence encoders in the format of the sentence-transformers library: read, and written back.

A directory holds ``modules.json``, the Hugging Face files of a DistilBERT or BERT, ``1_Pooling/config.json`` and
perhaps a normalisation. A plain Hugging Face directory is read with mean pooling, as sentence-transformers does.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path
from allmrec_jax.models.text_encoder import Pooling, SentenceEncoder, TextEncoder, TextEncoderConfig
from allmrec_jax.pretrained.hub import SENTENCE_ENCODER, locate, locate_weights
from allmrec_jax.pretrained.schemas import (
    ModulesFile,
    PoolingFile,
    SentenceFile,
    TextEncoderFile,
    TokenizerConfigFile,
    checked,
    read_json,
    read_object,
)
from allmrec_jax.pretrained.tokenizer import check_vocabulary, read_auto_tokenizer, read_tokenizer, vocabulary_size
from allmrec_jax.pretrained.weights import Weights, check_weights, open_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTINGS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlnet")
)
"""How texts are read; sentence-transformers once named the file after the family of the model."""

UNUSED = re.compile(r"pooler\.|cls\.|vocab_(transform|layer_norm|projector)\.|embeddings\.position_ids$")
"""Checkpoint keys that sentence vectors don't depend on: heads of pre-training, and a buffer."""

POOLING_NAMES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def load_sentence_encoder(name_or_path: str | os.PathLike, dtype: jnp.dtype = jnp.float32) -> SentenceEncoder:
    """Load a sentence encoder.

    Args:
        name_or_path: a directory, the packaged ``sbert-nano``, or a name on the Hugging Face hub.
        dtype: of the computation; parameters are float32.

    Raises:
        UserError: a missing file, an unsupported module, or a weight that is unknown, missing or mis-shaped.
    """
    root = locate(str(name_or_path), SENTENCE_ENCODER)
    folder, pooling, normalize = _modules(root)
    path = root / folder
    config = _read_config(path / "config.json")
    tokenizer, tokenizer_config = _tokenizer(path)
    check_vocabulary(vocabulary_size(tokenizer), config.vocab_size, path)
    sentence = next((read_object(path / name, SentenceFile) for name in SETTINGS if (path / name).is_file()), {})
    weights = open_weights(locate_weights(str(name_or_path), SENTENCE_ENCODER, folder), partial(_plain, config))
    limit = sentence.get("max_seq_length") or tokenizer_config.get("model_max_length") or config.max_position_embeddings
    return SentenceEncoder(
        model=TextEncoder(config, pooling, normalize, jnp.dtype(dtype)),
        params=params_of(config, weights, path),
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        max_length=int(min(limit, config.max_position_embeddings)),
        lowercase=bool(sentence.get("do_lower_case", False)),
        source=str(name_or_path),
    )


def save_sentence_encoder(path: Path, encoder: SentenceEncoder, *, card: str = "") -> None:
    """Write ``encoder`` in float32 as a directory that sentence-transformers loads; an existing one is replaced.

    Args:
        card: text of ``README.md``, the model card.
    """
    from safetensors.numpy import save_file

    config, modules = encoder.config, ["Transformer", "Pooling"] + ["Normalize"] * encoder.normalize
    folders = ["", "1_Pooling", "2_Normalize"][: len(modules)]
    pooling = {name: mode == encoder.pooling for name, mode in POOLING_NAMES.items()}
    files: dict[str, Any] = {
        "config.json": {**config.to_dict(), "dtype": "float32"},
        "modules.json": [
            {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{module}"}
            for i, (folder, module) in enumerate(zip(folders, modules, strict=True))
        ],
        "sentence_bert_config.json": {"max_seq_length": encoder.max_length, "do_lower_case": encoder.lowercase},
        "1_Pooling/config.json": {"word_embedding_dimension": encoder.dim, **pooling},
        "tokenizer_config.json": {**encoder.tokenizer_config, "model_max_length": encoder.max_length},
    }
    with atomic_path(path) as folder:
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(card or "A sentence encoder written by allmrec-jax.\n")
        encoder.tokenizer.save(str(folder / "tokenizer.json"))
        save_file(state_of(config, encoder.params), folder / "model.safetensors", metadata={"format": "pt"})


def state_of(config: TextEncoderConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) under Hugging Face's names, float32."""
    state = {}
    for key, (names, transpose) in _layout(config).items():
        value = np.asarray(_get(params, names))
        state[key] = np.ascontiguousarray(value.T if transpose else value, np.float32)
    return state


def fingerprint(encoder: SentenceEncoder) -> str:
    """SHA-256 (hex) of what decides an encoder's vectors: weights, configuration, tokenizer."""
    digest = hashlib.sha256(repr((encoder.model, encoder.max_length, encoder.lowercase)).encode())
    digest.update(encoder.tokenizer.to_str().encode())
    for key, (names, _) in sorted(_layout(encoder.config).items()):
        digest.update(key.encode() + np.ascontiguousarray(_get(encoder.params, names)).tobytes())
    return digest.hexdigest()


def _read_config(path: Path) -> TextEncoderConfig:
    body = read_object(path, TextEncoderFile)
    try:
        config = TextEncoderConfig.from_dict(body)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{path}: {config.num_attention_heads} attention heads do not divide width {config.hidden_size}"
        )
    return config


def _modules(root: Path) -> tuple[str, Pooling, bool]:
    """The folder of the Transformer inside the directory, the pooling, and whether vectors are normalised."""
    listing = root / "modules.json"
    if not listing.exists():
        return "", "mean", False
    modules = checked(listing, read_json(listing), ModulesFile)
    folders = {module.type.rsplit(".", 1)[-1]: module.path for module in modules}
    if unknown := sorted(set(folders) - {"Transformer", "Pooling", "Normalize"}):
        raise UserError(f"{listing}: module {unknown[0]} is not supported (Transformer, Pooling and Normalize are)")
    if "Pooling" not in folders:
        raise UserError(f"{listing}: no Pooling module")
    return folders.get("Transformer", ""), _pooling(root / folders["Pooling"] / "config.json"), "Normalize" in folders


def _pooling(path: Path) -> Pooling:
    config = read_object(path, PoolingFile)
    modes = config.get("pooling_mode") or [
        POOLING_NAMES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_NAMES.values():
        raise UserError(f"{path}: pooling {', '.join(modes) or 'none'} is not supported; one of mean, cls, max is")
    return modes[0]


def _tokenizer(path: Path) -> tuple["Tokenizer", dict[str, Any]]:
    config_path = path / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    checked(config_path, config, TokenizerConfigFile)
    if (path / "tokenizer.json").exists():
        return read_tokenizer(path / "tokenizer.json"), config
    if not (path / "vocab.txt").exists():
        raise UserError(f"{path}: neither tokenizer.json nor vocab.txt")
    tokenizer = read_auto_tokenizer(path).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, config


def _plain(config: TextEncoderConfig, key: str) -> str:
    """A key without the family's name, under which a checkpoint of a pre-training head holds the encoder."""
    name = key.removeprefix("distilbert." if config.distil else "bert.")
    # TensorFlow's names for a LayerNorm are still found in old BERT files.
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _layout(config: TextEncoderConfig) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Checkpoint key -> (path in our parameters, whether the matrix is transposed)."""
    table: dict[str, tuple[tuple[str, ...], bool]] = {}

    def matrix(key: str, *names: str) -> None:
        table[f"{key}.weight"] = ((*names, "kernel"), True)
        table[f"{key}.bias"] = ((*names, "bias"), False)

    def norm(key: str, *names: str) -> None:
        table[f"{key}.weight"] = ((*names, "scale"), False)
        table[f"{key}.bias"] = ((*names, "bias"), False)

    for name in ["word_embeddings", "position_embeddings"] + ["token_type_embeddings"] * (not config.distil):
        table[f"embeddings.{name}.weight"] = ((name, "embedding"), False)
    norm("embeddings.LayerNorm", "embedding_norm")
    for i in range(config.num_hidden_layers):
        ours = f"layer_{i}"
        if config.distil:
            theirs = f"transformer.layer.{i}"
            for name in "qkv":
                matrix(f"{theirs}.attention.{name}_lin", ours, name)
            matrix(f"{theirs}.attention.out_lin", ours, "out")
            norm(f"{theirs}.sa_layer_norm", ours, "attention_norm")
            matrix(f"{theirs}.ffn.lin1", ours, "up")
            matrix(f"{theirs}.ffn.lin2", ours, "down")
            norm(f"{theirs}.output_layer_norm", ours, "output_norm")
        else:
            theirs = f"encoder.layer.{i}"
            for name, full in zip("qkv", ("query", "key", "value"), strict=True):
                matrix(f"{theirs}.attention.self.{full}", ours, name)
            matrix(f"{theirs}.attention.output.dense", ours, "out")
            norm(f"{theirs}.attention.output.LayerNorm", ours, "attention_norm")
            matrix(f"{theirs}.intermediate.dense", ours, "up")
            matrix(f"{theirs}.output.dense", ours, "down")
            norm(f"{theirs}.output.LayerNorm", ours, "output_norm")
    return table


def _shape(config: TextEncoderConfig, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of a checkpoint's tensor."""
    d, up = config.hidden_size, config.intermediate_size
    tables = {
        "word_embeddings": config.vocab_size,
        "position_embeddings": config.max_position_embeddings,
        "token_type_embeddings": config.type_vocab_size,
    }
    if names[0] in tables:
        return (tables[names[0]], d)
    rows = up if names[-2] == "up" else d
    if names[-1] != "kernel":
        return (rows,)
    return (rows, up if names[-2] == "down" else d)


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
    kept = {name: stored for name, stored in weights.items() if name in layout or not UNUSED.match(name)}
    check_weights(kept, {name: _shape(config, name, names) for name, (names, _) in layout.items()}, where)
    params: dict[str, Any] = {}
    for name, (names, transpose) in layout.items():
        value = kept[name].read(()).astype(np.float32)
        _set(params, names, np.ascontiguousarray(value.T if transpose else value))
    return params


def _get(tree: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        tree = tree[name]
    return tree


def _set(tree: dict[str, Any], names: tuple[str, ...], value: np.ndarray) -> None:
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = value
