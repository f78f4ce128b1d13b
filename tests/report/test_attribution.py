"""Attribution of soft tokens: each figure is the slope of the log-likelihood along its token, and names its item."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm

from allmrec_jax.errors import UserError
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.models.projectors import embed_prompts, init_params
from allmrec_jax.prompts import STYLES, PromptTables, build_prompts, title_table
from allmrec_jax.report.attribution import attribute
from allmrec_jax.training.stage2 import loss_behind

HISTORIES, CANDIDATES = np.array([[0, 1, 4], [0, 0, 8]]), np.array([[2, 3, 5, 7], [3, 1, 7, 6]])
TARGETS = np.array([5, 1])


def recommender() -> LLMRecommender:
    llm, params = tiny_llm.model()
    tables = PromptTables(tiny_llm.tokenizer(), title_table(tiny_llm.tokenizer(), tiny_llm.TITLES, 16), 512)
    projectors = init_params(llm.config.word_embed_proj_dim, 5, 6, jax.random.key(1))
    latents = jnp.asarray(np.random.default_rng(1).standard_normal((9, 6)), jnp.float32)
    return LLMRecommender(llm, params, tables, STYLES["movies"], SoftTokens(projectors, latents), history_length=3)


def test_each_soft_token_has_the_slope_of_the_likelihood_along_it():
    made, users = recommender(), np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    found = attribute(made, HISTORIES, CANDIDATES, TARGETS, users)
    assert [(token.kind, token.item) for token in found[1]] == [
        ("user", 0),
        ("history", 8),
        *(("candidate", item) for item in CANDIDATES[1]),
    ]
    assert [token.item for token in found[0] if token.kind == "history"] == [1, 4]

    prompts = build_prompts(made.tables, made.style, HISTORIES, CANDIDATES, TARGETS, soft=True)
    assert made.soft is not None
    embeds = embed_prompts(made.llm, made.llm_params, made.soft.params, prompts, users, made.soft.latents)

    @jax.jit
    def slope(along):
        """Of the log-likelihood as tokens grow, by forward differentiation."""

        def likelihood(scale):
            return -loss_behind(made.llm, {"params": made.llm_params}, embeds * scale[..., None], prompts)[0]

        return jax.jvp(likelihood, (jnp.ones(prompts.slot.shape),), (along,))[1]

    for row, tokens in enumerate(found):
        for place, token in zip(np.flatnonzero(prompts.slot[row]), tokens, strict=True):
            along = np.zeros(prompts.slot.shape, np.float32)
            along[row, place] = 1
            # The same sums in float32, taken in another order.
            assert token.value == pytest.approx(float(slope(along)), rel=1e-3, abs=1e-3), token
    assert max(abs(token.value) for tokens in found for token in tokens) > 0.5


def test_a_system_without_soft_tokens_is_refused():
    made = dataclasses.replace(recommender(), soft=None)
    with pytest.raises(UserError, match="no soft tokens"):
        attribute(made, HISTORIES, CANDIDATES, TARGETS, None)
