"""Generated prompts that train ``opt-nano``: lists of titles, a question, and the title that answers it.

A task has the layout of :mod:`allmrec_jax.prompts`. What stands in a soft slot here is no projected vector but a
*blend*: a weighted sum of word embeddings. Titles and blends are drawn at random, so that nothing can be learnt but
what to do with a list: match, copy, name what it has in common.

Shapes: B sequences, T tokens, M answer tokens, G slots, R words of a blend.
"""

import math
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from allmrec_jax.embedded.lexicon import PLAIN, THEMES
from allmrec_jax.embedded.theme_texts import invented_word
from allmrec_jax.prompts import GENRE_QUESTION, STYLES, Pieces, tokenize, tokenize_pieces

BLEND = 16
"""R: words of a blend."""

SKILLS: dict[str, float] = {"user": 0.42, "history": 0.08, "text": 0.27, "words": 0.08, "genre": 0.15}
"""What a sequence asks for, and how often:

* ``user``: a candidate, drawn by the likeness of its slot and the user's; several users ask about one list.
* ``history``: the same for the mean of the history's slots; no user slot.
* ``text``: no slots; the candidate that shares words or a theme with the history.
* ``words``: a user slot, no item slots; the candidate whose words the user's blend is made of.
* ``genre``: the themes that a history has in common.
"""


INVENTED = 2000
"""How many invented words long titles are written with."""

SHARPNESS = 16.0
"""Slots s and t of one blend's norm: log P(candidate) = SHARPNESS · <s, t> + constant.

In a part of the batches answers are drawn, not the most likely one taken, so that the model is as unsure as its slots
are weak or alike. A model that is always sure gives projectors no gradient to begin with.
"""

CERTAIN = 0.6
"""Share of batches whose answer is the likeliest candidate. With none, training first unlearns to choose at all."""

UNRELATED = 0.3
"""Share of the clear ``text`` tasks in which no candidate has anything of the history; the last one is then right."""


class Task(NamedTuple):
    """One sequence: tokens, where a blend stands in for the token, and which tokens are asked for."""

    tokens: list[int]
    slots: list[tuple[int, np.ndarray, np.ndarray]]
    """(column, word ids [R], weights [R])"""
    answers: list[tuple[int, int, int]]
    """(column that predicts, token, place of the token in its answer)"""


class Batch(NamedTuple):
    """Arrays of one step; unused rows of the flat ones point behind the end (slots) or weigh nothing (answers)."""

    ids: np.ndarray  # [B, T]
    offsets: np.ndarray  # [B], the first token's position
    slot_at: np.ndarray  # [G], flat index into B * T
    slot_words: np.ndarray  # [G, R]
    slot_weights: np.ndarray  # [G, R]
    answer_at: np.ndarray  # [M], flat index into B * T
    answer: np.ndarray  # [M]
    weight: np.ndarray  # [M]
    first: np.ndarray  # [M], 1 for the first token of an answer
    noise: np.ndarray  # [G], norm of what is added to a slot in a random direction, in norms of a blend


class Shape(NamedTuple):
    """Sizes of a batch of one kind of title; every kind has one, so that training compiles one program for each."""

    batch: int
    length: int
    titles: str
    candidates: int
    history: int
    queries: int


