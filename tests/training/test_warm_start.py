"""The warm start brings users near their items, in vectors that look like words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.models.projectors import Projectors, init_params
from allmrec_jax.rng import jax_key
from allmrec_jax.training.warm_start import WarmStartBatch, warm_start, word_directions

WIDTH, WORD_DIRECTIONS, STEPS, CANDIDATES = 32, 12, 300, 10


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def words():
    """Word embeddings that vary in 12 of 32 dimensions only."""
    rng = np.random.default_rng(0)
    return (3 * rng.normal(size=(200, WORD_DIRECTIONS)) @ np.eye(WORD_DIRECTIONS, WIDTH)).astype(np.float32)


def planted(index: int, shuffled: bool = False):
    """Users are noisy linear images of their items' latents; ``shuffled`` breaks the relation."""
    relation = np.random.default_rng(1).normal(size=(6, 8)) / np.sqrt(6)
    rng = np.random.default_rng([2, index])
    items = rng.normal(size=(64, CANDIDATES, 6))
    target = rng.integers(0, CANDIDATES, 64)
    users = items[np.arange(64), target] @ relation + 0.2 * rng.normal(size=(64, 8))
    if shuffled:
        users = rng.permutation(users)
    return WarmStartBatch(jnp.asarray(target), users.astype(np.float32), items=jnp.asarray(items, jnp.float32))


def without_users(index: int):
    """Histories of three noisy copies of the next item and one that is padding."""
    batch = planted(index)
    rng = np.random.default_rng([3, index])
    near = np.asarray(batch.items)[np.arange(64), np.asarray(batch.target)][:, None] + 0.5 * rng.normal(size=(64, 4, 6))
    near[:, 0] = 100 * rng.normal(size=(64, 6))
    real = jnp.asarray(np.arange(4)[None].repeat(64, axis=0) > 0)
    return WarmStartBatch(batch.target, history=near.astype(np.float32), real=real, items=batch.items)


def without_items(index: int):
    """Titles whose words are a linear image of the items' latents."""
    batch = planted(index)
    image = np.random.default_rng(4).normal(size=(6, WORD_DIRECTIONS)) @ np.eye(WORD_DIRECTIONS, WIDTH)
    return WarmStartBatch(batch.target, batch.users, titles=(batch.items @ image).astype(np.float32))


def fresh():
    return init_params(WIDTH, 8, 6, jax_key(0, "test"))


def test_users_come_near_their_items(words):
    _, hit = warm_start(fresh(), words, planted, STEPS)
    # Chance is 0.1; 12 batches of 64 have a standard error of 0.02.
    assert hit > 0.5


def test_without_a_relation_nothing_is_learnt(words):
    _, hit = warm_start(fresh(), words, lambda index: planted(index, shuffled=True), STEPS)
    assert abs(hit - 1 / CANDIDATES) < 0.05


@pytest.mark.parametrize("batch_at", [without_users, without_items])
def test_prompts_that_lack_one_kind_of_vector_start_too(words, batch_at):
    dims = (None, 6) if batch_at is without_users else (8, None)
    params, hit = warm_start(init_params(WIDTH, *dims, jax_key(0, "test")), words, batch_at, STEPS)
    assert hit > 0.5 and {name.split("_")[0] for name in params} == {"item" if dims[0] is None else "user"}


def test_vectors_look_like_words(words):
    params, _ = warm_start(fresh(), words, planted, STEPS)
    directions, norm = word_directions(words)
    batch = planted(STEPS)
    for vectors in Projectors(WIDTH).apply({"params": params}, batch.users, batch.items):
        sizes = np.linalg.norm(vectors, axis=-1)
        inside = np.linalg.norm(vectors @ directions, axis=-1) / sizes
        assert 0.7 * norm < sizes.mean() < 1.3 * norm
        # Adam moves every weight, so a little leaves the words' directions.
        assert inside.mean() > 0.9


def test_directions_explain_the_words(words):
    directions, norm = word_directions(words)
    assert directions.shape[1] <= WORD_DIRECTIONS
    np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-5)
    np.testing.assert_allclose(norm, np.linalg.norm(words, axis=1).mean(), rtol=1e-6)
