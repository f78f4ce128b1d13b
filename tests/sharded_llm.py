"""A tiny language model whose dimensions every mesh of eight devices divides, and a batch of prompts for it."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_llm

from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.projectors import init_params
from allmrec_jax.prompts import STYLES, PromptBatch, PromptTables, build_prompts, title_table
from allmrec_jax.training.stage2_batches import Stage2Batch

LAYERS, HEADS, HIDDEN = 3, 8, 32
USER_DIM, LATENT_DIM = 5, 6
ITEMS = len(tiny_llm.TITLES) - 1


@cache
def llm(**changes: Any) -> tuple[LanguageModel, Any]:
    """The model and its parameters (NumPy arrays)."""
    sizes = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "ffn_dim": 64,
        "word_embed_proj_dim": HIDDEN,
        "num_hidden_layers": LAYERS,
    }
    return tiny_llm.model(**{**sizes, **changes})


def tables() -> PromptTables:
    tokenizer = tiny_llm.tokenizer()
    return PromptTables(tokenizer, title_table(tokenizer, list(tiny_llm.TITLES), 32), 512)


def questions(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories [rows, 3], candidates [rows, 4] and user vectors."""
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(ITEMS)[:4] + 1 for _ in range(rows)])
    users = rng.normal(size=(rows, USER_DIM)).astype(np.float32)
    return rng.integers(1, ITEMS + 1, (rows, 3)), candidates, users


def batch(rows: int) -> Stage2Batch:
    histories, candidates, users = questions(rows)
    prompts: PromptBatch = build_prompts(
        tables(), STYLES["neutral"], histories, candidates, candidates[:, 0], soft=True
    )
    return Stage2Batch(prompts, jnp.asarray(users))


def soft() -> SoftTokens:
    """Projectors and joint embeddings."""
    latents = np.random.default_rng(1).random((ITEMS + 1, LATENT_DIM)).astype(np.float32)
    params = init_params(HIDDEN, USER_DIM, LATENT_DIM, jax.random.key(3))
    return SoftTokens(jax.tree.map(np.asarray, params), jnp.asarray(latents))


def recommender(model: LanguageModel, params: Any, soft: SoftTokens, batch_size: int) -> LLMRecommender:
    return LLMRecommender(
        model,
        params,
        tables(),
        STYLES["neutral"],
        soft,
        batch_size=batch_size,
        decode=DecodeSettings(max_new_tokens=6),
    )
