"""Meshes of devices, and how the arrays of each model lie on one.

A mesh has three axes. ``data`` splits batches. ``tensor`` splits the frozen language model inside each layer (attention
by heads, feed-forward by units, the vocabulary by words). ``fsdp`` splits the same weights a second time, for storage
only: each layer's are gathered when it runs, and the axis splits batches as ``data`` does.

Where arrays lie is decided outside the models: one rule table per model gives each parameter's :class:`PartitionSpec`
by its path, every parameter must match exactly one rule, and XLA's partitioner carries the rest. Without a mesh in use
every function here hands its argument back, and nothing is computed otherwise than on one device.

    with use_mesh("data=2,tensor=4"):
        config, params = load_checkpoint("facebook/opt-6.7b", jnp.bfloat16)   # each device gets its slices only
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from allmrec_jax import fileio
from allmrec_jax.errors import UserError

P = PartitionSpec

AXES = ("data", "fsdp", "tensor")

BATCH = ("data", "fsdp")
"""The axes that a language model's batches are split over; models without a tensor axis take all of :data:`AXES`."""

Rules = Sequence[tuple[str, PartitionSpec]]
"""Path pattern and partition spec; a path is ``layers/q_proj/kernel``, patterns match it whole."""

REPLICATED_RULES: Rules = ((r".*", P()),)
"""What is trained (projectors, autoencoders, sentence encoder, CF models) and its optimizer state: a copy on each
device, for it is small beside the frozen model (34 million parameters at OPT-6.7B's width) and its gradients are summed
once a step."""


class MeshShape(NamedTuple):
    """How many devices lie along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """Parts that a language model's batch is split into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        named = [f"{axis}={count}" for axis, count in zip(AXES, self, strict=True) if count > 1]
        return ",".join(named) or "data=1"


class Heads(Protocol):
    """What of a language model's configuration a mesh must divide."""

    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102


# Meshes.


def parse_mesh(text: str) -> MeshShape:
    """A mesh from ``data=2,tensor=4``; axes not named have one device.

    Raises:
        UserError: an axis is unknown, named twice, or its number is not a whole one from 1.
    """
    counts: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise UserError(
                f"--mesh {text}: no axis {axis!r}; write for example data=2,tensor=4 (axes: {', '.join(AXES)})"
            )
        if axis in counts:
            raise UserError(f"--mesh {text}: {axis} is given twice")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--mesh {text}: {axis} must be a whole number from 1, not {number!r}")
        counts[axis] = int(number)
    return MeshShape(**counts)


def check_devices(shape: MeshShape, devices: int) -> None:
    """Refuses a mesh whose size does not divide the number of devices, naming the nearest that does."""
    if devices % shape.size:
        near = min(
            (other for other in _shapes(devices) if devices % other.size == 0),
            key=lambda other: _distance(shape, other),
        )
        raise UserError(
            f"mesh {shape} is {shape.size} devices, which does not divide the {devices} there are; "
            f"nearest: --mesh {near}"
        )


def check_heads(shape: MeshShape, config: Heads, name: str) -> None:
    """Refuses a mesh whose ``tensor`` does not divide the attention heads, naming the nearest of its size that does."""
    heads = config.num_attention_heads
    if heads % shape.tensor:
        fitting = [other for other in _shapes(shape.size) if other.size == shape.size and heads % other.tensor == 0]
        near = min(fitting, key=lambda other: _distance(shape, other))
        raise UserError(
            f"mesh {shape}: tensor={shape.tensor} does not divide the {heads} attention heads of {name}; "
            f"nearest: --mesh {near}"
        )


