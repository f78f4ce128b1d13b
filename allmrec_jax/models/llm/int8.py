"""The frozen language model's kernels in int8: one byte a weight, and a float32 scale for each output.

Weight-only and symmetric: a kernel's column ``k`` becomes ``round(k / s)`` with ``s = max |k| / 127``, and ``x k`` is
computed as ``(x · int8) s`` in the model's own type. Activations, norms, biases and the word and position tables stay
as they are. This is not LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339), which the official code uses: that one also
rounds activations, but for the few widths with outliers.

Shapes: L layers, I inputs, O outputs.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

SCALE = "kernel_scale"
"""The name of the scales beside ``kernel``."""

LEVELS = 127


def quantize(kernel: Float[Array, "*L I O"]) -> dict[str, Array]:
    """A kernel as ``kernel`` (int8) and ``kernel_scale`` ([*L, O] float32); a column of zeros has scale 1."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2)
    scale = jnp.where(largest == 0, 1.0, largest / LEVELS)
    return {"kernel": jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), SCALE: scale}


def quantize_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's parameters with the layers' kernels in int8; the rest as it is."""
    layers = {
        name: {**leaves, **quantize(leaves["kernel"])} if "kernel" in leaves else leaves
        for name, leaves in params["layers"].items()
    }
    return {**params, "layers": layers}


@jax.custom_vjp
def product(x: Float[Array, "*B I"], kernel: Int8[Array, "I O"], scale: Float[Array, " O"]) -> Float[Array, "*B O"]:
    """``x`` times a kernel in int8, in the type of ``x``. Only ``x`` has a gradient.

    The backward pass reads the int8 kernel again: left to JAX, a copy in the type of ``x`` would be kept for it.
    """
    out = jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return (out * jnp.broadcast_to(scale, out.shape)).astype(x.dtype)


def _forward(x: Array, kernel: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, scale), (kernel, scale)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    kernel, scale = kept
    scaled = (gradient.astype(jnp.float32) * jnp.broadcast_to(scale, gradient.shape)).astype(gradient.dtype)
    return jnp.einsum("...o,io->...i", scaled, kernel.astype(gradient.dtype)), None, None


product.defvjp(_forward, _backward)


class Dense(nn.Dense):
    """:class:`flax.linen.Dense` whose kernel may be stored as :func:`quantize` leaves it."""

    def __call__(self, inputs: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """``inputs`` times the kernel, and the bias where there is one."""
        if not self.has_variable("params", SCALE):
            return super().__call__(inputs)
        x = inputs.astype(self.dtype)
        out = product(x, self.get_variable("params", "kernel"), self.get_variable("params", SCALE))
        if not self.use_bias:
            return out
        bias = self.get_variable("params", "bias")
        return out + jnp.broadcast_to(bias.astype(x.dtype), out.shape)
