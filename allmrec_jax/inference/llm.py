"""A frozen language model as a recommender: prompts in, candidate scores and generated titles out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from allmrec_jax import sharding
from allmrec_jax.inference.decode import DecodeSettings, decode_texts, generate, prefill
from allmrec_jax.inference.rank import Answers, likelihoods, pack_answers
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.projectors import embed_prompts
from allmrec_jax.prompts import PromptBatch, PromptStyle, PromptTables, build_prompts, build_questions


class SoftTokens(NamedTuple):
    """What fills a prompt's slots; a pytree.

    Attributes:
        params: of :class:`allmrec_jax.models.projectors.Projectors`.
        latents: [N+1, Dj] joint embeddings, or ``None`` for prompts without item slots.
    """

    params: Any
    latents: Float[Array, "N+1 Dj"] | None


class Response(NamedTuple):
    """What a language model answers to a batch of prompts.

    Attributes:
        scores: [B, K] log-likelihood of each candidate's answer, or ``None`` if not asked for.
        texts: [B] generated texts, without the opening quote, or ``None`` if not asked for.
    """

    scores: Float[np.ndarray, "B K"] | None
    texts: list[str] | None


@partial(jax.jit, static_argnames=("llm", "decode"))
def respond(
    llm: LanguageModel,
    llm_params: Any,
    soft: SoftTokens | None,
    prompts: PromptBatch,
    users: Float[Array, "B D"] | None,
    answers: Answers | None,
    decode: DecodeSettings | None,
) -> tuple[Float[Array, "B K"] | None, Int[Array, "B M"] | None]:
    """Scores of the candidates (with ``answers``) and generated tokens (with ``decode``), from one prefill."""
    params, latents = ({}, None) if soft is None else soft
    prompts, users, answers = sharding.constrain_batch((prompts, users, answers))
    embeds = embed_prompts(llm, llm_params, params, prompts, users, latents)
    prefix = prefill(llm, llm_params, embeds, jnp.asarray(prompts.target_start))
    scores = None if answers is None else likelihoods(llm, llm_params, prefix, answers)
    tokens = None if decode is None else generate(llm, llm_params, prefix, decode)
    return sharding.constrain((scores, tokens), P())


@dataclass(frozen=True)
class LLMRecommender:
    """Ranks candidates and generates titles with a frozen language model.

    Attributes:
        llm: the language model, ``llm_params`` its parameters.
        tables: tokenizer and title tokens.
        style: the prompts' words.
        soft: projectors and joint embeddings; ``None`` gives the text-only prompt (LLM-Only).
        user_slot: whether prompts have the user sentence; needs ``soft``.
        history_length: how many of a user's last items a prompt shows.
        batch_size: prompts read at once; the last batch is filled up with repeats, and each to what the mesh divides.
        decode: how titles are generated.
    """

    llm: LanguageModel
    llm_params: Any
    tables: PromptTables
    style: PromptStyle
    soft: SoftTokens | None = None
    user_slot: bool = True
    history_length: int = 10
    batch_size: int = 16
    decode: DecodeSettings = field(default_factory=DecodeSettings)

    def prompts(self, histories: Int[np.ndarray, "B T"], candidates: Int[np.ndarray, "B K"]) -> PromptBatch:
        """The prompts of a batch, without answers."""
        return build_prompts(
            self.tables,
            self.style,
            histories[:, -self.history_length :],
            candidates,
            soft=self.soft is not None,
            user_slot=self.user_slot,
            item_slots=self.soft is not None and self.soft.latents is not None,
        )

    def respond(
        self,
        histories: Int[np.ndarray, "B T"],
        candidates: Int[np.ndarray, "B K"],
        users: Float[np.ndarray, "B D"] | None = None,
        *,
        scores: bool = True,
        texts: bool = True,
    ) -> Iterator[tuple[slice, Response]]:
        """Answers batch by batch: the rows that a batch covers, and the answers for them.

        Args:
            histories: item indices, oldest first, left-padded with 0.
            candidates: item indices in displayed order.
            users: the CF model's user vectors; needed with a user slot.
            scores: whether to score the candidates.
            texts: whether to generate.
        """
        use_users = self.soft is not None and self.user_slot
        if use_users and users is None:
            raise ValueError("prompts with a user slot need user vectors")
        ask = sharding.on_mesh(respond)
        for rows, filled in self._batches(len(histories)):
            prompts = self.prompts(histories[filled], candidates[filled])
            found, tokens = ask(
                self.llm,
                self.llm_params,
                self.soft,
                *sharding.place_batch(
                    (
                        prompts,
                        np.asarray(users)[filled] if use_users else None,
                        pack_answers(self.tables, candidates[filled]) if scores else None,
                    )
                ),
                self.decode if texts else None,
            )
            count = rows.stop - rows.start
            yield (
                rows,
                Response(
                    None if found is None else np.asarray(found)[:count],
                    None
                    if tokens is None
                    else decode_texts(self.tables.tokenizer, np.asarray(tokens)[:count], self.tables.eos),
                ),
            )

    def _batches(self, count: int) -> Iterator[tuple[slice, Int[np.ndarray, "B"]]]:
        """The rows of each batch, and the same filled up."""
        size = len(sharding.padded_rows(self.batch_size))
        for start in range(0, count, self.batch_size):
            rows = slice(start, min(start + self.batch_size, count))
            yield rows, np.resize(np.arange(rows.start, rows.stop), size)

    def answer(self, histories: Int[np.ndarray, "B T"], question: str) -> Iterator[tuple[slice, list[str]]]:
        """Free text about histories alone, with item vectors where there are any and no user vector.

        Args:
            histories: item indices, oldest first, left-padded with 0.
            question: see :func:`allmrec_jax.prompts.build_questions`.

        Yields:
            the rows that a batch covers, and their texts.
        """
        item_slots = self.soft is not None and self.soft.latents is not None
        for rows, filled in self._batches(len(histories)):
            prompts = build_questions(
                self.tables,
                self.style,
                histories[filled][:, -self.history_length :],
                question,
                item_slots=item_slots,
                reserve=self.decode.max_new_tokens,
            )
            _, tokens = sharding.on_mesh(respond)(
                self.llm, self.llm_params, self.soft, *sharding.place_batch((prompts, None, None)), self.decode
            )
            yield (
                rows,
                decode_texts(self.tables.tokenizer, np.asarray(tokens)[: rows.stop - rows.start], self.tables.eos),
            )

    def rank(
        self,
        histories: Int[np.ndarray, "B T"],
        candidates: Int[np.ndarray, "B K"],
        users: Float[np.ndarray, "B D"] | None = None,
    ) -> Float[np.ndarray, "B K"]:
        """Log-likelihood of each candidate's answer, summed over its tokens."""
        batches = self.respond(histories, candidates, users, texts=False)
        return np.concatenate([response.scores for _, response in batches if response.scores is not None])

    def generate(
        self,
        histories: Int[np.ndarray, "B T"],
        candidates: Int[np.ndarray, "B K"],
        users: Float[np.ndarray, "B D"] | None = None,
    ) -> list[str]:
        """Greedily generated text of each row, without the opening quote."""
        batches = self.respond(histories, candidates, users, scores=False)
        return [text for _, response in batches for text in response.texts or ()]
