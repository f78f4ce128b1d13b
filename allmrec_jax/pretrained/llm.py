"""OPT weights from and to Hugging Face directories: single or sharded, safetensors or ``.bin``.

Every tensor of the checkpoint must be used exactly once and every parameter must be found: an unknown, missing,
twice-set or mis-shaped key is an error that names it. Tensors are read one at a time, of each the slices that this
process's devices hold, so that loading needs little more memory than the parameters themselves.
"""

import functools
import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from allmrec_jax import assets, sharding
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path
from allmrec_jax.models.llm.int8 import KERNELS, quantize
from allmrec_jax.models.llm.opt import OPT_RULES, POSITION_OFFSET, OPTConfig
from allmrec_jax.models.llm.room import check_room

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Looked for in this order; an index lists the shards."""

_ROWS = 4096
"""Of a word table, read at once where two are compared."""

_PREFIXES = ("model.decoder.", "decoder.")

_REQUIRED_CONFIG = {
    "model_type": "opt",
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "_remove_final_layer_norm": False,
}
"""Variants of the architecture that no published OPT uses and that the module doesn't compute."""


class _Leaf(NamedTuple):
    """One parameter of the Flax module and where it stands in the checkpoint."""

    path: tuple[str, ...]
    key: str  # with {layer} where the parameter is stacked over layers
    shape: tuple[int, ...]  # in the checkpoint, one layer
    transposed: bool = False  # torch's Linear holds [out, in], Flax's Dense [in, out]


def load_opt(
    name_or_path: str | Path, dtype: jnp.dtype = jnp.float32, *, int8: bool = False
) -> tuple[OPTConfig, dict[str, Any]]:
    """Configuration and parameters of an OPT checkpoint, in the layout of :class:`allmrec_jax.models.llm.opt.OPT`.

    Args:
        name_or_path: a directory, a hub name such as ``facebook/opt-6.7b``, or ``opt-nano`` for the packaged model.
        dtype: of the parameters in memory.
        int8: store the layers' kernels in int8, rounded layer by layer from what the files hold
            (:mod:`allmrec_jax.models.llm.int8`).

    Returns:
        the parameters where :data:`allmrec_jax.models.llm.opt.OPT_RULES` lay them on the mesh in use, or on the first
        device.

    Raises:
        UserError: a file is missing or damaged, the configuration is not one of OPT's, a key is unknown, missing,
            set twice or of another shape than the configuration says, or the mesh in use does not divide the heads or
            has no room for the weights.
    """
    config = check_llm(name_or_path, dtype, int8=int8)
    directory = resolve_llm(name_or_path, _download_weights)
    weights = _open_weights(directory)
    _check_keys(directory, config, weights)

    params = {}
    for leaf in _leaves(config):
        if int8 and leaf.path[0] == "layers" and leaf.path[1] in KERNELS and leaf.path[2] == "kernel":
            for name, stack in _load_int8(leaf, config, weights).items():
                params[*leaf.path[:2], name] = stack
        else:
            where = sharding.sharding_of(_spec(leaf.path), _shape(leaf, config))
            params[leaf.path] = _load_leaf(leaf, config, weights, dtype, where)
    return config, _tree(params)


def check_llm(name_or_path: str | Path, dtype: jnp.dtype, *, int8: bool = False) -> OPTConfig:
    """The configuration of a checkpoint that the mesh in use divides and has room for, before any weight is read.

    Raises:
        UserError: it does not, or has not, with the nearest mesh that does; or as :func:`load_config`.
    """
    config = load_config(name_or_path)
    sharding.check_heads(sharding.current_shape(), config, str(name_or_path))
    check_room(config, str(name_or_path), jnp.dtype(dtype).itemsize, int8=int8)
    return config


def load_config(name_or_path: str | Path) -> OPTConfig:
    """The configuration of an OPT checkpoint, as :func:`load_opt` reads it, without its weights.

    Raises:
        UserError: there is none, or it is not one of OPT's.
    """
    return _read_config(resolve_llm(name_or_path, _download_config) / "config.json")


