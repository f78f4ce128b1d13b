"""Every random draw has a key derived from (seed, purpose, step), so that a resumed run needs only its step."""

import zlib

import jax
import numpy as np

from allmrec_jax.errors import MAX_SEED, UserError


def jax_key(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """A JAX key for one purpose at one step; ``step`` may be traced.

    Raises:
        UserError: the seed is below 0 or above :data:`~allmrec_jax.errors.MAX_SEED`.
    """
    _check(seed)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)


def numpy_rng(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """The NumPy counterpart, for what is drawn on the host; it raises as :func:`jax_key` does."""
    _check(seed)
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), step])


def _check(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {str(seed)[:30]}: it should be 0 to {MAX_SEED}")
