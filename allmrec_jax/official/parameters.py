"""The official PyTorch code's parameters, by its names, from and to this project's trees.

Every mapping accounts for all keys and shapes; what it maps is copied bit for bit.

Names: ``SASRec`` (``*.pth``), ``two_layer_mlp`` (``mlp.pt``, ``mlp2.pt``), the projectors (``log_proj.pt``,
``item_proj.pt``). torch's ``Linear`` and ``Conv1d`` hold [out, in], Flax's ``Dense`` [in, out].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError

State = dict[str, np.ndarray]
"""A torch state dict as NumPy arrays."""

_SASREC_BLOCK: dict[str, tuple[str, bool]] = {
    "attention_layernorms.{}.weight": ("attention_norm/scale", False),
    "attention_layernorms.{}.bias": ("attention_norm/bias", False),
    "attention_layers.{}.in_proj_weight": ("attention/in_proj_kernel", True),
    "attention_layers.{}.in_proj_bias": ("attention/in_proj_bias", False),
    "attention_layers.{}.out_proj.weight": ("attention/out_proj/kernel", True),
    "attention_layers.{}.out_proj.bias": ("attention/out_proj/bias", False),
    "forward_layernorms.{}.weight": ("feed_forward_norm/scale", False),
    "forward_layernorms.{}.bias": ("feed_forward_norm/bias", False),
    "forward_layers.{}.conv1.weight": ("feed_forward/conv1/kernel", True),
    "forward_layers.{}.conv1.bias": ("feed_forward/conv1/bias", False),
    "forward_layers.{}.conv2.weight": ("feed_forward/conv2/kernel", True),
    "forward_layers.{}.conv2.bias": ("feed_forward/conv2/bias", False),
}
"""Key of a block to path in ``blocks`` (stacked on axis 0) and whether the matrix is transposed."""

_SASREC_REST = {
    "item_emb.weight": "item_embedding",
    "pos_emb.weight": "position_embedding",
    "last_layernorm.weight": "final_norm/scale",
    "last_layernorm.bias": "final_norm/bias",
}

_AUTOENCODER = {
    "fc1.weight": ("encoder/kernel", True),
    "fc1.bias": ("encoder/bias", False),
    "fc2.weight": ("decoder/kernel", True),
    "fc2.bias": ("decoder/bias", False),
}

_PROJECTOR = {
    "0.weight": ("in/kernel", True),
    "0.bias": ("in/bias", False),
    "1.weight": ("norm/scale", False),
    "1.bias": ("norm/bias", False),
    "3.weight": ("out/kernel", True),
    "3.bias": ("out/bias", False),
}


def check_state(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: Any) -> None:
    """Raises a :class:`UserError` that names the first key of ``where`` that is missing, extra or mis-shaped."""
    for key in sorted(shapes.keys() | state.keys()):
        if key not in state:
            raise UserError(f"{where}: key {key!r} is missing")
        if key not in shapes:
            raise UserError(f"{where}: unexpected key {key!r}")
        if state[key].shape != shapes[key]:
            raise UserError(f"{where}: key {key!r} has shape {state[key].shape}, expected {shapes[key]}")


def sasrec_shapes(items: int, dim: int, blocks: int, max_length: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the official SASRec."""
    kinds = {"in_proj_weight": (3 * dim, dim), "in_proj_bias": (3 * dim,), "out_proj.weight": (dim, dim)}
    shapes: dict[str, tuple[int, ...]] = {"item_emb.weight": (items + 1, dim), "pos_emb.weight": (max_length, dim)}
    shapes |= {"last_layernorm.weight": (dim,), "last_layernorm.bias": (dim,)}
    for block in range(blocks):
        for pattern in _SASREC_BLOCK:
            conv = (dim, dim, 1) if "conv" in pattern and pattern.endswith("weight") else (dim,)
            shapes[pattern.format(block)] = kinds.get(pattern.partition("{}.")[2], conv)
    return shapes


def autoencoder_shapes(width: int, latent: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of ``mlp.pt`` and ``mlp2.pt``."""
    return {"fc1.weight": (latent, width), "fc1.bias": (latent,), "fc2.weight": (width, latent), "fc2.bias": (width,)}


def projector_shapes(inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of ``log_proj.pt`` and ``item_proj.pt``."""
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (width, inputs), "3.weight": (width, width)}
    return shapes | dict.fromkeys(("0.bias", "1.weight", "1.bias", "3.bias"), (width,))


def sasrec_params(state: Mapping[str, np.ndarray], blocks: int) -> dict[str, Any]:
    """Parameters of :class:`allmrec_jax.models.cf.sasrec.SASRec`; check ``state`` first."""
    params: dict[str, Any] = {}
    for key, path in _SASREC_REST.items():
        _set(params, path, np.array(state[key]))
    for pattern, (path, transposed) in _SASREC_BLOCK.items():
        values = [_matrix(state[pattern.format(block)], transposed) for block in range(blocks)]
        _set(params, f"blocks/{path}", np.stack(values))
    return params


def sasrec_state(params: Mapping[str, Any]) -> State:
    """The other way: also for gradients."""
    state = {key: np.array(_get(params, path)) for key, path in _SASREC_REST.items()}
    for pattern, (path, transposed) in _SASREC_BLOCK.items():
        for block, value in enumerate(np.asarray(_get(params, f"blocks/{path}"))):
            array = np.ascontiguousarray(value.T if transposed else value)
            state[pattern.format(block)] = array[..., None] if ".conv" in pattern and transposed else array
    return state


def autoencoder_params(items: Mapping[str, np.ndarray], texts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of :class:`allmrec_jax.models.alignment.Alignment` from ``mlp.pt`` and ``mlp2.pt``."""
    params: dict[str, Any] = {}
    for name, state in (("item", items), ("text", texts)):
        for key, (path, transposed) in _AUTOENCODER.items():
            _set(params, f"{name}_{path}", _matrix(state[key], transposed))
    return params


def autoencoder_states(params: Mapping[str, Any]) -> tuple[State, State]:
    """The other way."""
    items, texts = (
        {key: _matrix(_get(params, f"{name}_{path}"), transposed) for key, (path, transposed) in _AUTOENCODER.items()}
        for name in ("item", "text")
    )
    return items, texts


def projector_params(users: Mapping[str, np.ndarray], items: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of :class:`allmrec_jax.models.projectors.Projectors` from ``log_proj.pt`` and ``item_proj.pt``."""
    params: dict[str, Any] = {}
    for name, state in (("user", users), ("item", items)):
        for key, (path, transposed) in _PROJECTOR.items():
            _set(params, f"{name}_{path}", _matrix(state[key], transposed))
    return params


def projector_states(params: Mapping[str, Any]) -> tuple[State, State]:
    """The other way."""
    users, items = (
        {key: _matrix(_get(params, f"{name}_{path}"), transposed) for key, (path, transposed) in _PROJECTOR.items()}
        for name in ("user", "item")
    )
    return users, items


def _matrix(value: Any, transposed: bool) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 3:  # a convolution of width one
        array = array[..., 0]
    return np.array(array.T if transposed else array, order="C")


def _get(tree: Mapping[str, Any], path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _set(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value
