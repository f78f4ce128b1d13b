import jax
import numpy as np
import pytest
import tiny_llm

from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.models.projectors import embed_prompts, init_params
from allmrec_jax.prompts import STYLES, PromptTables, build_prompts, title_table

HISTORIES = np.array([[0, 1, 4], [2, 3, 6], [0, 0, 8]])
CANDIDATES = np.array([[2, 3, 5, 7], [4, 5, 1, 8], [3, 1, 7, 6]])
USERS = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
LATENTS = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)


def recommender(soft=True, **changes):
    llm, params = tiny_llm.model(**changes)
    tables = PromptTables(tiny_llm.tokenizer(), title_table(tiny_llm.tokenizer(), tiny_llm.TITLES, 16), 512)
    tokens = None
    if soft:
        projectors = init_params(llm.config.word_embed_proj_dim, 5, 6, jax.random.key(1))
        tokens = SoftTokens(projectors, jax.numpy.asarray(LATENTS))
    return LLMRecommender(
        llm, params, tables, STYLES["movies"], tokens, history_length=3, batch_size=2, decode=DecodeSettings(12)
    )


@jax.jit(static_argnums=0)
def all_log_probabilities(llm, params, soft, prompt, users):
    """Next-token log-probabilities at every position of one row, read without cache or mask."""
    variables = {"params": params}
    embeds = embed_prompts(llm, params, soft[0], prompt, users, soft[1])
    hidden, _ = llm.apply(variables, embeds, jax.numpy.arange(embeds.shape[1])[None])
    return jax.nn.log_softmax(llm.apply(variables, hidden, method="logits")[0])


def naive(made, row):
    """Log-likelihoods of a row's candidates, each alone behind its own full prompt."""
    scores, one = [], slice(row, row + 1)
    for item in CANDIDATES[row]:
        soft = made.soft is not None
        prompt = build_prompts(made.tables, made.style, HISTORIES[one], CANDIDATES[one], np.array([item]), soft=soft)
        shape = prompt._replace(targets=np.zeros(0), target_mask=np.zeros(0))  # one compiled program for all answers
        given = made.soft or ({}, None), shape, USERS[one] if soft else None
        logp = np.asarray(all_log_probabilities(made.llm, made.llm_params, *given), np.float64)
        positions = range(prompt.target_start[0], prompt.lengths[0])
        scores.append(sum(logp[position - 1, prompt.ids[0, position]] for position in positions))
    return scores


# Sums of about ten float32 log-probabilities of size 10; the two programs round in another order. Measured: 4e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(("soft", "pre_norm"), [(True, True), (False, False)])
def test_shared_prefix_equals_each_candidate_alone(soft, pre_norm):
    width = {} if pre_norm else {"word_embed_proj_dim": 8, "do_layer_norm_before": False}
    made = recommender(soft, **width)
    found = made.rank(HISTORIES, CANDIDATES, USERS if soft else None)
    np.testing.assert_allclose(found, [naive(made, row) for row in range(3)], **TOLERANCE)
    assert np.ptp(found, axis=1).min() > 1.0  # else the comparison would prove little


def test_the_order_of_other_answers_does_not_matter_to_an_answer():
    """Candidates displayed alike, answers packed in another order: each keeps its own likelihood."""
    from allmrec_jax.inference.llm import respond
    from allmrec_jax.inference.rank import pack_answers

    made = recommender()
    prompts = made.prompts(HISTORIES, CANDIDATES)
    order = [2, 0, 3, 1]
    given = made.llm, made.llm_params, made.soft, prompts, USERS
    straight, _ = respond(*given, pack_answers(made.tables, CANDIDATES), None)
    turned, _ = respond(*given, pack_answers(made.tables, CANDIDATES[:, order]), None)
    np.testing.assert_allclose(np.asarray(straight)[:, order], turned, **TOLERANCE)


def test_ranking_and_generation_from_one_prefill_equal_each_alone():
    made = recommender()
    rows = list(made.respond(HISTORIES, CANDIDATES, USERS))
    assert [part for part, _ in rows] == [slice(0, 2), slice(2, 3)]
    np.testing.assert_allclose(
        np.concatenate([response.scores for _, response in rows]), made.rank(HISTORIES, CANDIDATES, USERS), **TOLERANCE
    )
    assert [text for _, response in rows for text in response.texts] == made.generate(HISTORIES, CANDIDATES, USERS)


def test_user_and_item_vectors_reach_the_scores():
    made = recommender()
    base = made.rank(HISTORIES, CANDIDATES, USERS)
    assert np.abs(made.rank(HISTORIES, CANDIDATES, USERS[::-1]) - base).max() > 1e-3
    with pytest.raises(ValueError, match="user vectors"):
        made.rank(HISTORIES, CANDIDATES)
