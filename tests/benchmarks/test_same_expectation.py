"""The comparison of expected steps: two like systems agree, one that drops more does not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

DRAWS = 400


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parents[2] / "benchmarks" / "same_expectation.py"
    spec = importlib.util.spec_from_file_location("same_expectation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["same_expectation"] = module
    with pytest.MonkeyPatch.context() as patch:  # the program sets threads and devices for itself
        patch.setattr("os.environ", {})
        spec.loader.exec_module(module)
    return module


def moments(program, seed, scale=1.0):
    """Of a system whose gradient is noise about 1, 2, …"""
    rng, found = np.random.default_rng(seed), program.Moments()
    for _ in range(DRAWS):
        gradient = scale * np.arange(1.0, 101.0) + rng.normal(size=100)
        found.add(({"loss": float(gradient[0])}, {"w": gradient.astype(np.float32)}))
    return found


def test_means_and_their_variances_are_those_of_all_draws(program):
    found, rng = program.Moments(), np.random.default_rng(0)
    drawn = rng.normal(size=(7, 3))
    for value in drawn:
        found.add(({}, {"w": value}))
    mean, variance = found.of("w")
    np.testing.assert_allclose(mean, drawn.mean(axis=0))
    np.testing.assert_allclose(variance, drawn.var(axis=0, ddof=1) / 7)
    np.testing.assert_allclose(found.of("w", (1,))[0], drawn[1::2].mean(axis=0))


def test_like_systems_agree_and_one_that_is_half_a_percent_off_does_not(program):
    same = program.compared(moments(program, 0), moments(program, 1))
    # A mean of 100 squares of standard normals: 1 ± 4·0.14.
    assert same["draws"] == DRAWS and 0.44 < same["gradients"]["w"]["z²"] < 1.56
    assert abs(same["losses"]["loss"]["z"]) < 4
    off = program.compared(moments(program, 0), moments(program, 1, 1.005))
    assert off["gradients"]["w"]["z²"] > 10
    apart = program.compared(moments(program, 0), moments(program, 1, 2.0))
    assert apart["losses"]["loss"]["z"] == pytest.approx(1 / np.sqrt(2 / DRAWS), rel=0.2)  # noise of the errors
