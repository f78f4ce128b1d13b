"""A start for the projectors of stage 2: users and items brought near each other among the word embeddings.

A language model that is sure of itself gives projectors with random weights next to no gradient: whatever it picks, it
picks with confidence. The warm start, which the paper does not have (setting ``warm_start_steps``), trains the
projectors without the language model first. It maximises the likelihood of the target among the candidates under

    P(i | u)  ∝  exp(SHARPNESS · <O_u, O_i> / n²)

where the dot product is taken among the principal directions of the word embeddings and n is the mean norm of a word
embedding. The penalty keeps |O_u| and |O_i| near n, so that soft tokens look like words to the language model.

Prompts that lack one kind of vector (the paper's Table 9) start alike. Without a user's vector the mean of what the
history's items are projected to stands in O_u's place, without item vectors the mean word of an item's title in O_i's,
each brought to norm n.

Shapes: B batch, K candidates, T history, D user vector, Dj joint embedding, E word embedding size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.models.projectors import Projectors

SHARPNESS = 16.0
"""Log-odds of a vector's own likeness against none."""

EXPLAINED = 0.9
"""Share of the word embeddings' variance that their principal directions explain."""

LEARNING_RATE = 1e-3


class WarmStartBatch(NamedTuple):
    """What a step of the warm start reads; a pytree.

    Attributes:
        target: the column of the candidate that comes next.
        users: the CF model's user vectors; ``None`` where prompts have none.
        history: latents of the history, read where there are no ``users``; ``real`` says which are items.
        items: latents of the candidates; ``None`` where prompts have no item vectors.
        titles: the mean word embedding of each candidate's title, read where there are no ``items``.
    """

    target: Int[Array, "B"]
    users: Float[Array, "B D"] | None = None
    history: Float[Array, "B T Dj"] | None = None
    real: Bool[Array, "B T"] | None = None
    items: Float[Array, "B K Dj"] | None = None
    titles: Float[Array, "B K E"] | None = None


def word_directions(words: Float[np.ndarray, "V E"]) -> tuple[Float[np.ndarray, "E P"], float]:
    """The principal directions of word embeddings, and the mean norm of one."""
    words = np.asarray(words, np.float32)
    norm = float(np.linalg.norm(words, axis=1).mean())
    centred = words - words.mean(0)
    variance, directions = np.linalg.eigh(centred.T @ centred)
    explained = np.cumsum(variance[::-1]) / variance.sum()
    return directions[:, ::-1][:, : int(np.searchsorted(explained, EXPLAINED)) + 1], norm


def warm_start(
    params: Any,
    words: Float[np.ndarray, "V E"],
    batch_at: Callable[[int], WarmStartBatch],
    steps: int,
    show: Callable[[int], None] = lambda done: None,
) -> tuple[Any, float]:
    """Projector parameters after ``steps`` contrastive steps.

    Args:
        params: fresh parameters of :class:`allmrec_jax.models.projectors.Projectors`, one or both.
        words: the language model's word embeddings.
        batch_at: of each step.
        steps: how many.
        show: told how many have begun.

    Returns:
        the parameters, and the share of targets ranked first over the last tenth of the steps.
    """
    directions, norm = word_directions(words)
    projectors = Projectors(directions.shape[0])
    params = dict(params)
    for name in sorted({"user_out", "item_out"} & set(params), reverse=True):
        kernel = params[name]["kernel"] @ directions @ directions.T
        # A hidden unit behind its norm and non-linearity has a mean square of about a half.
        kernel = kernel * (norm / jnp.sqrt(0.5 * jnp.sum(kernel**2)))
        params[name] = {"kernel": kernel, "bias": jnp.zeros_like(params[name]["bias"])}
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps), b2=0.98)

    def unit(x: Array) -> Array:
        return x * (norm / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6))

    def loss(params: Any, batch: WarmStartBatch) -> tuple[Array, Array]:
        users, items = projectors.apply({"params": params}, batch.users, batch.items)
        sizes = [jnp.sum(x**2, axis=-1) / norm**2 for x in (users, items) if x is not None]
        if users is None:
            assert batch.real is not None
            _, history = projectors.apply({"params": params}, None, batch.history)
            users = unit(jnp.sum(jnp.where(batch.real[..., None], history, 0.0), axis=1))
        if items is None:
            assert batch.titles is not None
            items = unit(batch.titles)
        likeness = jnp.einsum("bp,bkp->bk", users @ directions, items @ directions) / norm**2
        entropy = optax.softmax_cross_entropy_with_integer_labels(SHARPNESS * likeness, batch.target).mean()
        penalty = sum(jnp.mean((size - 1) ** 2) for size in sizes)
        return entropy + penalty, jnp.mean(likeness.argmax(-1) == batch.target)

    @jax.jit
    def step(params: Any, state: Any, batch: WarmStartBatch) -> tuple[Any, Any, Array]:
        gradient, hit = jax.grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, hit

    state, hits = optimizer.init(params), []
    for index in range(steps):
        show(index + 1)
        params, state, hit = step(params, state, batch_at(index))
        hits.append(hit)
    return params, float(jnp.stack(hits[-max(1, steps // 10) :]).mean())
