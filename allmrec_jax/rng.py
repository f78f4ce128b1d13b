"""Every random draw has a key derived from (seed, purpose, step), so that a resumed run needs only its step."""

import zlib

import jax
import numpy as np


def jax_key(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """A JAX key for one purpose at one step; ``step`` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)


def numpy_rng(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """The NumPy counterpart, for what is drawn on the host."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), step])