def _shapes(most: int) -> list[MeshShape]:
    """Every mesh of at most so many devices."""
    return [
        MeshShape(data, fsdp, tensor)
        for tensor in range(1, most + 1)
        for fsdp in range(1, most // tensor + 1)
        for data in range(1, most // (tensor * fsdp) + 1)
    ]


def _distance(wanted: MeshShape, other: MeshShape) -> tuple[float, ...]:
    """First the size, then the axes, tensor before the others, all by ratio."""
    ratios = [abs(np.log2(a / b)) for a, b in zip(wanted, other, strict=True)]
    return (abs(np.log2(wanted.size / other.size)), ratios[2], ratios[1] + ratios[0], ratios[1])


_in_use: Mesh | None = None


def current() -> Mesh | None:
    """The mesh in use, or ``None``."""
    return _in_use


def current_shape() -> MeshShape:
    """Its shape; one device where no mesh is in use."""
    return MeshShape() if _in_use is None else MeshShape(**dict(_in_use.shape))


@contextlib.contextmanager
def use_mesh(shape: str | MeshShape | None) -> Iterator[Mesh | None]:
    """Places what the block loads and trains on a mesh; ``None`` is one device, without a mesh.

    Raises:
        UserError: the text is no mesh, or its size does not divide the devices there are (with several processes: is
            not all of them).
    """
    global _in_use
    if shape is None:
        yield None
        return
    shape = parse_mesh(shape) if isinstance(shape, str) else shape
    devices = jax.devices()
    check_devices(shape, len(devices))
    if jax.process_count() > 1 and shape.size != len(devices):
        raise UserError(f"mesh {shape} is {shape.size} devices; with several processes it must be all {len(devices)}")
    before = _in_use
    _in_use = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[: shape.size])
    try:
        yield _in_use
    finally:
        _in_use = before


@contextlib.contextmanager
def several_processes(how: str | None) -> Iterator[None]:
    """Joins the processes of one training or evaluation, started alike on each host; the first one writes and prints.

    Args:
        how: ``auto`` takes what SLURM, Open MPI, Kubernetes or a TPU pod says (``jax.distributed``);
            ``HOST:PORT,INDEX/COUNT`` is by hand, with the first process's address; ``None`` is one process.

    Raises:
        UserError: the text is none of these, or nothing says how many processes there are.
    """
    if how is None:
        yield
        return
    given: dict[str, Any] = {}
    if how != "auto":
        found = re.fullmatch(r"([^,]+:\d+),(\d+)/(\d+)", how)
        if found is None or int(found[2]) >= int(found[3]):
            raise UserError(f"--distributed {how}: write auto, or HOST:PORT,INDEX/COUNT with INDEX from 0 below COUNT")
        given = {"coordinator_address": found[1], "process_id": int(found[2]), "num_processes": int(found[3])}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**given)
    except ValueError as error:  # what no cluster environment fills in
        raise UserError(f"--distributed {how}: {error} Name it by hand: --distributed HOST:PORT,INDEX/COUNT") from error
    try:
        with contextlib.ExitStack() as stack:
            if jax.process_index() > 0:
                fileio.leave_writing_to_another()
                # Handlers keep the stream that they were made with.
                logging.disable()
                stack.callback(logging.disable, logging.NOTSET)
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        jax.distributed.shutdown()


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("allmrec")


