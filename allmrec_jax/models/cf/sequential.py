"""What sequence models share: a hidden state after each item of a history, dotted with item embeddings.

Shapes: B batch, T time, D model, K candidates, N items.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax.fileio import load_arrays

xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """torch's default for weights and biases of dense and convolution layers: U(±1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dropout(nn.Module):
    """Inverted dropout from 16 random bits an element: on a CPU, drawing bits is most of a step's cost."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S"], deterministic: bool) -> Float[Array, "*S"]:
        """``x`` with elements zeroed at ``rate`` (to 1/65,536) and the others scaled up."""
        if deterministic or self.rate == 0:
            return x
        threshold = jnp.uint16(round(self.rate * 65536))
        keep = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16) >= threshold
        return jnp.where(keep, x / (1 - self.rate), 0.0)


def logits(params: Any, hidden: Float[Array, "*S D"], items: Int[Array, "*S"]) -> Float[Array, "*S"]:
    """Dot product of each hidden state with the raw embedding of the item beside it."""
    return jnp.sum(hidden * params["item_embedding"][items], axis=-1)


class SequenceModel(nn.Module):
    """A network that SASRec, NextItNet, GRU4Rec and the like derive from.

    A subclass narrows ``config`` and defines ``__call__(items, deterministic=True)``, which gives the hidden states
    [B, T, D] of left-padded histories. It keeps its item vectors, padding's row included, in the parameter
    ``item_embedding`` [N+1, D], and left padding changes no number at an item.

    Attributes:
        config: a frozen dataclass with ``num_items``, ``dim`` and ``max_length`` at least.
    """

    config: Any
    reads_history: ClassVar[bool] = True

    @nn.nowrap
    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Initial parameters."""
        return jax.jit(self.init)(key, jnp.zeros((1, self.config.max_length), jnp.int32))["params"]

    @nn.nowrap
    def states(self, params: Any, users: Any, items: Int[Array, "B T"], key: jax.Array | None) -> Float[Array, "B T D"]:
        """Hidden states of left-padded histories; ``users`` is not read, ``key`` is for dropout (``None`` for none)."""
        rngs = None if key is None else {"dropout": key}
        return jnp.asarray(self.apply({"params": params}, items, deterministic=key is None, rngs=rngs))

    @nn.nowrap
    def scores(
        self, params: Any, states: Float[Array, "B T D"], items: Int[Array, "B T"] | None, key: Any
    ) -> Float[Array, "B T"]:
        """Scores of ``items`` after the states beside them; for ``None`` of all items [B, T, N]. No ``key`` is used."""
        if items is None:
            return jnp.einsum("btd,nd->btn", states, params["item_embedding"][1:])
        return logits(params, states, items)


@partial(jax.jit, static_argnums=0)
def _last_hidden(
    model: SequenceModel, params: Any, items: Int[Array, "B T"], key: jax.Array | None
) -> Float[Array, "B D"]:
    return model.states(params, None, items, key)[:, -1]


@jax.jit
def _scores(
    users: Float[Array, "B D"], table: Float[Array, "N D"], candidates: Int[Array, "B K"]
) -> Float[Array, "B K"]:
    return jnp.einsum("bd,bkd->bk", users, table[candidates])


class SequentialCF:
    """A trained sequence model behind the CF protocol (:mod:`allmrec_jax.models.cf.protocol`).

    Subclasses name their module and its configuration's class.
    """

    live = True
    module: ClassVar[type[SequenceModel]]
    config_class: ClassVar[Callable[..., Any]]

    def __init__(self, config: Any, params: Any, identity: str = "") -> None:
        self.config = config
        self.params = jax.tree.map(jnp.asarray, params)
        self.identity = identity
        self.model = type(self).module(config)

    @classmethod
    def from_export(cls, directory: Path, config: Mapping[str, Any], identity: str) -> Self:
        """A model from ``params.safetensors`` in ``directory`` and its configuration in ``cf.json``.

        Raises:
            UserError: the file is missing or damaged, or a parameter is missing, unexpected or of another shape.
        """
        settled = cls.config_class(**config)
        like = jax.eval_shape(cls.module(settled).init_params, jax.random.key(0))
        return cls(settled, load_arrays(directory / "params.safetensors", like), identity)

    @property
    def num_items(self) -> int:
        """N."""
        return self.config.num_items

    @property
    def dim(self) -> int:
        """D, of item and user vectors alike."""
        return self.config.dim

    def at(self, cut: str) -> Self:
        """Itself: a live model reads the history that it is given."""
        return self

    def item_vectors(self) -> Float[np.ndarray, "N+1 D"]:
        """The raw item embeddings; row 0 is the padding's (random, never trained)."""
        return np.asarray(self.params["item_embedding"])

    def user_vectors(
        self, users: Any, items: Int[Array | np.ndarray, "B T"], *, key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """The last hidden state of each row; ``users`` is not used, and of longer rows the last ``max_length`` count.

        Compiles once for each shape of ``items``: pass bucketed T and a constant B. A key means live dropout.
        """
        return _last_hidden(self.model, self.params, jnp.asarray(items)[:, -self.config.max_length :], key)

    def score(
        self, users: Any, items: Int[Array | np.ndarray, "B T"], candidates: Int[Array | np.ndarray, "B K"]
    ) -> Float[Array, "B K"]:
        """Dot products of the users with their candidates' vectors."""
        return _scores(self.user_vectors(users, items), self.params["item_embedding"], jnp.asarray(candidates))

    def score_catalogue(self, users: Any, items: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B N+1"]:
        """Dot products of the users with every item's vector; column 0, padding's, means nothing."""
        return self.user_vectors(users, items) @ self.params["item_embedding"].T
