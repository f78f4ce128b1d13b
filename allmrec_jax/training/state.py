"""What a training step changes: two forms that all trainings share."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from allmrec_jax import sharding


class TrainState(NamedTuple):
    """What a step changes that draws nothing."""

    params: Any
    opt_state: Any

    @classmethod
    def start(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step, on the mesh in use."""
        return sharding.place(cls(params, optimizer.init(params)))


class CountedState(NamedTuple):
    """What a step changes whose draws (dropout, masks) are made from the number of steps taken before it."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]

    @classmethod
    def start(cls, params: Any, optimizer: optax.GradientTransformation) -> "CountedState":
        """The state before the first step, on the mesh in use."""
        return sharding.place(cls(params, optimizer.init(params), jnp.zeros((), jnp.int32)))
