"""Sentence encoders in the format of the sentence-transformers library: read, and written back.

A directory holds ``modules.json``, the Hugging Face files of one of BERT's kin, ``1_Pooling/config.json``, perhaps a
normalisation, and perhaps prompts (``config_sentence_transformers.json``). A plain Hugging Face directory is read with
mean pooling, as sentence-transformers does.
"""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, read_json
from allmrec_jax.models.text_encoder import (
    Pooling,
    SentenceEncoder,
    TextEncoder,
    TextEncoderConfig,
    text_encoder_config,
)
from allmrec_jax.pretrained.hub import SENTENCE_ENCODER, locate, locate_weights
from allmrec_jax.pretrained.schemas import (
    ModulesFile,
    PoolingFile,
    PromptsFile,
    SentenceFile,
    TextEncoderFile,
    TokenizerConfigFile,
    read_object,
)
from allmrec_jax.pretrained.text_encoder_weights import params_of, plain, state_of, stored_arrays
from allmrec_jax.pretrained.tokenizer import check_vocabulary, read_auto_tokenizer, read_tokenizer, vocabulary_size
from allmrec_jax.pretrained.weights import open_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""How texts are read; sentence-transformers once named the file after the family of the model."""

PROMPTS = "config_sentence_transformers.json"
"""The prompts that an encoder was trained with, and the one that is used where none is asked for."""

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
    about = read_object(root / PROMPTS, PromptsFile) if (root / PROMPTS).is_file() else {}
    prompts, chosen = about.get("prompts", {}), about.get("default_prompt_name")
    if chosen is not None and chosen not in prompts:
        raise UserError(f"{root / PROMPTS}: default_prompt_name {chosen!r} is none of the prompts")
    sentence = next((read_object(path / name, SentenceFile) for name in SETTINGS if (path / name).is_file()), {})
    weights = open_weights(locate_weights(str(name_or_path), SENTENCE_ENCODER, folder), partial(plain, config))
    limit = sentence.get("max_seq_length") or tokenizer_config.get("model_max_length") or config.longest
    return SentenceEncoder(
        model=TextEncoder(config, pooling, normalize, jnp.dtype(dtype)),
        params=params_of(config, weights, path),
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        max_length=int(min(limit, config.longest)),
        lowercase=bool(sentence.get("do_lower_case", False)),
        source=str(name_or_path),
        prompt=prompts.get(chosen, ""),
        prompts=prompts,
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
    if encoder.prompt:
        files[PROMPTS] = {"prompts": {"items": encoder.prompt}, "default_prompt_name": "items"}
    with atomic_path(path) as folder:
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(card or "A sentence encoder written by allmrec-jax.\n")
        encoder.tokenizer.save(str(folder / "tokenizer.json"))
        save_file(state_of(config, encoder.params), folder / "model.safetensors", metadata={"format": "pt"})


def fingerprint(encoder: SentenceEncoder) -> str:
    """SHA-256 (hex) of what decides an encoder's vectors: weights, configuration, tokenizer, prompt."""
    digest = hashlib.sha256(repr((encoder.model, encoder.max_length, encoder.lowercase)).encode())
    digest.update(encoder.tokenizer.to_str().encode())
    if encoder.prompt:
        digest.update(b"prompt " + encoder.prompt.encode())
    for key, array in sorted(stored_arrays(encoder.config, encoder.params)):
        digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_config(path: Path) -> TextEncoderConfig:
    body = read_object(path, TextEncoderFile)
    try:
        config = text_encoder_config(body)
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
    modules = read_json(listing, ModulesFile)
    folders = {module["type"].rsplit(".", 1)[-1]: module.get("path", "") for module in modules}
    if unknown := sorted(set(folders) - {"Transformer", "Pooling", "Normalize"}):
        raise UserError(f"{listing}: module {unknown[0]} is not supported (Transformer, Pooling and Normalize are)")
    if "Pooling" not in folders:
        raise UserError(f"{listing}: no Pooling module")
    return folders.get("Transformer", ""), _pooling(root / folders["Pooling"] / "config.json"), "Normalize" in folders


def _pooling(path: Path) -> Pooling:
    config = read_object(path, PoolingFile)
    if not config.get("include_prompt", True):
        raise UserError(f"{path}: include_prompt is false; a pooling without the prompt's tokens is not supported")
    modes = config.get("pooling_mode") or [
        POOLING_NAMES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_NAMES.values():
        raise UserError(f"{path}: pooling {', '.join(modes) or 'none'} is not supported; one of mean, cls, max is")
    return modes[0]


def _tokenizer(path: Path) -> tuple["Tokenizer", dict[str, Any]]:
    config_path = path / "tokenizer_config.json"
    config = read_json(config_path, TokenizerConfigFile) if config_path.exists() else {}
    if (path / "tokenizer.json").exists():
        return read_tokenizer(path / "tokenizer.json"), config
    if not any((path / name).exists() for name in ("vocab.txt", "vocab.json")):
        raise UserError(f"{path}: neither tokenizer.json nor vocab.txt or vocab.json")
    tokenizer = read_auto_tokenizer(path).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, config
