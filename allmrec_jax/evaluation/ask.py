"""How a model answers the questions of an evaluation: a CF model by scores, a language model by scores and titles.

Shapes: D model, K candidates, N items, U users.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from allmrec_jax.data.buckets import bucketed
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.inference.yes_no import YesNoRecommender
from allmrec_jax.models.cf.protocol import CFModel

Advance = Callable[[int], None]
"""Called with the number of users just answered."""


def user_vectors(cf: CFModel, questions: Questions) -> Float[np.ndarray, "U D"]:
    """The CF model's representation of each user before the target."""
    model = cf.at(questions.candidates.cut)
    vectors = np.zeros((len(questions.candidates.users), model.dim), np.float32)
    for rows, part in bucketed(questions.histories):
        asked = questions.indices(np.resize(rows, len(part)))
        vectors[rows] = np.asarray(model.user_vectors(asked, part))[: len(rows)]
    return vectors


def cf_scores(cf: CFModel, questions: Questions) -> tuple[Float[np.ndarray, "U K"], Int[np.ndarray, "U"]]:
    """The model's own score of each candidate, and the target's rank among all items that the user has not met."""
    asked = questions.candidates
    model, candidates = cf.at(asked.cut), asked.candidates
    scores, ranks = np.zeros(candidates.shape, np.float32), np.zeros(len(candidates), np.int64)
    for rows, part in bucketed(questions.histories):
        filled = np.resize(rows, len(part))
        everything = np.asarray(model.score_catalogue(questions.indices(filled), part))[: len(rows)]
        scores[rows] = np.take_along_axis(everything, candidates[rows], axis=1)
        ranks[rows] = questions.catalogue_ranks(everything, rows)
    return scores, ranks


def ask(
    recommender: LLMRecommender | YesNoRecommender,
    questions: Questions,
    users: Float[np.ndarray, "U D"] | None,
    name: str,
    *,
    generate: bool,
    advance: Advance,
) -> Outcome:
    """A language model's scores of the candidates and, with ``generate``, the titles that it writes.

    Users are read in the order of their prompts' lengths, so that batches hold little padding.
    """
    shown = questions.candidates.candidates
    titles = recommender.tables.titles
    tokens = np.diff(titles.offsets)
    tokens[0] = 0
    read = questions.histories[:, -recommender.history_length :]
    order = np.argsort(tokens[read].sum(axis=1) + tokens[shown].sum(axis=1), kind="stable")
    scores = np.zeros(shown.shape, np.float32)
    texts = [""] * len(shown)
    vectors = None if users is None else users[order]
    answers = recommender.respond(questions.histories[order], shown[order], vectors, texts=generate)
    for rows, answer in answers:
        scores[order[rows]] = answer.scores
        for row, text in zip(order[rows], answer.texts or (), strict=False):
            texts[row] = text
        advance(len(order[rows]))
    if not generate:
        return Outcome(name, scores)
    display = {item: recommender.tables.title(item) for item in np.unique(shown)}
    return Outcome(name, scores, texts, [[display[item] for item in row] for row in shown])


def write_freely(recommender: LLMRecommender, questions: Questions, question: str, advance: Advance) -> list[str]:
    """What a language model writes when a history alone is shown and ``question`` is put behind it, per user."""
    read = questions.histories[:, -recommender.history_length :]
    order = np.argsort((read > 0).sum(axis=1), kind="stable")
    texts = [""] * len(read)
    for rows, found in recommender.answer(questions.histories[order], question):
        for row, text in zip(order[rows], found, strict=True):
            texts[row] = text
        advance(len(found))
    return texts


def with_latents(recommender: LLMRecommender, latents: Float[np.ndarray, "N+1 Dj"] | None) -> LLMRecommender:
    """The same trained system with other item vectors behind the titles; :class:`UserError` where it has none."""
    if recommender.soft is None or recommender.soft.latents is None or latents is None:
        raise UserError("this stage-2 run was trained without item vectors; only A-LLMRec itself can be asked")
    return dataclasses.replace(recommender, soft=recommender.soft._replace(latents=jnp.asarray(latents, jnp.float32)))


def derangement(rng: np.random.Generator, count: int) -> Int[np.ndarray, "{count}"]:
    """A random permutation in which nothing stays in its place (for ``count`` of two or more): one long cycle."""
    cycle = rng.permutation(count)
    swapped = np.empty(count, np.int64)
    swapped[cycle] = np.roll(cycle, 1)
    return swapped
