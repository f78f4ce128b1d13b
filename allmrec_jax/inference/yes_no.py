"""TALLRec's protocol: the language model is asked about one item at a time and says "Yes." or "No.".

The prompt (Bao et al. 2023, arXiv 2305.00447, in our own words, text only), on one line:

    </s>This user has watched "T1","T2" in the previous. Will this user watch the movie "C" next? Answer Yes. or No.:

and the answer `` Yes.</s>`` or `` No.</s>``. An item's score is the log-odds of "Yes." against "No." at the first token
in which the two differ; argmax over 20 candidates makes the recommendation. The candidates of a user are read in one
pass behind their common beginning.

Shapes: B batch, T history, K candidates, S prompt length, C columns of all candidates together, U users.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.inference.decode import prefill
from allmrec_jax.inference.llm import Response
from allmrec_jax.inference.rank import Answers, pack, read
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.prompts import PromptBatch, PromptStyle, PromptTables, bucket, pad_answers, tokenize


class Wording(NamedTuple):
    """The fixed pieces as token ids: ``head title (comma title)* middle title tail``, then ``yes`` or ``no``.

    Where there is no history, ``alone`` stands in place of everything up to ``middle``.
    """

    alone: np.ndarray
    head: np.ndarray
    comma: np.ndarray
    middle: np.ndarray
    tail: np.ndarray
    yes: np.ndarray
    no: np.ndarray


def word(tables: PromptTables, style: PromptStyle) -> Wording:
    """The pieces of a style. Tokens that both answers begin with belong to the prompt.

    Raises:
        UserError: the tokenizer gives both answers the same tokens.
    """
    request = f'Will this user {style.verb} the {style.noun} "'
    texts = (
        request,
        f'This user has {style.past} "',
        '","',
        f'" in the previous. {request}',
        '" next? Answer Yes. or No.:',
        " Yes.",
        " No.",
    )
    alone, head, comma, middle, tail, yes, no = (
        tokenize(tables.tokenizer, text, begins=place < 2) for place, text in enumerate(texts)
    )
    shared = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
    if shared is None:
        raise UserError("the tokenizer does not tell ' Yes.' from ' No.'; TALLRec's yes-no protocol cannot be used")
    tail = np.concatenate([tail, yes[:shared]])
    alone, head = (np.concatenate([tables.opening, tables.behind_user, piece]) for piece in (alone, head))
    return Wording(alone, head, comma, middle, tail, yes[shared:], no[shared:])


def _beginning(tables: PromptTables, wording: Wording, history: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Tokens up to the quote before the item asked about, without the oldest items that do not fit; how many those are.

    Args:
        history: items, padded with 0.
        room: tokens that the rest of the prompt and the answer take.
    """
    items = history[history > 0]
    if not len(items):
        return wording.alone, 0
    titles = [tables.titles[item] for item in items]
    fixed = len(wording.head) + len(wording.middle) + room - len(wording.comma)
    sizes = np.cumsum([len(title) + len(wording.comma) for title in titles[::-1]])
    kept = int((sizes + fixed <= tables.max_length).sum())
    if not kept:
        raise UserError(
            f"a prompt of {fixed + sizes[0]} tokens is longer than the language model's {tables.max_length} positions; "
            "lower the title token limit"
        )
    parts = [wording.head]
    for title in titles[-kept:]:
        parts += [title, wording.comma]
    return np.concatenate([*parts[:-1], wording.middle]), len(items) - kept


def yes_no_prompts(
    tables: PromptTables,
    style: PromptStyle,
    histories: Int[np.ndarray, "B T"],
    items: Int[np.ndarray, "B"],
    truths: Bool[np.ndarray, "B"],
) -> PromptBatch:
    """Training prompts about one item each, with their answers."""
    wording = word(tables, style)
    rows, answers, dropped = [], [], []
    for history, item, truth in zip(histories, items, truths, strict=True):
        answer = np.append(wording.yes if truth else wording.no, np.int32(tables.eos))
        rest = np.concatenate([tables.titles[item], wording.tail])
        beginning, left_out = _beginning(tables, wording, history, len(rest) + len(answer))
        rows.append(np.concatenate([beginning, rest]))
        answers.append(answer)
        dropped.append(left_out)
    whole = [np.concatenate([row, answer]) for row, answer in zip(rows, answers, strict=True)]
    ids, lengths = _right_padded(whole, tables)
    targets, mask = pad_answers(answers, tables.pad)
    return PromptBatch(
        ids=ids,
        slot=np.zeros_like(ids),
        slot_index=np.zeros_like(ids),
        items=np.zeros((len(ids), 0), np.int32),
        lengths=lengths,
        target_start=np.asarray([len(row) for row in rows], np.int32),
        targets=targets,
        target_mask=mask,
        dropped=np.asarray(dropped, np.int32),
    )


