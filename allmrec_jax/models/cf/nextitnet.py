"""NextItNet (Yuan et al. 2019) in Flax Linen: dilated causal convolutions in residual blocks, as RecBole 1.2 has them.

A block of dilation d is a causal convolution of dilation d, LayerNorm, ReLU, one of dilation 2d, LayerNorm, ReLU, plus
its input. Blocks of ``dilations`` follow each other, ``repeats`` times. Padding is kept at zero throughout, so that a
history gives the same numbers at every width: those of the history without any padding.

Shapes: B batch, T time, D model, N items.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.architecture import SMALL, CFArchitecture, CFSettings
from allmrec_jax.models.cf.sequential import SequenceModel, SequentialCF, torch_uniform, xavier_normal
from allmrec_jax.settings import setting

LAYER_NORM_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class NextItNetConfig:
    """Everything that decides NextItNet's computation; the defaults are RecBole's but for the paper's ``dim``.

    Attributes:
        dilations: of successive blocks, separated by commas.
        repeats: how often all of these follow each other.
    """

    num_items: int
    dim: int = 50
    kernel: int = 3
    dilations: str = "1,4"
    repeats: int = 5
    max_length: int = 50

    def __post_init__(self) -> None:
        if not all(part.strip().isdecimal() and int(part) for part in self.dilations.split(",")):
            raise UserError(f"NextItNet: dilations {self.dilations!r} are not whole numbers of 1 or more, like 1,4")
        if min(self.num_items, self.dim, self.kernel, self.repeats, self.max_length) < 1:
            raise UserError("NextItNet: items, dim, kernel, repeats and max_length must all be at least 1")


class CausalConv(nn.Module):
    """A convolution over time that sees no later position: one product of the shifted inputs side by side."""

    kernel: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Tap k reads ``(kernel - 1 - k) · dilation`` positions back; before the first one there are zeros."""
        time, dim = x.shape[1:]
        uniform = torch_uniform(self.kernel * dim)
        kernel = self.param("kernel", uniform, (self.kernel, dim, dim))
        bias = self.param("bias", uniform, (dim,))
        shifts = [back for k in range(self.kernel) if (back := (self.kernel - 1 - k) * self.dilation) < time]
        taps = [jnp.pad(x[:, : time - back], ((0, 0), (back, 0), (0, 0))) for back in shifts]
        # Taps that reach before the first position see zeros only.
        weights = kernel[self.kernel - len(shifts) :].reshape(-1, dim)
        return jnp.concatenate(taps, axis=-1) @ weights + bias[None, None]


class Blocks(nn.Module):
    """One residual block for each of ``dilations``."""

    config: NextItNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> tuple[Float[Array, "B T D"], None]:
        """``mask`` is True at items; padding enters and leaves as zeros."""
        for number, dilation in enumerate(map(int, self.config.dilations.split(","))):
            h = x
            for half, stretch in enumerate((dilation, 2 * dilation)):
                name = f"{number}_{half}"
                h = CausalConv(self.config.kernel, stretch, name=f"conv_{name}")(h)
                h = nn.LayerNorm(LAYER_NORM_EPSILON, use_fast_variance=False, name=f"norm_{name}")(h)
                h = jnp.where(mask[..., None], nn.relu(h), 0.0)
            x = x + h
        return x, None


class NextItNet(SequenceModel):
    """The sequence model: a hidden state at each position, to be dotted with item vectors.

    The blocks' parameters are stacked on axis 0 and the repetitions run under a scan, which compiles them once. They
    begin as in RecBole: U(±√(1/N)) embeddings, torch's convolutions, a Xavier-normal dense layer.
    """

    config: NextItNetConfig

    @nn.compact
    def __call__(self, items: Int[Array, "B T"], deterministic: bool = True) -> Float[Array, "B T D"]:
        """Hidden states, each a representation of the user after the items up to there.

        Args:
            items: left-padded with 0, of any width.
            deterministic: of no effect; there is no dropout.
        """
        cfg = self.config
        bound = (cfg.num_items + 1) ** -0.5
        table = self.param("item_embedding", _uniform(bound), (cfg.num_items + 1, cfg.dim))
        mask = items != 0
        x = jnp.where(mask[..., None], table[items], 0.0)
        blocks = nn.scan(
            Blocks,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.repeats,
        )
        x, _ = blocks(cfg, name="blocks")(x, mask)
        bias = nn.initializers.constant(0.1)
        return nn.Dense(cfg.dim, kernel_init=xavier_normal, bias_init=bias, name="dense")(x)


def _uniform(bound: float) -> nn.initializers.Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class NextItNetCF(SequentialCF):
    """A trained NextItNet behind the CF protocol."""

    module = NextItNet
    config_class = NextItNetConfig


@dataclasses.dataclass(frozen=True)
class NextItNetSettings(CFSettings):
    """NextItNet's, from the same sources as GRU4Rec's."""

    model: Literal["nextitnet"] = setting("nextitnet", "which CF model")
    beta2: float = setting(0.999, "Adam's second moment decay")
    kernel: int = setting(3, "taps of a convolution")
    dilations: str = setting("1,4", "of successive residual blocks; microsoft/recommenders: 1,2,4,1,2,4")
    repeats: int = setting(5, "how often these blocks follow each other; microsoft/recommenders: 1")

    def module(self, num_users: int, num_items: int) -> NextItNet:
        """The network."""
        config = NextItNetConfig(num_items, self.dim, self.kernel, self.dilations, self.repeats, self.max_length)
        return NextItNet(config)


MODEL = CFArchitecture(
    "nextitnet",
    "NextItNet",
    "Dilated causal convolutions over the items of a history (Yuan et al. 2019)",
    {"paper": NextItNetSettings(), "small": NextItNetSettings(max_length=24, repeats=1, **SMALL)},
    NextItNetCF,
)
