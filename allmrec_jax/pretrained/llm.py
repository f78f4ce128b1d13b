"""Language models in the Hugging Face format: configuration, weights and tokenizer, read and written back.

Every tensor of the checkpoint must be used exactly once and every parameter must be found: an unknown, missing,
twice-set or mis-shaped key is an error that names it. Tensors are read one at a time, of each the slices that this
process's devices hold, so that loading needs little more memory than the parameters themselves.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from allmrec_jax import sharding
from allmrec_jax.checking import checked
from allmrec_jax.errors import UserError, shown
from allmrec_jax.fileio import atomic_path, read_json
from allmrec_jax.models.llm.families import family_of, find_family
from allmrec_jax.models.llm.family import Family, LMConfig
from allmrec_jax.models.llm.room import check_room
from allmrec_jax.pretrained.gguf import gguf_config
from allmrec_jax.pretrained.gguf_tokenizer import gguf_tokenizer
from allmrec_jax.pretrained.hub import LLM, locate, locate_weights
from allmrec_jax.pretrained.placing import load_params
from allmrec_jax.pretrained.schemas import BaseFile, ModelFile, read_object
from allmrec_jax.pretrained.tokenizer import TOKENIZER_FILES, check_vocabulary, read_auto_tokenizer, vocabulary_size
from allmrec_jax.pretrained.weights import Weights, check_weights, open_weights, weight_files

_ROWS = 4096
"""Of a word table, read at once where two are compared."""


def load_checkpoint(
    name_or_path: str | Path, dtype: jnp.dtype = jnp.float32, *, int8: bool = False
) -> tuple[LMConfig, dict[str, Any]]:
    """Configuration and parameters of a language model, in the layout of its family's module.

    Args:
        name_or_path: a directory, a GGUF file, a hub name such as ``facebook/opt-6.7b``, or ``opt-nano`` for the
            packaged model.
        dtype: of the parameters in memory.
        int8: store the layers' kernels in int8, rounded layer by layer from what the files hold
            (:mod:`allmrec_jax.models.llm.int8`).

    Returns:
        the parameters where the family's rules lay them on the mesh in use, or on the first device.

    Raises:
        UserError: a file is missing or damaged, the architecture or its variant is not known, a key is unknown,
            missing, set twice or of another shape than the configuration says, or the mesh in use does not divide the
            heads or has no room for the weights.
    """
    config = load_config(name_or_path)
    _check_mesh(config, str(name_or_path), dtype, int8=int8)
    directory = locate_weights(name_or_path, LLM)
    family = family_of(config)
    weights = open_weights(directory, family.plain)
    for key in [key for key in weights if re.fullmatch(family.buffers, key)]:
        del weights[key]
    expected = {key: leaf.shape for leaf in family.layout(config) for _, key in leaf.keys(config)}
    if family.head not in expected:
        _take_head(weights, family, config)
    check_weights(weights, expected, directory)
    return config, load_params(config, weights, dtype, int8=int8)


def check_llm(name_or_path: str | Path, dtype: jnp.dtype, *, int8: bool = False) -> LMConfig:
    """The configuration of a language model that can be used here, before any weight is read.

    Raises:
        UserError: the mesh in use does not divide its heads or has no room for it, with the nearest mesh that does; or
            its tokenizer belongs to another model; or as :func:`load_config` and :func:`load_tokenizer`.
    """
    config = load_config(name_or_path)
    _check_mesh(config, str(name_or_path), dtype, int8=int8)
    load_tokenizer(name_or_path)
    return config


def load_config(name_or_path: str | Path) -> LMConfig:
    """The configuration of a language model, without its weights.

    Raises:
        UserError: there is none, its architecture is not known here, or it is a variant that is not computed here.
    """
    path = locate(name_or_path, LLM)
    if path.is_file():
        body = gguf_config(path)
    else:
        _refuse_adapter(path)
        path = path / "config.json"
        body = read_object(path, ModelFile)
    family = find_family(body["model_type"], path)
    for key, value in family.variants.items():
        if body.get(key, value) != value:
            raise UserError(
                f"{path}: {key} is {shown(body[key])}; only {family.title} with {key} {value!r} is supported"
            )
    checked(path, body, family.config)
    try:
        return family.config.from_dict(body)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The checkpoint's tokenizer, a fast one of transformers.

    Raises:
        UserError: there is none, it is damaged, or it has more tokens than the model's table of words has rows.
    """
    directory = locate(name_or_path, LLM)
    if directory.is_file():
        tokenizer = gguf_tokenizer(directory)
        check_vocabulary(vocabulary_size(tokenizer), load_config(directory).vocab_size, directory)
        return tokenizer
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{directory}: no tokenizer there (tokenizer.json, or vocab.json and merges.txt)")
    tokenizer = read_auto_tokenizer(directory)
    check_vocabulary(vocabulary_size(tokenizer), load_config(directory).vocab_size, directory)
    return tokenizer


