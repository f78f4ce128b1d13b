"""The product's own programs, compiled a second time so that they tell what dropout kept and what a layer gave.

Draws depend on keys alone: the product's own compiled program, run with the same keys, draws the same.

Shapes: B batch, H heads, T time, L columns that were computed, D model.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.models.cf.sasrec import PadDropout
from allmrec_jax.models.cf.sequential import Dropout

MASK = "mask"
"""The name of what a dropout kept; of pads that stand in one column, how many."""


class Watched:
    """A function under watch.

    Args:
        function: traced and compiled anew; where it is a jitted one, what was jitted.
        methods: of modules, whose outputs are told too, by the class's name.
        static: places of arguments that are static, as in ``jax.jit``.
    """

    def __init__(self, function: Callable[..., Any], *methods: tuple[type, str], static: Sequence[int] = ()) -> None:
        self.methods = methods
        self.told: list[tuple[str, np.ndarray]] = []
        inside = getattr(function, "__wrapped__", function)

        def program(*args: Any) -> Any:
            with nn.intercept_methods(self._look):
                return inside(*args)

        self._program = jax.jit(program, static_argnums=static)

    def __call__(self, *args: Any) -> list[tuple[str, np.ndarray]]:
        """Runs the function; what was told, in order."""
        self.told = []
        jax.block_until_ready(self._program(*args))
        jax.effects_barrier()
        return self.told

    def tell(self, name: str, value: Any) -> None:
        """To be called while the function is traced: tells of a value whenever it is computed."""

        def keep(found: Any) -> None:
            self.told.append((name, np.asarray(found)))

        jax.debug.callback(keep, value, ordered=True)

    def _look(self, next_fun: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        found = next_fun(*args, **kwargs)
        module, value = context.module, found[0] if isinstance(found, tuple) else found
        drops = isinstance(module, Dropout | nn.Dropout | PadDropout) and context.method_name == "__call__"
        if drops and value is not args[0]:
            self.tell(MASK, _kept(module, args[0], value))
        for kind, method in self.methods:
            if isinstance(module, kind) and context.method_name == method:
                self.tell(kind.__name__, value)
        return found


def named(told: Sequence[tuple[str, np.ndarray]], name: str) -> list[np.ndarray]:
    """What was told under a name."""
    return [value for other, value in told if other == name]


def _kept(module: Any, given: Any, found: Any) -> jax.Array:
    if isinstance(module, PadDropout):
        return jnp.rint(found / given * (module.pads * (1 - module.rate))).astype(jnp.int32)
    return found != 0


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Gives a training step gradients of zero: under watch it is traced for its draws alone."""

    def values(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return lambda params, *rest: (function(params, *rest), jax.tree.map(jnp.zeros_like, params))

    with mock.patch("jax.value_and_grad", values):
        yield


def sasrec_masks(masks: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """SASRec's masks at all T columns, of a run at L: the reference computes the pads that stand in one column here.

    Of T - L pads as many are kept as were drawn, the first ones: all have the same key and value. What pads themselves
    attend or pass on is zeroed, whatever their masks.
    """
    found, counts = [], None
    for mask in masks:
        if mask.dtype != bool:
            counts = mask
            continue
        pads = length - mask.shape[-1 if mask.ndim == 4 else 1]
        room = ((0, 0),) * (mask.ndim - 2) + ((pads, 0),) * 2 if mask.ndim == 4 else ((0, 0), (pads, 0), (0, 0))
        mask = np.pad(mask, room, constant_values=True)
        if mask.ndim == 4 and counts is not None and pads:
            mask[:, :, pads:, :pads] = np.arange(pads) < counts[..., None]
        found.append(mask)
    return found
