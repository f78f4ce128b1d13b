"""Sentence encoders in the format of the sentence-transformers library: read, and written back.

A directory holds ``modules.json``, the Hugging Face files of a DistilBERT or BERT, ``1_Pooling/config.json`` and
perhaps a normalisation. A plain Hugging Face directory is read with mean pooling, as sentence-transformers does.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path
from allmrec_jax.models.text_encoder import Pooling, SentenceEncoder, TextEncoder, TextEncoderConfig
from allmrec_jax.pretrained.hub import WEIGHTS, locate, open_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent.parent / "assets"

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
    path = _locate(str(name_or_path))
    config_path = path / "config.json"
    try:
        config = TextEncoderConfig.from_dict(_read_json(config_path))
    except UserError as error:
        raise UserError(f"{config_path}: {error}") from None
    pooling, normalize = _modules(path)
    tokenizer, tokenizer_config = _tokenizer(path)
    sentence_config = path / "sentence_bert_config.json"
    sentence = _read_json(sentence_config) if sentence_config.exists() else {}
    limit = sentence.get("max_seq_length") or tokenizer_config.get("model_max_length") or config.max_position_embeddings
    return SentenceEncoder(
        model=TextEncoder(config, pooling, normalize, jnp.dtype(dtype)),
        params=params_of(config, *open_weights(path)),
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


def _locate(name: str) -> Path:
    if name == "sbert-nano":
        return ASSETS / name
    patterns = ("*.json", "vocab.txt", *WEIGHTS, "1_Pooling/*", "2_Normalize/*")
    return locate(name, "sentence encoder", patterns)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; is this a sentence-transformers directory?") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _modules(path: Path) -> tuple[Pooling, bool]:
    listing = path / "modules.json"
    if not listing.exists():
        return "mean", False
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in _read_json(listing)}
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise UserError(f"{listing}: module {unknown[0]} is not supported (Transformer, Pooling and Normalize are)")
    if "Pooling" not in kinds:
        raise UserError(f"{listing}: no Pooling module")
    pooling_path = path / kinds["Pooling"] / "config.json"
    config = _read_json(pooling_path)
    modes = config.get("pooling_mode") or [
        POOLING_NAMES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_NAMES.values():
        raise UserError(
            f"{pooling_path}: pooling {', '.join(modes) or 'none'} is not supported; one of mean, cls, max is"
        )
    return modes[0], "Normalize" in kinds


def _tokenizer(path: Path) -> tuple["Tokenizer", dict[str, Any]]:
    config_path = path / "tokenizer_config.json"
    config = _read_json(config_path) if config_path.exists() else {}
    if (path / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the Rust library raises nothing narrower
            raise UserError(f"{path / 'tokenizer.json'}: {error}") from None
    elif (path / "vocab.txt").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer
    else:
        raise UserError(f"{path}: neither tokenizer.json nor vocab.txt")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, config


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


def params_of(
    config: TextEncoderConfig, keys: Iterable[str], read: Callable[[str], np.ndarray], file: Path
) -> dict[str, Any]:
    """Parameters from a checkpoint under Hugging Face's names.

    Args:
        keys: of the checkpoint, with or without the family's prefix; heads of pre-training are left aside.
        read: a weight by its key.
        file: named in errors.

    Raises:
        UserError: a weight is unknown, missing, there twice or mis-shaped.
    """
    layout = _layout(config)
    params: dict[str, Any] = {}
    seen: set[str] = set()
    for key in keys:
        # A checkpoint of a pre-training head holds the encoder under its family's name.
        name = key.removeprefix("distilbert." if config.distil else "bert.")
        if name not in layout:
            # TensorFlow's names for a LayerNorm, still found in old BERT files.
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name in seen:
            raise UserError(f"{file}: weight {name} is there twice")
        if name not in layout:
            if UNUSED.match(name):
                continue
            raise UserError(f"{file}: unknown weight {key}")
        names, transpose = layout[name]
        value = read(key)
        if value.shape != (expected := _shape(config, name, names)):
            raise UserError(f"{file}: weight {key} has shape {value.shape}, config.json asks for {expected}")
        _set(params, names, np.ascontiguousarray((value.T if transpose else value).astype(np.float32)))
        seen.add(name)
    if missing := [name for name in layout if name not in seen]:
        raise UserError(f"{file}: weight {missing[0]} is missing ({len(missing)} in all)")
    return params


def _get(tree: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        tree = tree[name]
    return tree


def _set(tree: dict[str, Any], names: tuple[str, ...], value: np.ndarray) -> None:
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = value
