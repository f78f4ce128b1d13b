import numpy as np
import pytest

from allmrec_jax.evaluation.intervals import bootstrap, paired_bootstrap


def test_interval_of_a_mean_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(2.0, 3.0, (4000, 1))
    mean, low, high = bootstrap(values)[0]
    half = 1.96 * values.std() / np.sqrt(4000)
    assert mean == pytest.approx(values.mean())
    # 2,000 resamples place a 2.5% quantile within about 5% of the half width (3 standard errors)
    assert mean - low == pytest.approx(half, rel=0.1)
    assert high - mean == pytest.approx(half, rel=0.1)


def test_seeded_chunked_and_independent_of_other_columns(monkeypatch):
    values = np.random.default_rng(1).random((50, 3))
    whole = bootstrap(values, seed=4, resamples=300)
    np.testing.assert_array_equal(whole, bootstrap(values, seed=4, resamples=300))
    assert not np.array_equal(whole, bootstrap(values, seed=5, resamples=300))
    np.testing.assert_allclose(whole[1], bootstrap(values[:, 1:2], seed=4, resamples=300)[0])
    monkeypatch.setattr("allmrec_jax.evaluation.intervals._CHUNK", 350)  # 7 resamples at a time
    # the sums are taken in another order: rounding only
    np.testing.assert_allclose(whole, bootstrap(values, seed=4, resamples=300), rtol=1e-12)


def test_paired_difference_is_narrower_than_unpaired_where_users_agree():
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    first, second = hard + 0.05 + 0.01 * rng.normal(size=500), hard
    difference, low, high = paired_bootstrap(first, second)
    assert difference == pytest.approx((first - second).mean())
    assert 0.04 < low < difference < high < 0.06


def test_one_user_has_an_interval_of_no_width_and_none_is_an_error():
    np.testing.assert_array_equal(bootstrap(np.array([[0.5]])), [[0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match="no user"):
        bootstrap(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="differ in length"):
        paired_bootstrap(np.zeros(2), np.zeros(3))
