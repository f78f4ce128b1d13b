"""TALLRec's protocol: prompts as written, and packed candidates that score as if each were asked about alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm

from allmrec_jax.errors import UserError
from allmrec_jax.inference.yes_no import YesNoRecommender, word, yes_no_prompts
from allmrec_jax.prompts import STYLES, PromptTables, title_table

STYLE = STYLES["movies"]
HISTORIES = np.array([[0, 1, 4, 5], [0, 0, 0, 7], [8, 2, 3, 6]])
CANDIDATES = np.array([[2, 3, 6], [8, 1, 5], [7, 5, 1]])


@pytest.fixture(scope="module")
def tables():
    return PromptTables(tiny_llm.tokenizer(), title_table(tiny_llm.tokenizer(), tiny_llm.TITLES, 16), 512)


def text(tables, ids):
    return tables.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_training_prompt_reads_as_written(tables):
    prompts = yes_no_prompts(tables, STYLE, HISTORIES[:2], np.array([6, 3]), np.array([True, False]))
    whole = [text(tables, row[:length]) for row, length in zip(prompts.ids, prompts.lengths, strict=True)]
    will, ask = "Will this user watch the movie", "next? Answer Yes. or No.:"
    assert whole[0] == (
        f'</s>This user has watched "Red Fox","It","It Follows" in the previous. {will} "Saddle & Spur" {ask} Yes.</s>'
    )
    assert whole[1] == (
        f'</s>This user has watched "Moon" in the previous. {will} "Blue Whale of the Deep" {ask} No.</s>'
    )
    for b in range(2):
        answer = prompts.ids[b, prompts.target_start[b] : prompts.lengths[b]]
        np.testing.assert_array_equal(prompts.targets[b][prompts.target_mask[b] > 0], answer)
    # The two answers begin to differ at the first token that is asked for.
    assert prompts.targets[0, 0] != prompts.targets[1, 0]


def test_answers_without_a_difference_are_refused(tables):
    class Deaf:
        def __call__(self, text, **kwargs):
            return tables.tokenizer(text.replace("Yes", "No"), **kwargs)

    with pytest.raises(UserError, match=r"does not tell ' Yes\.' from"):
        word(dataclasses.replace(tables, tokenizer=Deaf()), STYLE)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_candidates_score_as_if_asked_alone(tables, batch_size):
    llm, params = tiny_llm.model()
    scores = YesNoRecommender(llm, params, tables, STYLE, 3, batch_size).rank(HISTORIES, CANDIDATES)
    assert scores.shape == CANDIDATES.shape
    wording = word(tables, STYLE)
    for user, row in enumerate(CANDIDATES):
        for column, item in enumerate(row):
            alone = yes_no_prompts(tables, STYLE, HISTORIES[user : user + 1, -3:], np.array([item]), np.array([True]))
            embeds = llm.apply({"params": params}, alone.ids, method="embed")
            hidden, _ = llm.apply({"params": params}, embeds, jnp.arange(alone.ids.shape[1])[None])
            logits = llm.apply({"params": params}, hidden[0, alone.target_start[0] - 1], method="logits")
            expected = logits[wording.yes[0]] - logits[wording.no[0]]
            # Attention sums in another order over other paddings; the random model's logits reach tens.
            np.testing.assert_allclose(scores[user, column], expected, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_left_out_oldest_first(tables):
    whole = yes_no_prompts(tables, STYLE, HISTORIES[2:], np.array([7]), np.array([True]))
    short = dataclasses.replace(tables, max_length=int(whole.lengths[0]) - 1)
    cut = yes_no_prompts(short, STYLE, HISTORIES[2:], np.array([7]), np.array([True]))
    assert cut.dropped.tolist() == [1] and whole.dropped.tolist() == [0]
    assert '"Red Foxes","Blue Whale' in text(tables, cut.ids[0]) and "Ghost" not in text(tables, cut.ids[0])
    assert cut.lengths[0] <= short.max_length
    with pytest.raises(UserError, match="longer than the language model's 40 positions"):
        yes_no_prompts(
            dataclasses.replace(tables, max_length=40), STYLE, HISTORIES[2:], np.array([7]), np.array([True])
        )


def test_a_user_without_history_is_asked_about_the_item_alone(tables):
    made = yes_no_prompts(tables, STYLE, np.zeros((1, 2), np.int32), np.array([7]), np.array([True]))
    told = text(tables, made.ids[0])
    assert "in the previous" not in told and "Will this user" in told
