"""How each system answers the questions of an evaluation, from the sources that it is made of.

Every function takes sources, questions, the name that tables show, and what to call with the number of users just
answered; it returns scores of the candidates and perhaps texts.
"""

from collections.abc import Callable
from typing import cast

import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import Advance, ask, cf_scores, derangement, user_vectors, with_latents
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.rng import numpy_rng
from allmrec_jax.trained.sources import Sources

CHUNK = 256
"""Users whose popularity ranking of the catalogue is held at once."""


def oracle(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """The probabilities by which the synthetic data were generated."""
    from allmrec_jax.embedded.synthetic import load_oracle, oracle_scores

    if sources.oracle is None:
        raise UserError("Oracle needs the generator's probabilities; name its oracle.npz with --oracle")
    asked = questions.candidates
    return Outcome(name, oracle_scores(load_oracle(sources.oracle), questions.dataset, asked.users, asked.candidates))


def popularity(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """The number of training interactions of each item."""
    count, asked = sources.dataset.train_count, questions.candidates
    chunks = np.array_split(np.arange(len(asked.users)), -(-len(asked.users) // CHUNK))
    ranks = [questions.catalogue_ranks(np.tile(count, (len(rows), 1)), rows) for rows in chunks]
    return Outcome(name, count[asked.candidates], catalogue_ranks=np.concatenate(ranks))


def cf_answer(needs: str) -> Callable[[Sources, Questions, str, Advance], Outcome]:
    """How any model answers that exports item and user vectors or scores of its own, from a kind of run or arrays."""

    def answer(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
        scores, ranks = cf_scores(sources.scoring_model(needs), questions)
        return Outcome(name, scores, catalogue_ranks=ranks)

    return answer


def llm_only(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """The frozen language model on text-only prompts."""
    return ask(sources.text_recommender, questions, None, name, generate=sources.settings.generate, advance=advance)


def allmrec(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """A-LLMRec: the language model, with the vectors of user and items in its prompts."""
    users = user_vectors(sources.cf, questions)
    return ask(sources.recommender, questions, users, name, generate=sources.settings.generate, advance=advance)


def allmrec_sbert(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Every item by its text's latent, trained items too."""
    users = user_vectors(sources.cf, questions)
    recommender = with_latents(sources.recommender, sources.stage1.item_latents("text"))
    return ask(recommender, questions, users, name, generate=sources.settings.generate, advance=advance)


def mlp_llm(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """MLP-LLM: CF vectors in the prompts, straight from the CF model."""
    users = user_vectors(sources.cf, questions)
    return ask(sources.mlp_llm, questions, users, name, generate=sources.settings.generate, advance=advance)


def tallrec_yes_no(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """TALLRec, asked about one candidate at a time."""
    return ask(sources.tallrec("tallrec-yes-no"), questions, None, name, generate=False, advance=advance)


def tallrec_titles(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """TALLRec, which writes one of the candidates' titles."""
    recommender = sources.tallrec("tallrec-titles")
    return ask(recommender, questions, None, name, generate=sources.settings.generate, advance=advance)


def tallrec_writer(sources: Sources) -> LLMRecommender:
    """TALLRec as a writer of free text, which its protocol of titles has learnt."""
    return cast(LLMRecommender, sources.tallrec("tallrec-titles"))


def items_permuted(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Each item carries another item's vector; padding keeps its own."""
    order = derangement(numpy_rng(sources.settings.seed, "eval/items-permuted"), questions.dataset.num_items)
    latents = sources.stage2.latents(sources.stage1)
    permuted = latents if latents is None else latents[np.concatenate([[0], 1 + order])]
    recommender = with_latents(sources.recommender, permuted)
    return ask(recommender, questions, user_vectors(sources.cf, questions), name, generate=False, advance=advance)


def users_swapped(sources: Sources, questions: Questions, name: str, advance: Advance) -> Outcome:
    """Each user carries the vector of another who is evaluated."""
    users = user_vectors(sources.cf, questions)
    swapped = users[derangement(numpy_rng(sources.settings.seed, "eval/users-swapped"), len(users))]
    return ask(sources.recommender, questions, swapped, name, generate=False, advance=advance)