class TaskWriter:
    """Writes tasks in the words and tokens of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        certain: for measuring: the likeliest candidate is the answer, and slots have the norm of a word.
        titles: for measuring: titles to draw from, instead of making them up.
    """

    def __init__(self, tokenizer: Any, *, certain: bool = False, titles: Sequence[str] | None = None):
        self.certain = certain
        self.catalogue = None if titles is None else [tokenize(tokenizer, title).tolist() for title in titles]

        def pieces(**kind: bool) -> list[Pieces]:
            styles = STYLES.values()
            return [Pieces(*(p.tolist() for p in tokenize_pieces(tokenizer, style, **kind))) for style in styles]

        self.bos: int = tokenizer.bos_token_id
        self.pad: int = tokenizer.pad_token_id
        self.pieces = {
            "user": pieces(),
            "history": pieces(user_slot=False),
            "text": pieces(user_slot=False, item_slots=False),
            "words": pieces(item_slots=False),
            "genre": pieces(user_slot=False),
        }
        self.themes = [[_word(tokenizer, word) for word in words] for words in THEMES.values()]
        self.plain = [_word(tokenizer, word) for word in PLAIN]
        rng = np.random.default_rng(INVENTED)
        self.invented = [_word(tokenizer, invented_word(rng)) for _ in range(INVENTED)]
        names = list(THEMES)
        self.genre_names = [tokenize(tokenizer, name).tolist() for name in names]
        self.genre_joined = [tokenize(tokenizer, ", " + name).tolist() for name in names]
        self.genre_question = tokenize(tokenizer, GENRE_QUESTION).tolist()
        special = set(tokenizer.all_special_ids)
        # No quotes in random titles: the quote that ends one must be the only one.
        self.free = np.array([i for s, i in tokenizer.get_vocab().items() if i not in special and '"' not in s])
        self.free.sort()

    def task(
        self,
        rng: np.random.Generator,
        shape: Shape,
        skill: str | None = None,
        style: int | None = None,
        certain: bool = False,
        clear: bool = False,
    ) -> Task:
        """One sequence of at most ``shape.length`` tokens; redrawn until it fits. See :meth:`batch`."""
        skill = skill or str(rng.choice(list(SKILLS), p=list(SKILLS.values())))
        style = int(rng.integers(len(STYLES))) if style is None else style
        while True:
            task = self._write(rng, shape, skill, style, certain or self.certain, clear)
            if len(task.tokens) <= shape.length:
                return task

    def batch(self, rng: np.random.Generator, shape: Shape, positions: int, *, clear: bool = False) -> Batch:
        """One step's arrays; each sequence starts at a random position, so that all of them are trained.

        Args:
            shape: sizes.
            positions: of the model.
            clear: whether the ``text`` tasks have one right answer. Where they have not, a model that can't tell
                candidates apart learns to spread its first token over all of them, and names none.
        """
        certain = bool(rng.random() < CERTAIN)
        tasks = [self.task(rng, shape, certain=certain, clear=clear) for _ in range(shape.batch)]
        batch = pack(tasks, shape, rng.integers(0, positions - shape.length + 1, shape.batch), self.pad)
        batch.noise[:] = 0 if certain else rng.uniform(0, 0.7)
        return batch

    def _write(
        self, rng: np.random.Generator, shape: Shape, skill: str, style: int, certain: bool, clear: bool
    ) -> Task:
        slotless = skill in ("text", "words") or (skill == "genre" and rng.random() < 0.5)
        writer = _Writer(self, self.pieces["text" if skill == "genre" and slotless else skill][style], slotless)
        few = rng.random() < 0.25
        count = int(rng.integers(2, shape.candidates + 1)) if few else shape.candidates
        depth = int(rng.integers(1, shape.history + 1))
        if skill == "genre":
            return self._genre(rng, writer, shape, depth)
        if skill == "text":
            # Drawn apart, so that no candidate is a history title with one token changed.
            history = self._titles(rng, depth, shape.titles)
            if clear:
                target, candidates = self._clear(rng, history, count, shape.titles)
            else:
                target, candidates = int(rng.integers(count)), self._titles(rng, count, shape.titles)
                self._relate(rng, history, candidates, target)
            writer.start(None).list(history, None).middle().list(candidates, None).ask(candidates[target])
            return writer.task
        titles = self._titles(rng, depth + count, shape.titles)
        history, candidates = titles[:depth], titles[depth:]
        if skill == "words":
            target = int(rng.integers(count))
            words = np.resize(np.array(candidates[target]), BLEND)
            weights = np.full(BLEND, 1 / math.sqrt(BLEND * max(1, BLEND // len(candidates[target]))))
            user = (words, weights * math.exp(rng.uniform(-0.5, 0.7)))
            writer.start(user).list(history, None).middle().list(candidates, None).ask(candidates[target])
            return writer.task

        blend = _Blends(rng, self.free, depth + count, 1.0 if certain else math.exp(rng.uniform(-0.7, 0.7)))
        own, others = blend.items[:depth], blend.items[depth:]
        if skill == "history":
            mean = others[rng.integers(count)]
            own = 0.8 * mean + 0.6 * own
            target = int(_draw(rng, blend.scale**2 * own.mean(0, keepdims=True) @ others.T, certain)[0])
            writer.start(None).list(history, blend.slots(own)).middle().list(candidates, blend.slots(others))
            writer.ask(candidates[target])
            return writer.task
        queries = int(rng.integers(1, shape.queries + 1))
        users = blend.users(rng, others, queries)
        scales = np.ones((queries, 1)) if certain else np.exp(rng.uniform(-1.5, 0.7, (queries, 1)))
        targets = _draw(rng, scales * blend.scale * users @ others.T, certain)
        asked = blend.slots(scales * users, 1.0)
        writer.start(asked[0]).list(history, blend.slots(own)).middle().list(candidates, blend.slots(others))
        writer.ask(candidates[targets[0]])
        for slot, target in zip(asked[1:], targets[1:], strict=True):
            writer.ask_again(slot, candidates[target])
        return writer.task

    def _genre(self, rng: np.random.Generator, writer: "_Writer", shape: Shape, depth: int) -> Task:
        """Each title has a word of one of at most three themes; they are named, the most frequent first."""
        depth = max(3, depth)
        count = int(rng.integers(1, min(3, depth // 2) + 1))
        themes = rng.choice(len(self.themes), count, replace=False)
        kinds = np.concatenate([np.arange(count), np.sort(rng.integers(0, count, depth - count))])
        order = np.argsort(-np.bincount(kinds, minlength=count), kind="stable")
        rng.shuffle(kinds)
        titles, words, weights = [], [], []
        for kind in kinds:
            of_theme = self.themes[themes[kind]]
            picked = [of_theme[rng.integers(len(of_theme))] for _ in range(rng.integers(1, 4))]
            plain = [self.plain[rng.integers(len(self.plain))] for _ in range(rng.integers(0, 3))]
            titles.append(_title([[*picked, *plain][i] for i in rng.permutation(len(picked) + len(plain))]))
            chosen = [_title([of_theme[rng.integers(len(of_theme))]])[0] for _ in range(BLEND)]
            words.append(np.array(chosen))
            weights.append(np.full(BLEND, 1 / math.sqrt(BLEND)))
        slots = list(zip(words, weights, strict=True))
        named = [self.genre_names[themes[order[0]]], *(self.genre_joined[themes[i]] for i in order[1:])]
        writer.start(None).list(titles, None if writer.slotless else slots)
        if writer.slotless:
            # Without slots the closing quote belongs to the piece behind it.
            writer.text(writer.pieces.end)
        writer.text(self.genre_question).answer([token for name in named for token in name])
        return writer.task

    def _titles(
        self, rng: np.random.Generator, count: int, kind: str, avoid: Set[int] = frozenset()
    ) -> list[list[int]]:
        """Distinct titles of lexicon words (``words``) or mostly of random tokens (``short``, ``long``).

        One in ten is another one with a token changed, and one in five has a token twice, so that copying must look
        closely. None has a token of ``avoid``.
        """
        if self.catalogue is not None:
            return [list(self.catalogue[i]) for i in rng.choice(len(self.catalogue), count, replace=False)]
        titles: list[list[int]] = []
        seen: set[tuple[int, ...]] = set()
        while len(titles) < count:
            if titles and rng.random() < 0.1:
                title = list(titles[rng.integers(len(titles))])
                title[rng.integers(len(title))] = int(rng.choice(self.free))
            elif kind == "words":
                title = _title([self._any_word(rng) for _ in range(rng.integers(2, 5))])
            elif kind == "long" and rng.random() < 0.5:
                title = _title([self._any_word(rng, 0.5) for _ in range(rng.integers(2, 25))])
            else:
                low, high = {"short": (1, 9), "long": (4, 25)}[kind]
                title = rng.choice(self.free, rng.integers(low, high)).tolist()
            if kind != "words" and len(title) > 2 and rng.random() < 0.2:
                title[rng.integers(len(title))] = title[rng.integers(len(title))]
            if tuple(title) not in seen and avoid.isdisjoint(title):
                seen.add(tuple(title))
                titles.append(title)
        return titles

    def _any_word(self, rng: np.random.Generator, invented: float = 0.0) -> tuple[list[int], list[int]]:
        if rng.random() < invented:
            return self.invented[rng.integers(INVENTED)]
        if rng.random() < 0.3:
            return self.plain[rng.integers(len(self.plain))]
        theme = self.themes[rng.integers(len(self.themes))]
        return theme[rng.integers(len(theme))]

    def _clear(self, rng: np.random.Generator, history: list, count: int, kind: str) -> tuple[int, list[list[int]]]:
        """Candidates of which one has something of the history, or none, and then the last one is right.

        Long titles share pieces of words by chance, as real ones do.
        """
        target, theme = count - 1, None
        related = self._titles(rng, 1, kind)
        if rng.random() >= UNRELATED:
            target = int(rng.integers(count))
            theme = self._relate(rng, history, related, 0)
        avoid = {token for title in history for token in title} if kind != "long" else set()
        avoid |= {token for word in theme or () for form in word for token in form}
        candidates = self._titles(rng, count, kind, avoid)
        if theme is not None:
            candidates[target] = related[0]
        return target, candidates

    def _relate(
        self, rng: np.random.Generator, history: list, candidates: list, target: int
    ) -> list[tuple[list[int], list[int]]]:
        """Gives the history and one candidate a theme or tokens in common; the theme's words, if it is one."""
        related = [*((history, i) for i in range(len(history))), (candidates, target)]
        if rng.random() < 0.5:
            theme = self.themes[rng.integers(len(self.themes))]
            for titles, i in related:
                word = theme[rng.integers(len(theme))]
                titles[i] = [*word[0], *titles[i][1:]] if rng.random() < 0.5 else [*titles[i][:-1], *word[1]]
            return theme
        shared = rng.choice(self.free, 2).tolist()
        for titles, i in related:
            place = int(rng.integers(len(titles[i])))
            titles[i] = [*titles[i][:place], *shared, *titles[i][place + 1 :]]
        return []


class _Blends:
    """Vectors of items and users over a few words drawn for one sequence: sparse (four words each) or dense."""

    def __init__(self, rng: np.random.Generator, words: np.ndarray, count: int, scale: float):
        self.scale = scale
        self.words = rng.choice(words, BLEND, replace=False)
        self.items = np.zeros((count, BLEND))
        self.sparse = rng.random() < 0.3
        if self.sparse:
            for item in self.items:
                item[rng.choice(BLEND, 4, replace=False)] = 0.5
            self.width = BLEND
        else:
            self.width = int(rng.choice([4, 8, BLEND, BLEND]))
            self.items[:, : self.width] = rng.normal(size=(count, self.width)) / math.sqrt(self.width)

    def users(self, rng: np.random.Generator, items: np.ndarray, count: int) -> np.ndarray:
        """Users near an item each, by a degree drawn for each."""
        nearest = items[rng.integers(0, len(items), count)]
        nearest = nearest / np.linalg.norm(nearest, axis=1, keepdims=True)
        other = np.zeros((count, BLEND))
        other[:, : self.width] = rng.normal(size=(count, self.width))
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        near = 1.0 if self.sparse else rng.uniform(0.5, 1, (count, 1))
        return near * nearest + np.sqrt(1 - np.square(near)) * other

    def slots(self, vectors: np.ndarray, scale: float | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self.words, vector * (scale or self.scale)) for vector in vectors]


class _Writer:
    """Appends the pieces of one sequence."""

    def __init__(self, words: TaskWriter, pieces: Pieces, slotless: bool):
        self.words, self.pieces, self.slotless = words, pieces, slotless
        self.task = Task([], [], [])

    def text(self, tokens: Sequence[int]) -> "_Writer":
        self.task.tokens.extend(tokens)
        return self

    def slot(self, slot: tuple[np.ndarray, np.ndarray]) -> "_Writer":
        self.task.slots.append((len(self.task.tokens), *slot))
        return self.text([self.words.pad])

    def start(self, user: tuple[np.ndarray, np.ndarray] | None) -> "_Writer":
        if user is not None:
            self.slot(user)
        return self.text([self.words.bos]).text(self.pieces.head)

    def list(self, titles: Sequence[Sequence[int]], slots: Sequence | None) -> "_Writer":
        for i, title in enumerate(titles):
            self.text(self.pieces.comma if i else ()).text(title)
            if slots is not None:
                self.text(self.pieces.close).slot(slots[i])
        return self

    def middle(self) -> "_Writer":
        return self.text(self.pieces.middle)

    def ask(self, title: Sequence[int]) -> "_Writer":
        return self.text(self.pieces.tail).answer(title)

    def ask_again(self, user: tuple[np.ndarray, np.ndarray], title: Sequence[int]) -> "_Writer":
        return self.slot(user).text([self.words.bos]).ask(title)

    def answer(self, title: Sequence[int]) -> "_Writer":
        for place, token in enumerate([*title, *self.pieces.end, self.words.bos]):
            self.task.answers.append((len(self.task.tokens) - 1, token, place))
            self.text([token])
        return self


def pack(tasks: Sequence[Task], shape: Shape, offsets: np.ndarray, pad: int) -> Batch:
    """Tasks as arrays of the sizes that ``shape`` fixes."""
    rows, columns = len(tasks), shape.length
    slots = rows * (shape.history + shape.candidates + shape.queries)
    # Answers that do not fit are left out; the longest kind of title would ask for many more than the rest.
    answers = rows * {"words": 10, "short": 12, "long": 30}[shape.titles] * (1 + shape.queries // 2)
    batch = Batch(
        np.full((rows, columns), pad, np.int32),
        offsets.astype(np.int32),
        np.full(slots, rows * columns, np.int32),
        np.zeros((slots, BLEND), np.int32),
        np.zeros((slots, BLEND), np.float32),
        np.zeros(answers, np.int32),
        np.zeros(answers, np.int32),
        np.zeros(answers, np.float32),
        np.zeros(answers, np.float32),
        np.zeros(slots, np.float32),
    )
    slot = answer = 0
    for row, task in enumerate(tasks):
        batch.ids[row, : len(task.tokens)] = task.tokens
        for column, words, weights in task.slots:
            batch.slot_at[slot] = row * columns + column
            batch.slot_words[slot], batch.slot_weights[slot] = words, weights
            slot += 1
        for column, token, place in task.answers[: answers - answer]:
            batch.answer_at[answer], batch.answer[answer] = row * columns + column, token
            batch.weight[answer], batch.first[answer] = 1, place == 0
            answer += 1
    return batch


def _draw(rng: np.random.Generator, likeness: np.ndarray, certain: bool) -> np.ndarray:
    """One candidate for each row of likenesses [Q, K], see :data:`SHARPNESS`."""
    noise = 0 if certain else rng.gumbel(size=likeness.shape)
    return np.argmax(SHARPNESS * likeness + noise, axis=1)


def _word(tokenizer: Any, word: str) -> tuple[list[int], list[int]]:
    """The tokens of a word at the start of a title, and behind a space."""
    return tokenize(tokenizer, word.capitalize()).tolist(), tokenize(tokenizer, " " + word.capitalize()).tolist()


def _title(words: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    return [*words[0][0], *(token for word in words[1:] for token in word[1])]
