"""SASRec (Kang & McAuley 2018) in Flax Linen, as the PyTorch code that A-LLMRec builds on computes it.

What differs from the usual transformer block, and is kept on purpose: only the query is layer-normalised, keys and
values are the raw input; the residual adds the *normalised* query; the feed-forward residual adds the normalised
input; padding is zeroed but still attended (its key is the key bias); every LayerNorm has epsilon 1e-8; the packed
``in_proj`` is initialised as one matrix.

**Shorter inputs give the same numbers.** A history is left-padded to ``max_length`` (50) in the reference. All pads
enter every block as zeros, so all have one key (the key bias) and one value (the value bias), and positions count from
the right end once the length is fixed. An input of T < 50 columns therefore gets one extra attention column that stands
for the 50 - T missing pads: its logit is raised by log(50 - T). In evaluation the result is that of length 50 up to
rounding. In training, dropout on attention weights would drop each pad on its own; the extra column is scaled by a
binomial count of surviving pads instead, which has exactly that distribution. So buckets change only which random
numbers are drawn.

Shapes: B batch, T time, D model, H heads, K candidates, N items.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.architecture import SMALL, CFArchitecture, CFSettings
from allmrec_jax.models.cf.sequential import Dropout, SequenceModel, SequentialCF, torch_uniform, xavier_normal
from allmrec_jax.settings import setting

LAYER_NORM_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """Everything that decides SASRec's computation; the defaults are the paper's."""

    num_items: int
    dim: int = 50
    blocks: int = 2
    heads: int = 1
    max_length: int = 50
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"SASRec: dim {self.dim} is not a multiple of heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"SASRec: dropout {self.dropout} is not in [0, 1)")
        if min(self.num_items, self.dim, self.blocks, self.heads, self.max_length) < 1:
            raise UserError("SASRec: items, dim, blocks, heads and max_length must all be at least 1")


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name=name)


class PadDropout(nn.Module):
    """What dropout on the weights of ``pads`` identical columns does to their sum: a factor Binomial/mean."""

    rate: float
    pads: int

    @nn.compact
    def __call__(self, weight: Float[Array, "*S"], deterministic: bool) -> Float[Array, "*S"]:
        """``weight``, the sum over the pads, times (number kept) / (pads · (1 - rate))."""
        if deterministic or self.rate == 0:
            return weight
        keep = 1 - self.rate
        chances = [math.comb(self.pads, k) * keep**k * self.rate ** (self.pads - k) for k in range(self.pads)]
        uniform = jax.random.uniform(self.make_rng("dropout"), weight.shape)
        kept = jnp.zeros(weight.shape)
        for fewer in np.cumsum(chances):
            kept += jnp.where(uniform >= fewer, 1.0, 0.0)
        return weight * kept / (self.pads * keep)


class Attention(nn.Module):
    """Causal attention with torch's packed projection; queries come from another tensor than keys and values."""

    config: SASRecConfig

    @nn.compact
    def __call__(
        self, query: Float[Array, "B T D"], x: Float[Array, "B T D"], deterministic: bool
    ) -> Float[Array, "B T D"]:
        """Attend from ``query`` to ``x``, and to the ``max_length - T`` pads before its first column."""
        cfg = self.config
        batch, time, dim = x.shape
        pads = cfg.max_length - time
        kernel = self.param("in_proj_kernel", xavier_normal, (dim, 3 * dim))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * dim,))
        heads = (batch, time, cfg.heads, dim // cfg.heads)
        q = (query @ kernel[:, :dim] + bias[None, None, :dim]).reshape(heads) / math.sqrt(heads[-1])
        kv = x @ kernel[:, dim:] + bias[None, None, dim:]
        k, v = kv[..., :dim].reshape(heads), kv[..., dim:].reshape(heads)

        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        causal = np.tril(np.ones((1, 1, time, time), bool))
        logits = jnp.where(causal, logits, -jnp.inf)
        dropout = Dropout(cfg.dropout, name="dropout")
        if pads == 0:
            weights = dropout(jax.nn.softmax(logits, axis=-1), deterministic)
            out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        else:
            pad_key, pad_value = (b.reshape(cfg.heads, -1) for b in jnp.split(bias[dim:], 2))
            pad_logits = jnp.einsum("bqhd,hd->bhq", q, pad_key)[..., None] + math.log(pads)
            weights = jax.nn.softmax(jnp.concatenate([pad_logits, logits], axis=-1), axis=-1)
            pad_weight = PadDropout(cfg.dropout, pads, name="pad_dropout")(weights[..., 0], deterministic)
            out = jnp.einsum("bhqk,bkhd->bqhd", dropout(weights[..., 1:], deterministic), v)
            out = out + jnp.einsum("bhq,hd->bqhd", pad_weight, pad_value)
        return nn.Dense(dim, kernel_init=xavier_normal, name="out_proj")(out.reshape(x.shape))


class FeedForward(nn.Module):
    """Two 1×1 convolutions, that is, dense layers over the width, with the residual inside."""

    config: SASRecConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], deterministic: bool) -> Float[Array, "B T D"]:
        """Convolution, dropout, ReLU, convolution, dropout, plus ``x``."""
        dim = self.config.dim
        h = nn.Dense(dim, kernel_init=xavier_normal, bias_init=torch_uniform(dim), name="conv1")(x)
        h = nn.relu(Dropout(self.config.dropout, name="dropout1")(h, deterministic))
        h = nn.Dense(dim, kernel_init=xavier_normal, bias_init=torch_uniform(dim), name="conv2")(h)
        return x + Dropout(self.config.dropout, name="dropout2")(h, deterministic)


