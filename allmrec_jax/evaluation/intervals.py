"""Bootstrap confidence intervals over users and of paired differences between systems, and a paired test."""

import numpy as np
from jaxtyping import Float

from allmrec_jax.rng import numpy_rng

RESAMPLES = 2000
SIGN_FLIPS = 20_000
_CHUNK = 4_000_000  # resampled values held at once


def bootstrap(
    values: Float[np.ndarray, "U M"], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Float[np.ndarray, "M 3"]:
    """Mean and percentile bootstrap interval of each column: ``[mean, low, high]``.

    Users are resampled with replacement, all columns together. The same seed and number of users give the same
    resamples, so intervals are reproducible and don't depend on the other columns.

    Args:
        values: one row per user, one column per metric; at least one row.
        seed: of the resampling only.
        resamples: number of bootstrap samples.
        level: coverage.
    """
    values = np.asarray(values, np.float64)
    users = len(values)
    if users == 0:
        raise ValueError("no user to resample")
    rng = numpy_rng(seed, "bootstrap")
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // users)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        draws = rng.multinomial(users, np.full(users, 1 / users), size=count)
        means[start : start + count] = draws @ values / users
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([values.mean(axis=0), low, high], axis=1)


def paired_bootstrap(
    first: Float[np.ndarray, "U"], second: Float[np.ndarray, "U"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, "3"]:
    """Difference of two systems' means over the same users with its 95% interval: ``[difference, low, high]``.

    Args:
        first: one value per user.
        second: the other system's values, users in the same order.
        seed: of the resampling.
        resamples: number of bootstrap samples.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values differ in length: {len(first)} and {len(second)}")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return bootstrap(difference[:, None], seed=seed, resamples=resamples)[0]


def paired_test(difference: Float[np.ndarray, "U"], *, seed: int = 0, flips: int = SIGN_FLIPS) -> float:
    """Two-sided p-value of the hypothesis that each user's difference is as likely one way as the other.

    A sign-flip (permutation) test of the mean difference; for a single run of two systems' Hit@1 it is McNemar's test
    by simulation. Users with the same size of difference are flipped together, by a binomial draw.

    Args:
        difference: one value per user.
        seed: of the flips.
        flips: how many; the smallest p-value is about one over it.
    """
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    rng = numpy_rng(seed, "sign-flip")
    sums = np.zeros(flips)
    for size, count in zip(sizes, counts, strict=True):
        sums += size * (2 * rng.binomial(count, 0.5, flips) - count)
    # What differs by rounding only is the same.
    as_large = np.abs(sums) >= abs(np.sum(difference)) - 1e-9
    return float((1 + as_large.sum()) / (1 + flips))
