"""A model small enough for tests of every architecture that is known, with grouped key-value heads where it may have
them."""

from functools import cache
from typing import Any

import jax
import numpy as np
import tiny_llm

from allmrec_jax.models.llm.families import FAMILIES, family_of, init_params
from allmrec_jax.models.llm.family import LanguageModel, LMConfig

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": 24,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
"""Of a ``config.json``. Each architecture takes what it knows; a window is shorter than the prompts."""

MODEL_TYPES = tuple(FAMILIES)


def config(model_type: str, **changes: Any) -> LMConfig:
    """A configuration, of as many words as :func:`tiny_llm.tokenizer` has tokens."""
    assert len(tiny_llm.tokenizer()) == SIZES["vocab_size"]
    found: LMConfig = FAMILIES[model_type].load().config.from_dict({"model_type": model_type, **SIZES, **changes})
    return found


@cache
def llm(model_type: str, **changes: Any) -> tuple[LanguageModel, Any]:
    """A model and its parameters (NumPy arrays), noise on them so that no scale is one and no bias zero."""
    cfg = config(model_type, **changes)
    rng = np.random.default_rng(0)

    def noisy(x: jax.Array) -> np.ndarray:
        return np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32)

    return family_of(cfg).module(cfg), jax.tree.map(noisy, init_params(cfg, jax.random.key(0)))
