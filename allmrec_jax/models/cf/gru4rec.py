"""GRU4Rec (Hidasi et al. 2016) in Flax Linen, as RecBole 1.2 builds it for next-item prediction.

Item embeddings, dropout on them, a GRU without biases, and a dense layer back to the embeddings' width. Padding leaves
the GRU's state as it is, so a history gives the same numbers at every width.

Shapes: B batch, T time, D model, H hidden, N items.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.architecture import SMALL, CFArchitecture, CFSettings
from allmrec_jax.models.cf.sequential import Dropout, SequenceModel, SequentialCF, torch_uniform, xavier_normal
from allmrec_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class GRU4RecConfig:
    """Everything that decides GRU4Rec's computation; the defaults are RecBole's but for the paper's ``dim``."""

    num_items: int
    dim: int = 50
    hidden: int = 128
    layers: int = 1
    max_length: int = 50
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"GRU4Rec: dropout {self.dropout} is not in [0, 1)")
        if min(self.num_items, self.dim, self.hidden, self.layers, self.max_length) < 1:
            raise UserError("GRU4Rec: items, dim, hidden, layers and max_length must all be at least 1")


@jax.custom_vjp
def recur(
    gates: Float[Array, "T B 3H"], mask: Bool[Array, "T B"], kernel: Float[Array, "H 3H"]
) -> Float[Array, "T B H"]:
    """The states of a GRU from what its inputs add to the gates; they start at 0 and stay where ``mask`` is False.

    Its gradient is written out: the kernel's is one product over all positions, where autodiff adds up T small ones.
    """
    return _recur(gates, mask, kernel)[0]


def _recur(gates: Any, mask: Any, kernel: Any) -> tuple[Any, Any]:
    size = len(kernel)

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        gates, real = inputs
        from_state = state @ kernel
        switches = jax.nn.sigmoid(gates[:, : 2 * size] + from_state[:, : 2 * size])
        reset, update = jnp.split(switches, 2, axis=-1)
        recalled = from_state[:, 2 * size :]
        new = jnp.tanh(gates[:, 2 * size :] + reset * recalled)
        state = jnp.where(real[:, None], new + update * (state - new), state)
        return state, (state, reset, update, new, recalled)

    start = jnp.zeros((gates.shape[1], size), gates.dtype)
    _, (states, *parts) = jax.lax.scan(step, start, (gates, mask))
    return states, (states, parts, mask, kernel)


def _recur_backward(residuals: Any, d_states: Float[Array, "T B H"]) -> tuple[Any, None, Any]:
    states, parts, mask, kernel = residuals
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

    def step(d_later: Any, inputs: Any) -> tuple[Any, Any]:
        d_state, before, reset, update, new, recalled, real = inputs
        d_state = d_state + d_later
        d_moved = jnp.where(real[:, None], d_state, 0.0)
        d_new = d_moved * (1 - update) * (1 - new * new)
        d_update = d_moved * (before - new) * update * (1 - update)
        d_reset = d_new * recalled * reset * (1 - reset)
        d_from_state = jnp.concatenate([d_reset, d_update, d_new * reset], axis=-1)
        d_before = jnp.where(real[:, None], d_state * update, d_state) + d_from_state @ kernel.T
        return d_before, (jnp.concatenate([d_reset, d_update, d_new], axis=-1), d_from_state)

    start = jnp.zeros_like(d_states[0])
    _, (d_gates, d_from_state) = jax.lax.scan(step, start, (d_states, before, *parts, mask), reverse=True)
    return d_gates, None, jnp.einsum("tbh,tbg->hg", before, d_from_state)


recur.defvjp(_recur, _recur_backward)


class GRU(nn.Module):
    """One layer of gated recurrent units, gates in torch's order: reset, update, new."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T H"]:
        """The state after each position; where ``mask`` is False it stays as it was, zero to begin with."""
        kernel = self.param("input_kernel", nn.initializers.xavier_uniform(), (x.shape[-1], 3 * self.hidden))
        recurrent = self.param("hidden_kernel", nn.initializers.xavier_uniform(), (self.hidden, 3 * self.hidden))
        return jnp.swapaxes(recur(jnp.swapaxes(x, 0, 1) @ kernel, mask.T, recurrent), 0, 1)


class GRU4Rec(SequenceModel):
    """The sequence model: a hidden state at each position, to be dotted with item vectors.

    It begins as in RecBole: Xavier-normal embeddings, Xavier-uniform GRU, torch's dense layer.
    """

    config: GRU4RecConfig

    @nn.compact
    def __call__(self, items: Int[Array, "B T"], deterministic: bool = True) -> Float[Array, "B T D"]:
        """Hidden states, each a representation of the user after the items up to there.

        Args:
            items: left-padded with 0, of any width.
            deterministic: False for dropout, with the rng stream ``dropout``.
        """
        cfg = self.config
        table = self.param("item_embedding", xavier_normal, (cfg.num_items + 1, cfg.dim))
        x = Dropout(cfg.dropout, name="embedding_dropout")(table[items], deterministic)
        for layer in range(cfg.layers):
            x = GRU(cfg.hidden, name=f"gru_{layer}")(x, items != 0)
        uniform = torch_uniform(cfg.hidden)
        return nn.Dense(cfg.dim, kernel_init=uniform, bias_init=uniform, name="dense")(x)


class GRU4RecCF(SequentialCF):
    """A trained GRU4Rec behind the CF protocol."""

    module = GRU4Rec
    config_class = GRU4RecConfig


@dataclasses.dataclass(frozen=True)
class GRU4RecSettings(CFSettings):
    """GRU4Rec's: d, batch and optimizer as the paper has them, the rest RecBole 1.2.1's defaults but for the loss."""

    model: Literal["gru4rec"] = setting("gru4rec", "which CF model")
    beta2: float = setting(0.999, "Adam's second moment decay")
    hidden: int = setting(128, "GRU4Rec: width of the GRU's state. NCF: of the MLP's first layer, twice the second's")
    layers: int = setting(1, "GRU layers")
    dropout: float = setting(0.3, "dropout rate")

    def module(self, num_users: int, num_items: int) -> GRU4Rec:
        """The network."""
        config = GRU4RecConfig(num_items, self.dim, self.hidden, self.layers, self.max_length, self.dropout)
        return GRU4Rec(config)


MODEL = CFArchitecture(
    "gru4rec",
    "GRU4Rec",
    "A recurrent network over the items of a history (Hidasi et al. 2016)",
    {"paper": GRU4RecSettings(), "small": GRU4RecSettings(max_length=24, **SMALL)},
    GRU4RecCF,
)