def llm_hash(name_or_path: str | Path) -> str:
    """SHA-256 (hex) over configuration, weights and tokenizer: the identity of a frozen LLM as an input."""
    directory = locate_weights(name_or_path, LLM)
    digest = hashlib.sha256()
    tokenizer = (directory / name for name in TOKENIZER_FILES)
    for file in [directory / "config.json", *weight_files(directory), *tokenizer]:
        if file.is_file():
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def save_checkpoint(
    path: str | Path, config: LMConfig, params: Mapping[str, Any], tokenizer: Any, dtype: jnp.dtype = jnp.float32
) -> None:
    """Write a directory that transformers loads as a causal language model: config, model.safetensors, tokenizer.

    Args:
        path: the directory; replaced as a whole once everything is written.
        config: the model's configuration.
        params: parameters in the layout of the family's module.
        tokenizer: a Hugging Face tokenizer.
        dtype: of the stored weights, ``float16``, ``bfloat16`` or ``float32``.
    """
    from safetensors.numpy import save_file

    family, tensors = family_of(config), {}
    for leaf in family.layout(config):
        value: Any = params
        for name in leaf.path:
            value = value[name]
        array = np.asarray(value).astype(dtype)
        for layer, key in leaf.keys(config):
            one = array if layer is None else array[layer]
            tensors[family.written(key)] = np.ascontiguousarray(one.T if leaf.transposed else one)
    with atomic_path(Path(path)) as directory:
        directory.mkdir(parents=True)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        body = {**config.to_dict(), "dtype": jnp.dtype(dtype).name}
        (directory / "config.json").write_text(json.dumps(body, indent=2) + "\n")
        tokenizer.save_pretrained(directory)


def _check_mesh(config: LMConfig, name: str, dtype: jnp.dtype, *, int8: bool) -> None:
    sharding.check_heads(sharding.current_shape(), config, name)
    check_room(config, name, jnp.dtype(dtype).itemsize, int8=int8)


def _refuse_adapter(directory: Path) -> None:
    """Refuses the directory of a PEFT adapter, which is no model by itself."""
    about = directory / "adapter_config.json"
    if about.is_file() and not (directory / "config.json").is_file():
        base = read_json(about, BaseFile).get("base_model_name_or_path", "its base model")
        raise UserError(
            f"{directory}: a PEFT adapter of {base}, not a model; merge it first (in peft: merge_and_unload, then "
            "save_pretrained), or name the model itself"
        )


def _take_head(weights: Weights, family: Family, config: LMConfig) -> None:
    """Takes the output layer of a tied model out of the weights; where it is stored, it must equal the word table."""
    head, table = weights.pop(family.head, None), weights.get(family.words)
    if head is None or table is None:
        return
    for start in range(0, config.vocab_size, _ROWS):
        rows = (slice(start, min(start + _ROWS, config.vocab_size)),)
        if head.shape != table.shape or not np.array_equal(head.read(rows), table.read(rows)):
            raise UserError(f"{head.file}: {head.key!r} differs from the word embeddings, to which config.json ties it")