def save_opt(
    path: str | Path, config: OPTConfig, params: Mapping[str, Any], tokenizer: Any, dtype: jnp.dtype = jnp.float32
) -> None:
    """Write a directory that ``OPTForCausalLM`` and ``AutoTokenizer`` load: config, model.safetensors, tokenizer.

    Args:
        path: the directory; replaced as a whole once everything is written.
        config: the model's configuration.
        params: parameters in the layout of :class:`allmrec_jax.models.llm.opt.OPT`.
        tokenizer: a Hugging Face tokenizer.
        dtype: of the stored weights, ``float16``, ``bfloat16`` or ``float32``.
    """
    from safetensors.numpy import save_file

    tensors = {}
    for leaf in _leaves(config):
        value: Any = params
        for name in leaf.path:
            value = value[name]
        array = np.asarray(value).astype(dtype)
        for layer, key in _keys(leaf, config):
            one = array if layer is None else array[layer]
            tensors["model.decoder." + key] = np.ascontiguousarray(one.T if leaf.transposed else one)
    with atomic_path(Path(path)) as directory:
        directory.mkdir(parents=True)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        body = {**config.to_dict(), "dtype": jnp.dtype(dtype).name}
        (directory / "config.json").write_text(json.dumps(body, indent=2) + "\n")
        tokenizer.save_pretrained(directory)


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The checkpoint's tokenizer (Hugging Face, always the fast one)."""
    from transformers import AutoTokenizer

    directory = resolve_llm(name_or_path, _download_tokenizer)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{directory}: no tokenizer there (tokenizer.json, or vocab.json and merges.txt)")
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: tokenizer can't be read: {error}") from error


def read_llm_config(name_or_path: str | Path) -> OPTConfig:
    """The configuration alone; errors as :func:`load_opt`."""
    return _read_config(resolve_llm(name_or_path, _download_weights) / "config.json")


def llm_hash(name_or_path: str | Path) -> str:
    """SHA-256 (hex) over configuration, weights and tokenizer: the identity of a frozen LLM as an input."""
    directory = resolve_llm(name_or_path, _download_weights)
    resolve_llm(name_or_path, _download_tokenizer)
    digest = hashlib.sha256()
    weights, _ = _weight_files(directory)
    for file in [directory / "config.json", *weights, *(directory / name for name in TOKENIZER_FILES)]:
        if file.is_file():
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def resolve_llm(name_or_path: str | Path, download: Callable[[str], Path]) -> Path:
    """The directory of an LLM: the packaged asset, a local directory, or what ``download`` fetches by hub name."""
    name = str(name_or_path)
    packaged = Path(assets.__file__).parent / name
    if name == "opt-nano":
        return packaged
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such LLM directory")
    return download(name)


def _download_config(name: str) -> Path:
    config = _download(name, "config.json")
    if config is None:
        raise UserError(f"{name}: no config.json on the hub")
    return config.parent


def _download_weights(name: str) -> Path:
    directory = _download_config(name)
    for file in _WEIGHT_FILES:
        if (found := _download(name, file)) is None:
            continue
        if file.endswith(".index.json"):
            for shard in sorted(set(_read_json(found)["weight_map"].values())):
                _download(name, shard)
        return directory
    raise UserError(f"{name}: no weights on the hub (looked for {', '.join(_WEIGHT_FILES)})")


def _download_tokenizer(name: str) -> Path:
    found = [path for file in TOKENIZER_FILES if (path := _download(name, file)) is not None]
    if not found:
        raise UserError(f"{name}: no tokenizer on the hub")
    return found[0].parent


