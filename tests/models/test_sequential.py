"""What the sequence models begin with."""

import jax
import numpy as np
import pytest

from allmrec_jax.models.cf.sequential import torch_uniform, xavier_normal


@pytest.mark.parametrize("fan_in", [4, 64])
def test_dense_layers_begin_as_torchs_do(fan_in):
    drawn = np.asarray(torch_uniform(fan_in)(jax.random.key(0), (fan_in, 20_000)))
    bound = fan_in**-0.5
    assert drawn.min() >= -bound and drawn.max() <= bound
    # Of 80,000 draws the outermost lie within a thousandth of the bounds; the mean is known to 0.002 bounds.
    assert drawn.min() < -0.999 * bound and drawn.max() > 0.999 * bound
    assert abs(drawn.mean()) < 0.01 * bound
    assert drawn.std() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_embeddings_begin_normal_with_xaviers_spread():
    drawn = np.asarray(xavier_normal(jax.random.key(0), (3000, 50)))
    # Glorot and Bengio: a variance of 2 / (fan in + fan out); 150,000 draws know a spread to 0.2%.
    assert drawn.std() == pytest.approx((2 / 3050) ** 0.5, rel=0.01)
    assert abs(drawn.mean()) < 0.02 * drawn.std() and np.abs(drawn).max() > 3.5 * drawn.std()
