"""Stage 1's two autoencoders and the four losses that bring items and their texts into one space.

Paper, section 3.1; where the authors' code (``models/a_llmrec_model.py``) differs, a setting says so.

Shapes: B users, M distinct items of a batch, D width of the CF model, W width of the sentence encoder, L latent width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def _torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's default for a ``Linear``: U(±1/√fan_in); ``shape`` is (…, fan_in, fan_out)."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A dense layer with PyTorch's default initialisation, bias included."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*M i"]) -> Float[Array, "*M o"]:
        """x @ kernel + bias."""
        width = x.shape[-1]
        kernel = self.param("kernel", _torch_uniform, (width, self.features))
        bias = self.param("bias", lambda key: _torch_uniform(key, (width, self.features))[0])
        return x @ kernel + jnp.broadcast_to(bias, (*x.shape[:-1], self.features))


class Alignment(nn.Module):
    """Item and text autoencoder: each one layer with a sigmoid in, one layer out.

    Attributes:
        item_dim: D.
        text_dim: W.
        latent_dim: L, 128 in the paper.
    """

    item_dim: int
    text_dim: int
    latent_dim: int = 128

    def setup(self) -> None:  # noqa: D102
        self.item_encoder, self.item_decoder = Linear(self.latent_dim), Linear(self.item_dim)
        self.text_encoder, self.text_decoder = Linear(self.latent_dim), Linear(self.text_dim)

    def encode_items(self, items: Float[Array, "M D"]) -> Float[Array, "M L"]:
        """The joint embeddings e of CF item vectors."""
        return nn.sigmoid(self.item_encoder(items))

    def encode_texts(self, texts: Float[Array, "M W"]) -> Float[Array, "M L"]:
        """The latents q of sentence vectors, which stand in for e where an item has no trained vector."""
        return nn.sigmoid(self.text_encoder(texts))

    def __call__(self, items: Float[Array, "M D"], texts: Float[Array, "M W"]) -> dict[str, jax.Array]:
        """Latents and reconstructions: ``e`` and ``q`` [M, L], ``items`` [M, D], ``texts`` [M, W]."""
        e, q = self.encode_items(items), self.encode_texts(texts)
        return {"e": e, "q": q, "items": self.item_decoder(e), "texts": self.text_decoder(q)}


def alignment_losses(
    outputs: dict[str, jax.Array],
    items: Float[Array, "M D"],
    texts: Float[Array, "M W"],
    users: Float[Array, "B D"],
    positives: Int[Array, " B"],
    negatives: Int[Array, " B"],
    weights: Float[Array, " B"],
    *,
    negatives_too: bool,
    mean_logits: bool,
    detach_texts: bool,
) -> dict[str, Float[Array, ""]]:
    """The four losses, each a mean over users.

    Args:
        outputs: of :class:`Alignment` for the batch's distinct items.
        items: E of the distinct items, the CF model's.
        texts: Q of the distinct items, the sentence encoder's.
        users: x, the CF model's representation before the positive item.
        positives: row of each user's next item among the M.
        negatives: row of an item that the user has not met.
        weights: 0 leaves a row out, 1 counts it.
        negatives_too: matching and reconstruction add the negative item's error (official) or not (paper).
        mean_logits: recommendation logits are the mean of the D products (official), not their sum (paper).
        detach_texts: the text reconstruction does not pull on its own target (official).

    Returns:
        ``match``, ``item_recon``, ``text_recon``: mean squared errors over the width, the mean over users;
        ``rec``: two binary cross entropies over users, added; ``rec_accuracy``: how often the positive wins.
    """
    target_texts = jax.lax.stop_gradient(texts) if detach_texts else texts
    errors = {
        "match": jnp.square(outputs["e"] - outputs["q"]).mean(-1),
        "item_recon": jnp.square(outputs["items"] - items).mean(-1),
        "text_recon": jnp.square(outputs["texts"] - target_texts).mean(-1),
    }
    total = jnp.maximum(weights.sum(), 1.0)

    def mean(rows: Float[Array, " B"]) -> Float[Array, ""]:
        return (rows * weights).sum() / total

    losses = {
        name: mean(error[positives] + error[negatives] if negatives_too else error[positives])
        for name, error in errors.items()
    }
    reduce = jnp.mean if mean_logits else jnp.sum
    positive, negative = (reduce(users * outputs["items"][rows], axis=-1) for rows in (positives, negatives))
    losses["rec"] = mean(jax.nn.softplus(-positive)) + mean(jax.nn.softplus(negative))
    losses["rec_accuracy"] = mean((positive > negative).astype(jnp.float32))
    return losses
