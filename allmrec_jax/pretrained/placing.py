"""A checkpoint's tensors onto devices: each process reads what its own devices hold, a layer at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from allmrec_jax import sharding
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import Leaf, LMConfig
from allmrec_jax.models.llm.int8 import quantize
from allmrec_jax.pretrained.weights import Weights


def load_params(config: LMConfig, weights: Weights, dtype: jnp.dtype, *, int8: bool = False) -> dict[str, Any]:
    """Parameters in the layout of the family's module.

    Args:
        config: of the model.
        weights: all that the family's layout names, in the shapes that it says.
        dtype: of the parameters in memory.
        int8: store the layers' kernels in int8, rounded layer by layer from what the files hold.

    Returns:
        arrays where the family's rules lay them on the mesh in use, or on the first device.
    """
    tree: dict[str, Any] = {}
    for leaf in family_of(config).layout(config):
        *parents, name = leaf.path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if int8 and leaf.is_kernel:
            node.update(_load_int8(leaf, config, weights))
        else:
            where = sharding.sharding_of(_spec(config, leaf.path), leaf.stacked_shape(config))
            node[name] = _load_leaf(leaf, config, weights, dtype, where)
    return tree


def _load_leaf(
    leaf: Leaf,
    config: LMConfig,
    weights: Weights,
    dtype: jnp.dtype,
    where: jax.sharding.Sharding | None,
) -> jax.Array:
    """A parameter on its devices; this process reads the slices of its own devices, each of them once."""
    shape = leaf.stacked_shape(config)
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


def _load_int8(leaf: Leaf, config: LMConfig, weights: Weights) -> dict[str, jax.Array]:
    """A stack of kernels, of which one layer at a time is on the devices in float32."""
    stacks: dict[str, jax.Array] = {}
    for layer in range(config.num_hidden_layers):
        one = leaf._replace(path=leaf.path[1:], key=leaf.key.format(layer=layer))
        where = sharding.sharding_of(P(*_spec(config, leaf.path)[1:]), one.stacked_shape(config))
        for name, part in _quantize(_load_leaf(one, config, weights, jnp.float32, where)).items():
            shape = (config.num_hidden_layers, *part.shape)
            where = sharding.sharding_of(_spec(config, (*leaf.path[:-1], name)), shape)
            stack = stacks[name] if layer else jnp.zeros(shape, part.dtype, device=where)
            stacks[name] = _set_layer(stack, part, layer, where)
            stacks[name].block_until_ready()
    return stacks


_quantize = jax.jit(quantize)


def _spec(config: LMConfig, path: tuple[str, ...]) -> P:
    rules = family_of(config).rules_on(config, sharding.current_shape())
    return sharding.spec_of(rules, "/".join(path))


def _load_piece(
    leaf: Leaf,
    config: LMConfig,
    weights: Weights,
    dtype: jnp.dtype,
    bounds: list[tuple[int, int]],
    device: jax.Device | None,
) -> jax.Array:
    """The part of a parameter within ``bounds``, put together on the device: the host never holds two layers of it."""
    inner = [slice(*bound) for bound in (bounds[1:] if leaf.in_layers else bounds)]
    stored_index = tuple(inner[::-1] if leaf.transposed else inner)
    piece = jnp.zeros([end - start for start, end in bounds], dtype, device=device)
    for layer, key in leaf.keys(config):
        array = weights[key].read(stored_index)
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