def any_process(value: bool) -> bool:
    """Whether ``value`` is true in any of the processes that train together; all of them must ask."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(value)).any())


def scope() -> contextlib.AbstractContextManager[Any]:
    """What jitted functions that lay out arrays by :func:`constrain` are called under."""
    return contextlib.nullcontext() if _in_use is None else jax.set_mesh(_in_use)


def on_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function, called under :func:`scope`."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with scope():
            return function(*args, **kwargs)

    return called


# Placing arrays.


def spec_of(rules: Rules, name: str) -> PartitionSpec:
    """The partition spec of the leaf at a path; :class:`ValueError` where no rule matches it, or several do."""
    found = [spec for pattern, spec in rules if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise ValueError(f"{name}: {len(found)} sharding rules match it; there must be exactly one")
    return found[0]


def specs(rules: Rules, tree: Any) -> Any:
    """The partition spec of every leaf; errors as :func:`spec_of`."""
    return jax.tree.map_with_path(lambda path, _: spec_of(rules, path_name(path)), tree)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path, ``layers/q_proj/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def fitted(spec: PartitionSpec, shape: Sequence[int], sizes: MeshShape) -> PartitionSpec:
    """The spec without the axes that do not divide their dimension, such as an odd vocabulary."""

    def fits(axes: Any, dimension: int) -> bool:
        names = axes if isinstance(axes, tuple) else (axes,)
        return dimension % int(np.prod([getattr(sizes, name) for name in names])) == 0

    return P(*(axes if axes is None or fits(axes, n) else None for axes, n in zip(spec, shape, strict=False)))


def sharding_of(spec: PartitionSpec, shape: Sequence[int]) -> NamedSharding | None:
    """Where an array of this spec and shape lies on the mesh in use; ``None`` without one.

    Without a mesh arrays stay uncommitted to a device. A step that gets some of each kind would return committed ones
    only, and be compiled a second time for these.
    """
    if _in_use is None:
        return None
    return NamedSharding(_in_use, fitted(spec, shape, current_shape()))


def put(value: Any, spec: PartitionSpec) -> jax.Array:
    """An array that every process holds whole, on the mesh in use; each device gets its slice."""
    array = np.asarray(value)
    where = sharding_of(spec, array.shape)
    if where is None:
        raise ValueError("no mesh is in use")
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def place(tree: Any, rules: Rules = REPLICATED_RULES) -> Any:
    """A tree of arrays on the mesh in use, by the rules; without a mesh, the tree itself."""
    if _in_use is None:
        return tree
    return jax.tree.map(put, tree, specs(rules, tree))


def place_batch(tree: Any, axes: tuple[str, ...] = BATCH, dimension: int = 0) -> Any:
    """A batch on the mesh in use, its ``dimension`` split over ``axes``; without a mesh, the batch itself."""
    if _in_use is None:
        return tree
    spec = P(*(None,) * dimension, axes)
    return jax.tree.map(lambda value: put(value, spec), tree)


def shards(axes: tuple[str, ...] = BATCH) -> int:
    """Into how many parts ``axes`` of the mesh in use split a batch."""
    return int(np.prod([getattr(current_shape(), axis) for axis in axes]))


def padded_rows(rows: int, axes: tuple[str, ...] = BATCH, parts: int = 1) -> np.ndarray:
    """Which rows a batch is made of so that each of its ``parts`` splits evenly over ``axes``.

    Returns:
        row numbers, each part filled up with repeats of its own rows; from ``rows`` on they count as padding:
        subtract ``rows`` for the row that is repeated. Without a mesh, ``0 … rows - 1``.
    """
    size, count = rows // parts, shards(axes)
    extra = -size % count
    numbers = np.arange(rows).reshape(parts, size)
    return np.concatenate([numbers, rows + np.resize(numbers.T, (extra, parts)).T], axis=1).reshape(-1)


def fill_up(batch: Any, axes: tuple[str, ...] = AXES) -> Any:
    """A named tuple of rows with ``weights`` [B], filled up to what ``axes`` divide with repeats of weight 0."""
    size = len(batch.weights)
    rows = padded_rows(size, axes)
    if len(rows) == size:
        return batch
    batch = jax.tree.map(lambda x: np.asarray(x)[rows % size], batch)
    return batch._replace(weights=batch.weights * (rows < size).astype(batch.weights.dtype))


def fetch(tree: Any) -> Any:
    """NumPy arrays of a tree, whole on every process."""
    from jax.experimental import multihost_utils

    def one(value: Any) -> np.ndarray:
        if isinstance(value, jax.Array) and not value.is_fully_addressable and not value.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(value, tiled=True))
        return np.asarray(value)

    return jax.tree.map(one, tree)


# Inside jitted functions.


def constrain(tree: Any, spec: PartitionSpec) -> Any:
    """Arrays laid out so over the mesh whose :func:`scope` this is traced in; outside one, the arrays themselves."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    sizes = MeshShape(**dict(mesh.shape))
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fitted(spec, x.shape, sizes))), tree
    )


def constrain_batch(tree: Any, dimension: int = 0, axes: tuple[str, ...] = BATCH) -> Any:
    """Arrays whose ``dimension`` is split over ``axes``."""
    return constrain(tree, P(*(None,) * dimension, axes))


def split_rows(rows: jax.Array, fill: int, axes: tuple[str, ...] = AXES) -> jax.Array:
    """Row numbers split over ``axes``, filled up to what they divide with ``fill``, a row that counts nowhere."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows
    extra = -len(rows) % int(np.prod([mesh.shape[axis] for axis in axes]))
    return constrain_batch(jnp.pad(rows, (0, extra), constant_values=fill), axes=axes)


def gathers() -> bool:
    """Whether weights are stored in more pieces than they are used in, that is, ``fsdp`` is above 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def gathered(tree: Any, rules: Rules, prefix: str = "", *, stacked: bool = False) -> Any:
    """Parameters gathered over ``fsdp``.

    Args:
        tree: parameters, or with ``stacked`` those of one layer of a stack.
        rules: of the whole model.
        prefix: path of ``tree`` in the model, with a slash at the end.
        stacked: the rules' first dimension, that of the layers, is missing here.
    """

    def one(path: tuple[Any, ...], value: Any) -> Any:
        spec = spec_of(rules, prefix + path_name(path))
        return constrain(value, P(*(None if axis == "fsdp" else axis for axis in spec[1 if stacked else 0 :])))

    return jax.tree.map_with_path(one, tree)
