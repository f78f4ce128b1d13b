"""Ranking by likelihood: how probable the language model finds each candidate's title as the answer.

All candidates of a prompt are read in one pass behind one shared prefix: they lie side by side in further columns, each
token at the position it would have if its candidate stood alone, attending the prompt and its own candidate only.

Shapes: B batch, K candidates, S prompt length, C answer columns of all candidates together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax.inference.decode import Prefix, extend
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.prompts import PromptTables

COLUMNS = 32
"""C is a multiple of this: few different widths mean few compiled programs."""


class Answers(NamedTuple):
    """The answers of each row's candidates, packed; a pytree.

    An answer of n tokens has its first predicted by the prompt, and gives n - 1 columns that predict the others.

    Attributes:
        first: [B, K] first tokens.
        lengths: [B, K] tokens of each answer.
        inputs: [B, C] the tokens read, answer after answer, then padding.
        targets: [B, C] the token that follows each.
        owner: [B, C] the candidate that a column belongs to; K at padding.
        offset: [B, C] where in its answer an input stands.
    """

    first: Int[np.ndarray, "B K"]
    lengths: Int[np.ndarray, "B K"]
    inputs: Int[np.ndarray, "B C"]
    targets: Int[np.ndarray, "B C"]
    owner: Int[np.ndarray, "B C"]
    offset: Int[np.ndarray, "B C"]


def pack_answers(tables: PromptTables, candidates: Int[np.ndarray, "B K"]) -> Answers:
    """Tokens of every candidate's answer: title, closing quote, end of text."""
    return pack([[tables.answer(item) for item in row] for row in candidates], tables.pad)


def pack(rows: Sequence[Sequence[np.ndarray]], pad: int) -> Answers:
    """The token sequences of each row, as many in each, side by side."""
    batch, count = len(rows), len(rows[0])
    longest = max(sum(len(answer) - 1 for answer in row) for row in rows)
    columns = -(-longest // COLUMNS) * COLUMNS
    inputs, owner = np.full((batch, columns), pad, np.int32), np.full((batch, columns), count, np.int32)
    targets, offset = inputs.copy(), np.zeros((batch, columns), np.int32)
    for b, row in enumerate(rows):
        joined = slice(0, sum(len(answer) - 1 for answer in row))
        inputs[b, joined] = np.concatenate([answer[:-1] for answer in row])
        targets[b, joined] = np.concatenate([answer[1:] for answer in row])
        owner[b, joined] = np.repeat(np.arange(count), [len(answer) - 1 for answer in row])
        offset[b, joined] = np.concatenate([np.arange(len(answer) - 1) for answer in row])
    return Answers(
        first=np.asarray([[answer[0] for answer in row] for row in rows], np.int32),
        lengths=np.asarray([[len(answer) for answer in row] for row in rows], np.int32),
        inputs=inputs,
        targets=targets,
        owner=owner,
        offset=offset,
    )


def read(llm: LanguageModel, params: Any, prefix: Prefix, answers: Answers) -> Float[Array, "B C E"]:
    """Hidden states of the answers' columns, each answer read as if it stood alone behind the prompt."""
    variables = {"params": params}
    size, columns = prefix.cache.k.shape[3], answers.inputs.shape[1]
    in_prompt = (jnp.arange(size)[None] < prefix.lengths[:, None])[:, None]
    same = answers.owner[:, :, None] == answers.owner[:, None, :]
    earlier = answers.offset[:, :, None] >= answers.offset[:, None, :]
    mask = jnp.concatenate([jnp.broadcast_to(in_prompt, (len(same), columns, size)), same & earlier], axis=-1)
    hidden, _ = llm.apply(
        variables,
        llm.apply(variables, answers.inputs, method="embed"),
        prefix.lengths[:, None] + answers.offset,
        mask,
        extend(prefix.cache, columns),
        size,
    )
    return hidden


def likelihoods(llm: LanguageModel, params: Any, prefix: Prefix, answers: Answers) -> Float[Array, "B K"]:
    """Log-likelihood of each answer, summed over its tokens, float32."""
    variables = {"params": params}
    hidden = read(llm, params, prefix, answers)

    def log_probabilities(row: tuple[Array, Array]) -> Array:
        logits = jax.nn.log_softmax(llm.apply(variables, row[0], method="logits"), axis=-1)
        return jnp.take_along_axis(logits, row[1][:, None], axis=-1)[:, 0]

    # Row by row: logits of all columns of all rows at once would be B x C x V numbers.
    rest = jax.lax.map(log_probabilities, (hidden, answers.targets))
    first = jax.nn.log_softmax(llm.apply(variables, prefix.last, method="logits"), axis=-1)
    owned = jax.nn.one_hot(answers.owner, answers.first.shape[1], dtype=jnp.float32)
    return jnp.take_along_axis(first, answers.first, axis=-1) + jnp.einsum(
        "bc,bck->bk", rest, owned, precision=jax.lax.Precision.HIGHEST
    )
