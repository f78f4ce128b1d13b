"""Scalings of rotary positions: what a ``config.json`` may say."""

import pytest

from allmrec_jax.models.llm.llama import LlamaConfig
from allmrec_jax.models.llm.rotary import Rope


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({}, Rope(10000.0)),
        (
            {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 2}},
            Rope(500, "linear", 2, original_max_position_embeddings=2048),
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 7.0, "factor": 4.0}},
            Rope(7.0, "dynamic", 4.0, original_max_position_embeddings=2048),
        ),
    ],
)
def test_both_spellings_are_read(config, rope):
    assert LlamaConfig.from_dict(config).rope == rope


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope'"),
        ({"rope_type": "linear", "factor": "2"}, "factor of the rotary positions is '2'"),
        ({"rope_type": "linear", "factor": 0}, "factor of the rotary positions is 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}, "'mrope_section'"),
    ],
)
def test_what_is_not_computed_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_dict({"rope_scaling": given})