def _right_padded(rows: Sequence[np.ndarray], tables: PromptTables) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.asarray([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), min(bucket(int(lengths.max())), tables.max_length)), tables.pad, np.int32)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
    return ids, lengths


@partial(jax.jit, static_argnames="llm")
def log_odds(
    llm: LanguageModel,
    params: Any,
    ids: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    asked: Answers,
    first: tuple[Int[Array, ""], Int[Array, ""]],
) -> Float[Array, "B K"]:
    """Logit of "Yes." minus logit of "No." behind each candidate's question.

    Args:
        ids: the users' common beginnings, right-padded, and ``lengths`` their tokens.
        asked: what follows for each candidate, and one token more, which is not read.
        first: the tokens that the two answers begin with.
    """
    variables = {"params": params}
    prefix = prefill(llm, params, llm.apply(variables, ids, method="embed"), lengths)
    hidden = read(llm, params, prefix, asked)
    last = jnp.cumsum(asked.lengths - 1, axis=1) - 1
    hidden = jnp.take_along_axis(hidden, last[..., None], axis=1)
    yes, no = first

    def difference(row: Float[Array, "K E"]) -> Float[Array, "K"]:
        logits = llm.apply(variables, row, method="logits")
        return logits[:, yes] - logits[:, no]

    return jax.lax.map(difference, hidden)  # row by row: B x K x V logits at once would be many


@dataclass(frozen=True)
class YesNoRecommender:
    """Ranks candidates by what a language model says to each; writes no titles.

    Attributes:
        llm: the language model, ``llm_params`` its parameters, adapter merged.
        tables: tokenizer and title tokens.
        style: the prompts' words.
        history_length: how many of a user's last items a prompt shows.
        batch_size: users asked at once; the last batch is filled up with repeats.
    """

    llm: LanguageModel
    llm_params: Any
    tables: PromptTables
    style: PromptStyle
    history_length: int = 10
    batch_size: int = 16

    @cached_property
    def wording(self) -> Wording:
        """The prompts' pieces."""
        return word(self.tables, self.style)

    def respond(
        self,
        histories: Int[np.ndarray, "U T"],
        candidates: Int[np.ndarray, "U K"],
        users: Float[np.ndarray, "U D"] | None = None,
        *,
        texts: bool = False,
    ) -> Iterator[tuple[slice, Response]]:
        """Log-odds of "Yes." batch by batch: the rows that a batch covers, and the scores for them."""
        if users is not None or texts:
            raise ValueError("yes-no prompts hold no user vector, and no title is written")
        wording, limit = self.wording, self.tables
        first = jnp.asarray(wording.yes[0]), jnp.asarray(wording.no[0])
        for start in range(0, len(histories), self.batch_size):
            rows = slice(start, min(start + self.batch_size, len(histories)))
            filled = np.resize(np.arange(rows.start, rows.stop), self.batch_size)
            beginnings, asked = [], []
            for history, shown in zip(histories[filled, -self.history_length :], candidates[filled], strict=True):
                rest = [np.concatenate([limit.titles[item], wording.tail, wording.yes[:1]]) for item in shown]
                beginnings.append(_beginning(limit, wording, history, max(map(len, rest)))[0])
                asked.append(rest)
            ids, lengths = _right_padded(beginnings, limit)
            found = sharding.on_mesh(log_odds)(self.llm, self.llm_params, ids, lengths, pack(asked, limit.pad), first)
            yield rows, Response(np.asarray(found)[: rows.stop - rows.start], None)

    def rank(
        self, histories: Int[np.ndarray, "U T"], candidates: Int[np.ndarray, "U K"], users: None = None
    ) -> Float[np.ndarray, "U K"]:
        """Log-odds of "Yes." for each candidate."""
        batches = self.respond(histories, candidates, users)
        return np.concatenate([response.scores for _, response in batches if response.scores is not None])