class Block(nn.Module):
    """One SASRec block."""

    config: SASRecConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> tuple[Float[Array, "B T D"], None]:
        """``mask`` is True at items; padding leaves the block as zeros."""
        query = _layer_norm("attention_norm")(x)
        x = query + Attention(self.config, name="attention")(query, x, self.deterministic)
        x = _layer_norm("feed_forward_norm")(x)
        x = FeedForward(self.config, name="feed_forward")(x, self.deterministic)
        return jnp.where(mask[..., None], x, 0.0), None


class SASRec(SequenceModel):
    """The sequence model: a hidden state at each position, to be dotted with item vectors.

    The blocks' parameters are stacked on axis 0 and the blocks run under a scan, which halves the time to compile.
    Every matrix begins Xavier-normal, the padding's row of the table included; everything else as torch has it.
    """

    config: SASRecConfig

    @nn.compact
    def __call__(self, items: Int[Array, "B T"], deterministic: bool = True) -> Float[Array, "B T D"]:
        """Hidden states, each a representation of the user after the items up to there.

        Args:
            items: left-padded with 0; T from 1 to ``max_length``. The result at an item does not depend on how much of
                the padding is present.
            deterministic: False for dropout, with the rng stream ``dropout``.
        """
        cfg = self.config
        time = items.shape[1]
        if not 1 <= time <= cfg.max_length:
            raise ValueError(f"{time} columns; SASRec takes 1 to {cfg.max_length}")
        item_embedding = self.param("item_embedding", xavier_normal, (cfg.num_items + 1, cfg.dim))
        position_embedding = self.param("position_embedding", xavier_normal, (cfg.max_length, cfg.dim))
        mask = items != 0
        x = item_embedding[items] * math.sqrt(cfg.dim) + position_embedding[None, cfg.max_length - time :]
        x = jnp.where(mask[..., None], Dropout(cfg.dropout, name="embedding_dropout")(x, deterministic), 0.0)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=cfg.blocks,
        )
        x, _ = blocks(cfg, deterministic, name="blocks")(x, mask)
        return _layer_norm("final_norm")(x)


class SASRecCF(SequentialCF):
    """A trained SASRec behind the CF protocol."""

    module = SASRec
    config_class = SASRecConfig


@dataclasses.dataclass(frozen=True)
class SASRecSettings(CFSettings):
    """SASRec's: the paper's values."""

    model: Literal["sasrec"] = setting("sasrec", "which CF model")
    blocks: int = setting(2, "self-attention blocks")
    heads: int = setting(1, "attention heads")
    dropout: float = setting(0.5, "dropout rate")

    def module(self, num_users: int, num_items: int) -> SASRec:
        """The network."""
        config = SASRecConfig(num_items, self.dim, self.blocks, self.heads, self.max_length, self.dropout)
        return SASRec(config)


MODEL = CFArchitecture(
    "sasrec",
    "SASRec",
    "Self-attention over the items of a history (Kang & McAuley 2018)",
    {
        "paper": SASRecSettings(),
        "official": SASRecSettings(
            sampling="with-replacement", buckets=1, choose="last", evaluate_every=20, patience=0
        ),
        # Full softmax ends higher on the embedded data than BCE does (NDCG@10 0.50 against 0.48).
        "small": SASRecSettings(max_length=24, dropout=0.3, **SMALL),
    },
    SASRecCF,
)
"""Preset ``official`` has the public code's values; ``paper`` chooses the epoch on validation."""
