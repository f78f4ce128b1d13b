"""The two projectors into the language model's token space, and the prompt embeddings they complete.

Shapes: B batch, S prompt length, P items of a prompt, D width of the user vector, Dj width of the joint embedding, E
width of the language model's word embeddings.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.prompts import ITEM_SLOT, USER_SLOT, PromptBatch

LAYER_NORM_EPSILON = 1e-5
LEAKY_SLOPE = 0.01


class Projectors(nn.Module):
    """``F_U``: Linear, LayerNorm, LeakyReLU, Linear; ``F_I``: Linear, LayerNorm, GELU (exact), Linear.

    As in the official code: Xavier-normal weights, torch's default biases. Parameters and computation are float32.

    Attributes:
        width: E, of every hidden layer too.
    """

    width: int

    @nn.compact
    def __call__(
        self, users: Float[Array, "*A D"] | None, items: Float[Array, "*C Dj"] | None
    ) -> tuple[Float[Array, "*A E"] | None, Float[Array, "*C E"] | None]:
        """Token-space vectors of user vectors and of joint embeddings; ``None`` in gives ``None`` out."""
        if users is not None:
            users = nn.leaky_relu(self._norm("user_norm", self._linear("user_in", users)), LEAKY_SLOPE)
            users = self._linear("user_out", users)
        if items is not None:
            items = nn.gelu(self._norm("item_norm", self._linear("item_in", items)), approximate=False)
            items = self._linear("item_out", items)
        return users, items

    def _linear(self, name: str, x: Array) -> Array:
        bound = x.shape[-1] ** -0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
        return nn.Dense(self.width, kernel_init=xavier_normal, bias_init=uniform, name=name)(x)

    def _norm(self, name: str, x: Array) -> Array:
        return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=name)(x)


def init_params(width: int, user_dim: int | None, item_dim: int | None, key: jax.Array) -> dict[str, Any]:
    """Fresh projector parameters; ``None`` leaves a projector out."""
    users, items = (
        None if dim is None else jax.ShapeDtypeStruct((1, dim), jnp.float32) for dim in (user_dim, item_dim)
    )
    return Projectors(width).lazy_init(key, users, items).get("params", {})


def embed_prompts(
    llm: LanguageModel,
    llm_params: Any,
    params: Any,
    prompts: PromptBatch,
    users: Float[Array, "B D"] | None,
    latents: Float[Array, "N+1 Dj"] | None,
) -> Float[Array, "B S E"]:
    """Word embeddings of prompts, with projected vectors at their slots.

    Args:
        llm: the frozen language model, and ``llm_params`` its parameters.
        params: of :class:`Projectors`; an empty dictionary for prompts without slots.
        users: the CF model's user vectors; ``None`` where prompts have no user slot.
        latents: joint embeddings of all items; ``None`` where prompts have no item slots.
    """
    embeds = llm.apply({"params": llm_params}, prompts.ids, method="embed")
    items = None if latents is None else latents[prompts.items]
    users, items = Projectors(llm.config.embed_dim).apply({"params": params}, users, items)
    slot = prompts.slot[..., None]
    if items is not None:
        placed = jnp.take_along_axis(items, prompts.slot_index[..., None], axis=1)
        embeds = jnp.where(slot == ITEM_SLOT, placed.astype(embeds.dtype), embeds)
    if users is not None:
        embeds = jnp.where(slot == USER_SLOT, users[:, None].astype(embeds.dtype), embeds)
    return embeds
