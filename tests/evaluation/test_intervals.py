import numpy as np
import pytest

from allmrec_jax.evaluation.intervals import bootstrap, paired_bootstrap, paired_test


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


def test_intervals_cover_the_truth_at_their_rate():
    """300 simulated evaluations of 200 users each, with a Hit@1 of 0.3."""
    draws = np.random.default_rng(5).random((200, 300)) < 0.3
    _, low, high = bootstrap(draws.astype(float), resamples=1000).T
    covered = ((low <= 0.3) & (high >= 0.3)).mean()
    # A share of 0.95 of 300 has a standard error of 0.013; a percentile interval falls a little short.
    assert 0.95 - 4 * 0.013 < covered < 0.95 + 3.8 * 0.013


def test_the_paired_test_has_its_size_under_the_null_and_power_beyond():
    rng = np.random.default_rng(6)
    null, apart = [], []
    for _ in range(300):
        first, second = rng.random((2, 200)) < 0.3
        null.append(paired_test(first.astype(float) - second, flips=1000))
        better = second | (rng.random(200) < 0.2)
        apart.append(paired_test(better.astype(float) - second, flips=1000))
    null, apart = np.array(null), np.array(apart)
    # Standard error 0.013 again; differences of -1, 0 and 1 make the test a little conservative.
    assert 0.01 < (null < 0.05).mean() < 0.09
    assert 0.38 < (null < 0.5).mean() < 0.62
    assert (apart < 0.05).mean() > 0.99


def test_the_paired_test_by_hand():
    # Three users differ, all one way: 2 of the 8 ways to flip are as extreme.
    assert paired_test(np.array([1.0, 1, 1, 0, 0])) == pytest.approx(0.25, abs=0.02)
    assert paired_test(np.zeros(4)) == 1.0
    assert paired_test(np.array([0.5, -0.5, 1 / 3, -1 / 3])) == 1.0
