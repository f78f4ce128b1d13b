"""CTRL (Li et al. 2023) over SASRec: a user's representation aligned with text, then one dense layer behind it.

Alignment compares a CF representation and a text's in several sub-spaces: each is a dense layer on the projected
vector, and the similarity of a pair is the sum over one side's sub-spaces of the best match among the other's.

Shapes: B pairs, T time, D model, S sub-spaces, W text width.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from allmrec_jax.models.cf.sasrec import SASRec, SASRecConfig
from allmrec_jax.models.cf.sequential import SequentialCF, torch_uniform


class CTRL(SASRec):
    """SASRec with a dense layer D → D, which begins as torch has it, behind its hidden states."""

    @nn.compact
    def __call__(
        self, items: Int[Array, "B T"], deterministic: bool = True, final: bool = True
    ) -> Float[Array, "B T D"]:
        """Hidden states as SASRec's; ``final=False`` gives SASRec's own, which are aligned with texts."""
        hidden = SASRec.__call__(self, items, deterministic)
        uniform = torch_uniform(self.config.dim)
        out = nn.Dense(self.config.dim, kernel_init=uniform, bias_init=uniform, name="final")(hidden)
        return out if final else hidden


class CTRLCF(SequentialCF):
    """A trained CTRL behind the CF protocol."""

    module = CTRL
    config_class = SASRecConfig


class Aligner(nn.Module):
    """The projections of both sides and their sub-spaces."""

    dim: int
    subspaces: int = 3

    @nn.compact
    def __call__(
        self, cf: Float[Array, "B D"], texts: Float[Array, "B W"]
    ) -> tuple[Float[Array, "S B D"], Float[Array, "S B D"]]:
        """Both sides' vectors in each sub-space."""

        def dense(x: Float[Array, "B X"], name: str) -> Float[Array, "B D"]:
            uniform = torch_uniform(x.shape[-1])
            return nn.Dense(self.dim, kernel_init=uniform, bias_init=uniform, name=name)(x)

        sides = []
        for side, vectors in (("cf", cf), ("text", texts)):
            projected = dense(vectors, f"{side}_projection")
            sides.append(jnp.stack([dense(projected, f"{side}_{number}") for number in range(self.subspaces)]))
        return sides[0], sides[1]


def similarities(
    cf: Float[Array, "S B D"], texts: Float[Array, "S B D"]
) -> tuple[Float[Array, "B B"], Float[Array, "B B"]]:
    """Of each CF representation with each text: summed over the CF side's sub-spaces, and over the text side's."""
    pairs = jnp.einsum("mid,njd->mnij", cf, texts)
    return pairs.max(axis=1).sum(axis=0), pairs.max(axis=0).sum(axis=0)


def contrastive_loss(
    cf: Float[Array, "S B D"],
    texts: Float[Array, "S B D"],
    weights: Float[Array, "B"],
    kind: Literal["infonce", "bce"],
    temperature: float,
) -> Float[Array, ""]:
    """The mean of both directions' losses, each of a pair against the other pairs of the batch.

    Args:
        cf: from :class:`Aligner`, as ``texts`` is.
        weights: 1 for a pair, 0 for an empty row, which is no one's negative either.
        kind: ``infonce`` is the paper's softmax over the batch; ``bce`` a binary cross-entropy of the pairs plus one of
            all non-pairs, as A-LLMRec's authors have it in ``pre_train/ctrl``.
        temperature: of the softmax.
    """
    real = weights > 0
    both = real[:, None] & real[None]
    pair = jnp.eye(len(weights), dtype=bool)
    count = jnp.maximum(weights.sum(), 1.0)
    losses = []
    # Of a CF representation among texts, and of a text among CF representations.
    for scores in (similarities(cf, texts)[0], similarities(cf, texts)[1].T):
        if kind == "infonce":
            masked = jnp.where(both, scores / temperature, -jnp.inf)
            masked = jnp.where(real[:, None], masked, 0.0)
            each = jax.nn.logsumexp(masked, axis=1) - jnp.diag(masked)
            losses.append(jnp.sum(each * weights) / count)
        else:
            likes, dislikes = jax.nn.softplus(-jnp.diag(scores)), jax.nn.softplus(scores)
            others = both & ~pair
            mean = partial(jnp.sum, where=others)
            losses.append(
                jnp.sum(likes * weights) / count + mean(dislikes) / jnp.maximum(jnp.sum(others, dtype=jnp.float32), 1.0)
            )
    return (losses[0] + losses[1]) / 2
