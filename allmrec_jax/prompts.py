"""Prompts: fixed text, titles and soft-token slots, assembled by slot into padded arrays.

The soft layout (the paper's section 3.2, in the official code's wording), on one line:

    <user></s> is a user representation.This user has watched "T1"<h1>,"T2"<h2> in the previous. Recommend one next
    movie for this user to watch next from the following movie title set, "C1"<c1>,"C2"<c2>. The recommendation is "

followed by the answer, ``C2"</s>``. The text-only layout has no user sentence and no slots; it starts with
``</s>This user has``. That is OPT's, whose beginning-of-text token is ``</s>`` and stands behind the user, as in the
official code. Where a tokenizer by itself begins a text with such a token, it comes first, before the user; where it
does not, there is none.

White space and tokenisation, stated once and used by every training and inference program:

* Every fixed piece and every title is tokenised on its own and the tokens are joined, so that no title can merge with
  or shift anything around it; special tokens are never recognised in text. Tokenisers that put a space before the first
  word of a text (SentencePiece's dummy prefix) are kept from putting one before each piece. So a piece has the tokens
  that it has in the whole text, but where a tokenizer merges over its edges: over the quote before a title, or the
  quote and comma behind it.
* A title is tokenised without a leading space; the quote before it belongs to the fixed piece before it, also the
  answer's: generation and likelihood start at the title.
* An answer is the title's tokens, the tokens of ``"`` and the end-of-text token.
* There is no white space beside a slot but the one before "in the previous".
* Under a chat template the prompt up to the request is the user's turn, and the last sentence, up to the answer, begins
  the assistant's. Special tokens of the template are recognised, and no beginning-of-text token is added to it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from allmrec_jax.errors import UserError

NO_SLOT, USER_SLOT, ITEM_SLOT = 0, 1, 2


@dataclass(frozen=True)
class PromptStyle:
    """The words that depend on what is recommended: "has {past}", "next {noun}", "to {verb} next"."""

    past: str
    noun: str
    verb: str


STYLES: dict[str, PromptStyle] = {
    "neutral": PromptStyle("chosen", "item", "choose"),
    "movies": PromptStyle("watched", "movie", "watch"),
    "games": PromptStyle("played", "game", "play"),
    "goods": PromptStyle("bought", "item", "buy"),
}


class Pieces(NamedTuple):
    """The fixed pieces of a prompt, as text or as token ids.

    A prompt is ``head title close <slot> (comma title close <slot>)* middle title close <slot> (comma title close
    <slot>)* tail`` and an answer ``title end`` plus the end-of-text token. Without item slots ``close`` is empty and
    the closing quote is the first character of ``comma``, ``middle`` and ``tail``. Where there is no history, ``alone``
    stands in place of everything up to ``middle``.
    """

    head: Any
    close: Any
    comma: Any
    middle: Any
    tail: Any
    end: Any
    alone: Any


def prompt_text(style: PromptStyle, *, user_slot: bool = True, item_slots: bool = True) -> Pieces:
    """The fixed pieces as text. The user slot and the beginning-of-text token come before ``head``."""
    intro = " is a user representation." if user_slot else ""
    close, quote = ('"', "") if item_slots else ("", '"')
    request = (
        f"Recommend one next {style.noun} for this user to {style.verb} next "
        f'from the following {style.noun} title set, "'
    )
    return Pieces(
        head=f'{intro}This user has {style.past} "',
        close=close,
        comma=f'{quote},"',
        middle=f"{quote} in the previous. {request}",
        tail=f'{quote}. The recommendation is "',
        end='"',
        alone=f"{intro}{request}",
    )


LEAD = "\n"
"""Put before a piece where the tokenizer takes a text's first word otherwise than the same word later: nothing merges
over it."""


def _plain(tokenizer: Any, texts: Any, **kwargs: Any) -> Any:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False, **kwargs)


def _lead(tokenizer: Any) -> tuple[str, int]:
    """What is put before a piece so that it is tokenised as inside a text, and the tokens of that; nothing for most."""
    alone, lead, inside = (list(_plain(tokenizer, text).input_ids) for text in ("a", LEAD, LEAD + "a"))
    return ("", 0) if inside[len(lead) :] == alone else (LEAD, len(lead))


def tokenize(tokenizer: Any, text: str, *, begins: bool = False) -> np.ndarray:
    """Token ids [T] int32 of one piece of text, with no special token added or recognised.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the piece.
        begins: whether the whole text begins with it.
    """
    lead, skipped = ("", 0) if begins else _lead(tokenizer)
    return np.asarray(_plain(tokenizer, lead + text).input_ids[skipped:], np.int32)


def tokenize_pieces(
    tokenizer: Any, style: PromptStyle, *, user_slot: bool = True, item_slots: bool = True, begins: bool = True
) -> Pieces:
    """The fixed pieces as token ids. The user slot and the beginning-of-text token come before ``head``.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: the words.
        user_slot: whether the user sentence begins the prompt.
        item_slots: whether slots stand behind titles.
        begins: whether no text stands before the pieces.
    """
    texts = prompt_text(style, user_slot=user_slot, item_slots=item_slots)
    first = {"head", "alone"} if begins and not user_slot else set()
    return Pieces(
        *(tokenize(tokenizer, text, begins=name in first) for name, text in zip(Pieces._fields, texts, strict=True))
    )


class Chat(NamedTuple):
    """A tokenizer's chat template around a request, as token ids.

    Attributes:
        before: up to the user's words.
        after: from there up to the assistant's.
    """

    before: np.ndarray
    after: np.ndarray


def chat_of(tokenizer: Any, where: object) -> Chat:
    """The chat template of a tokenizer that was read from ``where``.

    Raises:
        UserError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{where}: the tokenizer has no chat template; leave chat off")
    words = "@words@"
    turns = tokenizer.apply_chat_template(
        [{"role": "user", "content": words}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = turns.partition(words)
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in (before, after)]
    return Chat(*(np.asarray(ids, np.int32) for ids in encoded))


@dataclass(frozen=True)
class TitleTable:
    """The tokens of every title of a catalogue, cut to a limit.

    Attributes:
        ids: all titles' tokens, one after the other.
        offsets: [N+2]; title i is ``ids[offsets[i]:offsets[i + 1]]``.
        cut: how many titles were cut.
        extended: how many of these kept more tokens than the limit, because shorter they would read like another.
    """

    ids: np.ndarray
    offsets: np.ndarray
    cut: int
    extended: int

    def __getitem__(self, item: int) -> np.ndarray:
        return self.ids[self.offsets[item] : self.offsets[item + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def title_table(tokenizer: Any, titles: Sequence[str], max_tokens: int) -> TitleTable:
    """Tokenises titles (index 0 is the padding item's) and cuts them to ``max_tokens``, between characters.

    Different titles stay different: where several are alike up to the limit, each keeps as many more tokens as it takes
    to tell all of them apart.
    """
    if max_tokens < 1:
        raise UserError(f"title_max_tokens is {max_tokens}; it must be at least 1")
    lead, skipped = _lead(tokenizer)
    encoded = _plain(tokenizer, [lead + title for title in titles], return_offsets_mapping=True)
    tokens = [ids[skipped:] for ids in encoded.input_ids]
    spans = [
        [(start - len(lead), end - len(lead)) for start, end in title[skipped:]] for title in encoded.offset_mapping
    ]
    cuts = [_cut(spans[item], max_tokens) for item in range(len(tokens))]
    alike: dict[str, list[int]] = {}
    for item, title in enumerate(titles):
        shown = title if cuts[item] == len(tokens[item]) else title[: spans[item][cuts[item] - 1][1]]
        alike.setdefault(shown, []).append(item)
    extended = 0
    for members in alike.values():
        different = {titles[item] for item in members}
        if len(different) > 1:
            characters = _telling_length(different)
            for item in members:
                limit = sum(end < characters for _, end in spans[item]) + 1
                longer = _cut(spans[item], limit, step=1)
                extended += longer > cuts[item]
                cuts[item] = max(longer, cuts[item])
    return TitleTable(
        ids=np.asarray([token for ids, cut in zip(tokens, cuts, strict=True) for token in ids[:cut]], np.int32),
        offsets=np.concatenate([[0], np.cumsum(cuts)]).astype(np.int64),
        cut=sum(cut < len(ids) for ids, cut in zip(tokens, cuts, strict=True)),
        extended=extended,
    )


def _cut(spans: Sequence[tuple[int, int]], limit: int, *, step: int = -1) -> int:
    """The token count next to ``limit`` that splits no character: the bytes of one may be several tokens."""
    while 0 < limit < len(spans) and spans[limit][0] < spans[limit - 1][1]:
        limit += step
    return min(limit, len(spans))


def _telling_length(titles: set[str]) -> int:
    """The smallest length at which the titles, cut to it, all differ: neighbours in order share the most."""
    longest = 0
    for one, other in itertools.pairwise(sorted(titles)):
        letters = zip(one, other, strict=False)
        longest = max(longest, next((i for i, (a, b) in enumerate(letters) if a != b), len(one)))
    return longest + 1


@dataclass(frozen=True)
class PromptTables:
    """All that prompts are made of: a tokenizer, a catalogue's title tokens and the language model's limits.

    Attributes:
        tokenizer: a Hugging Face tokenizer (a fast one: character offsets are needed).
        titles: from :func:`title_table`.
        max_length: the language model's positions: no prompt with its longest answer goes beyond.
        bos: id of the beginning-of-text token; ``None`` where there is none. OPT's own is 2.
        eos: id of the end-of-text token; OPT's own is 2.
        pad: id of what fills rows up and stands at slots; it is never read. OPT's own is 1.
        bos_first: whether ``bos`` comes before the user's vector; else behind it, as in the official code.
        chat: the template that requests are put in, if any.
    """

    tokenizer: Any
    titles: TitleTable
    max_length: int
    bos: int | None = 2
    eos: int = 2
    pad: int = 1
    bos_first: bool = False
    chat: Chat | None = None

    @property
    def opening(self) -> np.ndarray:
        """Token ids before the user's vector."""
        return self.chat.before if self.chat else self._begin if self.bos_first else self._begin[:0]

    @property
    def behind_user(self) -> np.ndarray:
        """Token ids between the user's vector and the text."""
        return self._begin[:0] if self.chat or self.bos_first else self._begin

    @property
    def _begin(self) -> np.ndarray:
        return np.asarray([] if self.bos is None else [self.bos], np.int32)

    def said(self, text: str) -> np.ndarray:
        """Token ids of the end of a prompt; under a chat template its last sentence is the assistant's."""
        if self.chat is None:
            return tokenize(self.tokenizer, text)
        request, _, answer = text.rpartition(". ")
        return np.concatenate(
            [tokenize(self.tokenizer, request + "."), self.chat.after, tokenize(self.tokenizer, answer)]
        )

    @cached_property
    def _pieces(self) -> dict[tuple[PromptStyle, bool, bool], Pieces]:
        return {}

    def pieces(self, style: PromptStyle, user_slot: bool, item_slots: bool) -> Pieces:
        """The fixed pieces' token ids, computed once for each layout."""
        key = (style, user_slot, item_slots)
        if key not in self._pieces:
            layout = {"user_slot": user_slot, "item_slots": item_slots}
            pieces = tokenize_pieces(self.tokenizer, style, **layout, begins=self.chat is None)
            self._pieces[key] = pieces._replace(tail=self.said(prompt_text(style, **layout).tail))
        return self._pieces[key]

    @cached_property
    def end(self) -> np.ndarray:
        """What follows the title in an answer: the closing quote and the end-of-text token."""
        return np.append(tokenize(self.tokenizer, '"'), np.int32(self.eos))

    def answer(self, item: int) -> np.ndarray:
        """Token ids of the answer that names ``item``: title, closing quote, end of text."""
        return np.concatenate([self.titles[item], self.end])

    def title(self, item: int) -> str:
        """The title as prompts display it, that is, cut."""
        return self.tokenizer.decode(self.titles[item].tolist(), clean_up_tokenization_spaces=False)


class PromptBatch(NamedTuple):
    """Prompts (and answers, where a target was given) as right-padded arrays; a pytree.

    Attributes:
        ids: [B, S] int32; at slots and padding the pad token.
        slot: [B, S] int32, what the embedding at a position is: 0 the token's, 1 the user's vector, 2 an item's vector.
        slot_index: [B, S] int32, at item slots the column of ``items`` that stands there, else 0.
        items: [B, P] int32, the items of the prompt: history (left-padded with 0), then candidates.
        lengths: [B] int32, tokens of prompt and answer.
        target_start: [B] int32, tokens of the prompt, that is, where the answer starts.
        targets: [B, A] int32, the answer's tokens again, padded (A = 0 without targets).
        target_mask: [B, A] float32, 1 where ``targets`` holds a token of the answer.
        dropped: [B] int32, how many of the oldest history items were left out so that the prompt fits.
    """

    ids: np.ndarray
    slot: np.ndarray
    slot_index: np.ndarray
    items: np.ndarray
    lengths: np.ndarray
    target_start: np.ndarray
    targets: np.ndarray
    target_mask: np.ndarray
    dropped: np.ndarray


def build_prompts(
    tables: PromptTables,
    style: PromptStyle,
    histories: np.ndarray,
    candidates: np.ndarray,
    targets: np.ndarray | None = None,
    *,
    soft: bool,
    user_slot: bool = True,
    item_slots: bool = True,
    answer_width: int = 0,
) -> PromptBatch:
    """Assembles one prompt per row.

    Args:
        histories: [B, T] item indices, oldest first, left-padded with 0.
        candidates: [B, K] item indices in displayed order.
        targets: [B] item indices to append as answers, or None for inference.
        soft: the layout with soft tokens; False is the text-only layout.
        user_slot: False leaves the user sentence out of the soft layout.
        item_slots: False leaves the item vectors out of the soft layout.
        answer_width: columns of ``targets`` at least, so that all batches have as many.

    Raises:
        UserError: a prompt is longer than the language model allows even with one history item.
    """
    user_slot, item_slots = soft and user_slot, soft and item_slots
    pieces = tables.pieces(style, user_slot, item_slots)
    items = np.concatenate([histories, candidates], axis=1).astype(np.int32)
    width = histories.shape[1]
    fitted, answers = [], []
    for b, row in enumerate(items):
        reserve = max(len(tables.answer(item)) for item in row[width:])
        fitted.append(_fit(tables, pieces, row, width, user_slot, item_slots, reserve))
        answers.append(tables.answer(targets[b]) if targets is not None else np.empty(0, np.int32))
    return _packed(tables, items, fitted, answers, answer_width)


GENRE_QUESTION = ' in the previous. The favorite genres of this user are "'
"""What follows a history when the user's favourite genres are asked for (Figures 4, 5). The paper does not print its
wording; ``opt-nano`` was trained with this one."""


def build_questions(
    tables: PromptTables,
    style: PromptStyle,
    histories: np.ndarray,
    question: str,
    *,
    item_slots: bool,
    reserve: int,
) -> PromptBatch:
    """Prompts that show a history alone and ask for free text.

    Args:
        tables: of the catalogue and the language model.
        style: the words.
        histories: [B, T] item indices, left-padded with 0.
        question: what follows the last title's closing quote, tokenised on its own.
        item_slots: False leaves the item vectors out.
        reserve: tokens that the answer may take.

    Raises:
        UserError: a prompt is longer than the language model allows even with one history item.
    """
    pieces = tables.pieces(style, False, item_slots)
    asked = tables.said(question)
    # Without slots the closing quote is the first token of what follows, on its own as in opt-nano's training.
    pieces = pieces._replace(middle=asked if item_slots else np.concatenate([pieces.end, asked]))
    items = histories.astype(np.int32)
    fitted = [_fit(tables, pieces, row, items.shape[1], False, item_slots, reserve) for row in items]
    return _packed(tables, items, fitted, [np.empty(0, np.int32)] * len(items))


def _packed(
    tables: PromptTables,
    items: np.ndarray,
    fitted: "Sequence[tuple[list[Part], int]]",
    answers: Sequence[np.ndarray],
    answer_width: int = 0,
) -> PromptBatch:
    """Prompts of :func:`_fit` and their answers as arrays."""
    starts = [sum(len(ids) for ids, _, _ in parts) for parts, _ in fitted]
    lengths = np.asarray([start + len(answer) for start, answer in zip(starts, answers, strict=True)], np.int32)
    size = (len(items), min(bucket(int(lengths.max())), tables.max_length))
    ids, slot, slot_index = np.full(size, tables.pad, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32)
    for b, ((parts, _), answer) in enumerate(zip(fitted, answers, strict=True)):
        row = [*parts, (answer, NO_SLOT, 0)]
        ids[b, : lengths[b]] = np.concatenate([part for part, _, _ in row])
        kinds = [(kind, index) for part, kind, index in row for _ in part]
        slot[b, : lengths[b]], slot_index[b, : lengths[b]] = zip(*kinds, strict=True)
    target_ids, target_mask = pad_answers(answers, tables.pad, answer_width)
    return PromptBatch(
        ids=ids,
        slot=slot,
        slot_index=slot_index,
        items=items,
        lengths=lengths,
        target_start=np.asarray(starts, np.int32),
        targets=target_ids,
        target_mask=target_mask,
        dropped=np.asarray([left_out for _, left_out in fitted], np.int32),
    )


Part = tuple[np.ndarray, int, int]
"""Token ids, what they are (a slot kind), and for an item slot its column of ``items``."""


def _fit(
    tables: PromptTables,
    pieces: Pieces,
    row: np.ndarray,
    width: int,
    user_slot: bool,
    item_slots: bool,
    reserve: int,
) -> tuple[list[Part], int]:
    """The prompt's parts, without the oldest history items where all do not fit, and how many those are."""
    columns, shown = np.flatnonzero(row[:width]), np.arange(width, len(row))
    for left_out in range(max(len(columns), 1)):
        parts = _parts(tables, pieces, row, columns[left_out:], shown, user_slot, item_slots)
        length = sum(len(ids) for ids, _, _ in parts) + reserve
        if length <= tables.max_length:
            return parts, left_out
    over, titles = length - tables.max_length, len(shown) + 2  # those shown, one of the history, the answer
    longest = max((len(tables.titles[row[column]]) for column in (*columns[-1:], *shown)), default=1)
    raise UserError(
        f"a prompt of {length} tokens is longer than the language model's {tables.max_length} positions; cut titles to "
        f"{max(longest - -(-over // titles), 1)} tokens (--title-max-tokens) or show fewer of them"
    )


def _parts(
    tables: PromptTables,
    pieces: Pieces,
    row: np.ndarray,
    history: np.ndarray,
    shown: np.ndarray,
    user_slot: bool,
    item_slots: bool,
) -> list[Part]:
    blank = np.asarray([tables.pad], np.int32)
    parts: list[Part] = [(tables.opening, NO_SLOT, 0)]
    parts += [(blank, USER_SLOT, 0)] if user_slot else []
    parts += [(tables.behind_user, NO_SLOT, 0), (pieces.head if len(history) else pieces.alone, NO_SLOT, 0)]
    for columns, last in ((history, pieces.middle), (shown, pieces.tail)):
        for column in columns:
            parts += [(tables.titles[row[column]], NO_SLOT, 0), (pieces.close, NO_SLOT, 0)]
            if item_slots:
                parts.append((blank, ITEM_SLOT, int(column)))
            parts.append((last if column == columns[-1] else pieces.comma, NO_SLOT, 0))
    return parts


def pad_answers(answers: Sequence[np.ndarray], pad: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Answers as ids [B, A] int32 and mask [B, A] float32; A is the longest one or ``width``, in eights."""
    widest = max([width, *map(len, answers)])
    size = (len(answers), -(-widest // 8) * 8)
    ids, mask = np.full(size, pad, np.int32), np.zeros(size, np.float32)
    for b, answer in enumerate(answers):
        ids[b, : len(answer)], mask[b, : len(answer)] = answer, 1.0
    return ids, mask


def bucket(length: int) -> int:
    """The padded length for ``length``: a multiple of 32 up to 256, of 64 up to 1,024, of 256 beyond.

    Few different lengths mean few compiled programs.
    """
    step = 32 if length <= 256 else 64 if length <= 1024 else 256
    return -(-length // step) * step
