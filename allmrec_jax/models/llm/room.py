"""Whether the devices of a mesh have room for a frozen language model's weights: exact bytes, before any is read.

:func:`check_room` refuses a model that does not fit; ``allmrec plan`` and the choice of a mesh count with the same
bytes.
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import family_of, init_params
from allmrec_jax.models.llm.family import LMConfig
from allmrec_jax.models.llm.int8 import SCALE, quantize_params
from allmrec_jax.sharding import MeshShape, fitted

GIB = 2**30


def weight_bytes(config: LMConfig, mesh: MeshShape, itemsize: int, *, int8: bool = False) -> int:
    """Bytes of the language model's weights on each device, exact; with ``int8`` the layers' kernels are stored so."""
    shapes = _shapes(config, int8)

    def held(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, spec: Any) -> int:
        as_stored = sharding.path_name(path).endswith(SCALE) or leaf.dtype == jnp.int8
        return math.prod(local_shape(leaf.shape, spec, mesh)) * (leaf.dtype.itemsize if as_stored else itemsize)

    rules = family_of(config).rules_on(config, mesh)
    return sum(jax.tree.leaves(jax.tree.map_with_path(held, shapes, sharding.specs(rules, shapes))))


@cache
def _shapes(config: Any, int8: bool) -> Any:
    params = partial(init_params, config, jax.random.key(0))
    return jax.eval_shape(lambda: quantize_params(params()) if int8 else params())


def local_shape(shape: tuple[int, ...], spec: Any, mesh: MeshShape) -> tuple[int, ...]:
    """The shape of a device's part of an array that is placed by ``spec``."""
    axes = (*fitted(spec, shape, mesh), *(None,) * len(shape))
    return tuple(n if axis is None else n // getattr(mesh, axis) for n, axis in zip(shape, axes, strict=False))


def check_room(config: LMConfig, name: str, itemsize: int, *, int8: bool = False) -> None:
    """Refuses weights that the devices of the mesh in use have no room for, naming the nearest mesh that has.

    Raises:
        UserError: they do not fit, where the platform says what a device holds.
    """
    limit, mesh = device_memory(), sharding.current_shape()
    held = partial(weight_bytes, config, itemsize=itemsize, int8=int8)
    if limit is None or (needed := held(mesh)) <= limit:
        return
    heads = config.num_attention_heads
    wider = [mesh._replace(tensor=count) for count in range(mesh.tensor + 1, heads + 1) if heads % count == 0]
    near = next((other for other in wider if make_room(held(other)) <= limit), None)
    raise UserError(
        f"{name} takes {needed / GIB:.1f} GiB of weights on each device of mesh {mesh}, which has "
        f"{limit / GIB:.1f} GiB; "
        + ("no mesh is wide enough: take a smaller model" if near is None else f"nearest: --mesh {near}")
    )


def make_room(weights: int) -> float:
    """Memory that a device should have for so many bytes of weights: a third again, and 2 GiB, for all else."""
    return 4 / 3 * weights + 2 * GIB


def device_memory() -> int | None:
    """Bytes that arrays may take on a device; ``None`` where the platform does not say (a CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
