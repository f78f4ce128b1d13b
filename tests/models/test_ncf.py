"""NeuMF against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.ncf import NCF, NCFConfig, NeuMF

CONFIG = NCFConfig(num_users=7, num_items=11, dim=4, hidden=6, dropout=0.5)


@pytest.fixture(scope="module")
def params():
    """Every parameter of order 1, biases too."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: NeuMF(CONFIG).init_params(jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def reference(params, user, item):
    """One score, from the paper's equations."""
    gmf = user[:4] * item[:4]
    h = np.concatenate([user[4:], item[4:]])
    for layer in ("mlp_0", "mlp_1"):
        h = np.maximum(h @ params["tower"][layer]["kernel"] + params["tower"][layer]["bias"], 0)
    score = params["tower"]["score"]
    return float((np.concatenate([gmf, h]) @ score["kernel"] + score["bias"])[0])


def test_scores_match_numpy(params):
    cf = NCF(CONFIG, params)
    users, candidates = np.array([2, 6]), np.array([[1, 11, 5], [3, 3, 9]])
    histories = np.array([[0, 4, 8], [1, 2, 3]])
    table, items = params["user_embedding"], params["item_embedding"]
    expected = [[reference(params, table[u], items[i]) for i in row] for u, row in zip(users, candidates, strict=True)]
    # Float32 rounding of sums of ten terms of order 1.
    np.testing.assert_allclose(cf.score(users, histories, candidates), expected, rtol=1e-5, atol=1e-5)
    everything = np.asarray(cf.score_catalogue(users, histories))
    assert everything.shape == (2, 12)
    np.testing.assert_allclose(np.take_along_axis(everything, candidates, 1), expected, rtol=1e-5, atol=1e-5)

    unknown = [items[[4, 8]].mean(0), items[[1, 2, 3]].mean(0)]
    expected = [[reference(params, u, items[i]) for i in row] for u, row in zip(unknown, candidates, strict=True)]
    np.testing.assert_allclose(cf.score(None, histories, candidates), expected, rtol=1e-5, atol=1e-5)


def test_vectors_are_both_embeddings_side_by_side(params):
    cf = NCF(CONFIG, params)
    assert cf.dim == 8 and cf.live and cf.at("test") is cf
    np.testing.assert_array_equal(cf.item_vectors(), params["item_embedding"])
    found = cf.user_vectors(np.array([3]), np.array([[1, 2]]))
    np.testing.assert_array_equal(found, params["user_embedding"][[3]])


def test_training_scores_are_those_of_the_protocol(params):
    cf, model = NCF(CONFIG, params), NeuMF(CONFIG)
    users, items = jnp.array([2, 6]), jnp.array([[1, 11, 5], [3, 3, 9]])
    live = jax.tree.map(jnp.asarray, params)
    vectors = model.states(live, users, items, None)
    found = model.scores(live, vectors, items, None)
    np.testing.assert_allclose(found, cf.score(np.asarray(users), items, items), rtol=1e-5)
    everything = model.scores(live, vectors, None, None)
    assert everything.shape == (2, 1, 11)
    np.testing.assert_allclose(everything[:, 0], cf.score_catalogue(np.asarray(users), items)[:, 1:], rtol=1e-5)
    one, two = (model.scores(live, vectors, items, jax.random.key(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two), "dropout is live with a key"


def test_initial_statistics_and_count():
    config = NCFConfig(400, 300)
    params = NeuMF(config).init_params(jax.random.key(0))
    tower = (100 * 128 + 128) + (128 * 64 + 64) + (50 + 64 + 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (400 + 301) * 100 + tower
    for name in ("user_embedding", "item_embedding"):
        assert np.std(params[name]) == pytest.approx(0.01, rel=0.03)
    assert np.abs(params["tower"]["mlp_0"]["kernel"]).max() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("wrong", [{"dropout": -0.1}, {"hidden": 1}, {"dim": 0}, {"num_users": 0}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(UserError):
        NCFConfig(**{"num_users": 3, "num_items": 3} | wrong)