def _download(name: str, file: str) -> Path | None:
    """The cached copy of a hub file; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but it says that the hub can't be reached
        raise UserError(f"{name}: not a directory, and the hub can't be reached for {file}") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{name}: not a directory, and the hub refuses {file}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an LLM directory holds config.json, weights and a tokenizer") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(body, dict):
        raise UserError(f"{path}: expected a JSON object")
    return body


def _read_config(path: Path) -> OPTConfig:
    body = _read_json(path)
    for key, required in _REQUIRED_CONFIG.items():
        value = body.get(key, None if key == "model_type" else required)
        if value != required:
            raise UserError(f"{path}: {key} is {value!r}; only OPT with {key} {required!r} is supported")
    try:
        config = OPTConfig.from_dict(body)
        if config.hidden_size % config.num_attention_heads:
            raise UserError(f"{path}: hidden_size is not a multiple of num_attention_heads")
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error
    return config


class _Shard(NamedTuple):
    """An open weight file."""

    keys: list[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str, tuple[slice, ...]], np.ndarray]


class _Stored(NamedTuple):
    """Where one weight of a checkpoint is."""

    file: Path
    key: str
    shard: _Shard


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a directory, and its index (key to file name) where it has one."""
    name = next((name for name in _WEIGHT_FILES if (directory / name).is_file()), None)
    if name is None:
        raise UserError(f"{directory}: no weights there (looked for {', '.join(_WEIGHT_FILES)})")
    if not name.endswith(".index.json"):
        return [directory / name], None
    index = _read_json(directory / name).get("weight_map")
    if not isinstance(index, dict):
        raise UserError(f"{directory / name}: no 'weight_map' that names each weight's shard")
    files = [directory / shard for shard in sorted(set(index.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: shard is missing; {name} lists it")
    return files, index


def _open_weights(directory: Path) -> dict[str, _Stored]:
    """Every weight of a checkpoint by its key without prefix."""
    files, index = _weight_files(directory)
    weights: dict[str, _Stored] = {}
    for file in files:
        shard = _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
        for key in shard.keys:
            if (plain := _plain(key)) in weights:
                raise UserError(f"{file}: weight {key!r} is in {weights[plain].file.name} too")
            weights[plain] = _Stored(file, key, shard)
    for key, name in (index or {}).items():
        stored = weights.get(_plain(key))
        if stored is None or stored.file.name != name:
            raise UserError(f"{directory / name}: weight {key!r} is missing; the index says that it is there")
    return weights


def _open_safetensors(path: Path) -> _Shard:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    return _Shard(
        list(file.keys()),
        lambda key: tuple(file.get_slice(key).get_shape()),
        lambda key, index: file.get_slice(key)[index],
    )


def _open_bin(path: Path) -> _Shard:
    import torch

    try:
        # weights_only never runs code from the pickle; only the zip format can be memory-mapped
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole PyTorch weight file: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{path}: expected a dictionary of tensors")

    def read(key: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = tensors[key][index]
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
            return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return tensor.numpy()

    return _Shard(list(tensors), lambda key: tuple(tensors[key].shape), read)


def _check_keys(directory: Path, config: OPTConfig, weights: Mapping[str, _Stored]) -> None:
    """Each key of the configuration's model once, in its shape, and no other."""
    expected = {key: leaf.shape for leaf in _leaves(config) for _, key in _keys(leaf, config)}
    if missing := sorted(set(expected) - set(weights)):
        raise UserError(f"{directory}: weight {missing[0]!r} is missing ({len(missing)} in all)")
    for key, stored in weights.items():
        if key == "lm_head.weight":  # tied: stored twice or not at all
            continue
        if key not in expected:
            raise UserError(f"{stored.file}: unknown weight {stored.key!r}; config.json describes no such parameter")
        if (shape := stored.shard.shape(stored.key)) != expected[key]:
            raise UserError(f"{stored.file}: {stored.key!r} has shape {shape}, config.json says {expected[key]}")
    if head := weights.get("lm_head.weight"):
        table = weights["embed_tokens.weight"]
        for start in range(0, config.vocab_size, _ROWS):
            rows = (slice(start, min(start + _ROWS, config.vocab_size)),)
            if not np.array_equal(head.shard.read(head.key, rows), table.shard.read(table.key, rows)):
                raise UserError(
                    f"{head.file}: {head.key!r} differs from the word embeddings; only a tied head is supported"
                )


def _shape(leaf: _Leaf, config: OPTConfig) -> tuple[int, ...]:
    """Of the parameter, layers stacked."""
    shape = leaf.shape[::-1] if leaf.transposed else leaf.shape
    return (config.num_hidden_layers, *shape) if leaf.path[0] == "layers" else shape


def _load_leaf(
    leaf: _Leaf,
    config: OPTConfig,
    weights: Mapping[str, _Stored],
    dtype: jnp.dtype,
    where: jax.sharding.Sharding | None,
) -> jax.Array:
    """A parameter on its devices; this process reads the slices of its own devices, each of them once."""
    shape = _shape(leaf, config)
    if where is None:
        return _load_piece(leaf, config, weights, dtype, [(0, size) for size in shape], None)
    pieces: dict[str, jax.Array] = {}
    arrays = []
    for device, index in where.addressable_devices_indices_map(shape).items():
        bounds = [part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)]
        if (name := str(bounds)) not in pieces:
            pieces[name] = _load_piece(leaf, config, weights, dtype, bounds, device)
        arrays.append(jax.device_put(pieces[name], device))
    return jax.make_array_from_single_device_arrays(shape, where, arrays)


def _load_int8(leaf: _Leaf, config: OPTConfig, weights: Mapping[str, _Stored]) -> dict[str, jax.Array]:
    """A stack of kernels, of which one layer at a time is on the devices in float32."""
    stacks: dict[str, jax.Array] = {}
    for layer in range(config.num_hidden_layers):
        one = leaf._replace(path=leaf.path[1:], key=leaf.key.format(layer=layer))
        where = sharding.sharding_of(P(*_spec(leaf.path)[1:]), _shape(one, config))
        for name, part in _quantize(_load_leaf(one, config, weights, jnp.float32, where)).items():
            shape = (config.num_hidden_layers, *part.shape)
            where = sharding.sharding_of(_spec((*leaf.path[:2], name)), shape)
            stack = stacks[name] if layer else jnp.zeros(shape, part.dtype, device=where)
            stacks[name] = _set_layer(stack, part, layer, where)
            stacks[name].block_until_ready()
    return stacks


_quantize = jax.jit(quantize)


def _spec(path: tuple[str, ...]) -> P:
    return sharding.spec_of(OPT_RULES, "/".join(path))


def _load_piece(
    leaf: _Leaf,
    config: OPTConfig,
    weights: Mapping[str, _Stored],
    dtype: jnp.dtype,
    bounds: list[tuple[int, int]],
    device: jax.Device | None,
) -> jax.Array:
    """The part of a parameter within ``bounds``, put together on the device: the host never holds two layers of it."""
    stacked = leaf.path[0] == "layers"
    inner = [slice(*bound) for bound in (bounds[1:] if stacked else bounds)]
    stored_index = tuple(inner[::-1] if leaf.transposed else inner)
    piece = jnp.zeros([end - start for start, end in bounds], dtype, device=device)
    for layer, key in _keys(leaf, config):
        stored = weights[key]
        array = stored.shard.read(stored.key, stored_index)
        array = (array.T if leaf.transposed else array).astype(dtype, copy=False)
        if layer is None:
            return jax.device_put(np.ascontiguousarray(array), device)
        piece = _set_layer(piece, jax.device_put(array, device), layer)
        piece.block_until_ready()  # so that the next layer's array takes this one's place on the host
    return piece


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set_layer(
    stack: jax.Array, layer: jax.Array, index: int | jax.Array, where: jax.sharding.Sharding | None = None
) -> jax.Array:
    stack = jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
    return stack if where is None else jax.lax.with_sharding_constraint(stack, where)


def _tree(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _leaves(config: OPTConfig) -> list[_Leaf]:
    hidden, ffn, embed = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    leaves = [
        _Leaf(("embed_tokens", "embedding"), "embed_tokens.weight", (config.vocab_size, embed)),
        _Leaf(
            ("embed_positions", "embedding"),
            "embed_positions.weight",
            (config.max_position_embeddings + POSITION_OFFSET, hidden),
        ),
    ]
    for name, module, inputs, outputs in (
        ("q_proj", "self_attn.q_proj", hidden, hidden),
        ("k_proj", "self_attn.k_proj", hidden, hidden),
        ("v_proj", "self_attn.v_proj", hidden, hidden),
        ("out_proj", "self_attn.out_proj", hidden, hidden),
        ("fc1", "fc1", hidden, ffn),
        ("fc2", "fc2", ffn, hidden),
    ):
        key = f"layers.{{layer}}.{module}"
        leaves.append(_Leaf(("layers", name, "kernel"), f"{key}.weight", (outputs, inputs), transposed=True))
        leaves.append(_Leaf(("layers", name, "bias"), f"{key}.bias", (outputs,)))
    norms: list[tuple[tuple[str, ...], str]] = [
        (("layers", name), f"layers.{{layer}}.{name}") for name in ("self_attn_layer_norm", "final_layer_norm")
    ]
    if config.do_layer_norm_before:
        norms.append((("final_layer_norm",), "final_layer_norm"))
    for path, key in norms:
        leaves.append(_Leaf((*path, "scale"), f"{key}.weight", (hidden,)))
        leaves.append(_Leaf((*path, "bias"), f"{key}.bias", (hidden,)))
    if config.projects:
        leaves.append(_Leaf(("project_in", "kernel"), "project_in.weight", (hidden, embed), transposed=True))
        leaves.append(_Leaf(("project_out", "kernel"), "project_out.weight", (embed, hidden), transposed=True))
    return leaves


def _keys(leaf: _Leaf, config: OPTConfig) -> Iterator[tuple[int | None, str]]:
    """The checkpoint's keys of a parameter, without prefix, and the layer of each."""
    if leaf.path[0] != "layers":
        yield None, leaf.key
        return
    for layer in range(config.num_hidden_layers):
        yield layer, leaf.key.format(layer=layer)


def _plain(key: str) -> str:
    """A key without the prefix under which ``OPTForCausalLM`` or ``OPTModel`` saved it."""
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
