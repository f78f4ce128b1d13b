"""Texts generated from the lexicon for training ``sbert-nano``: titles and descriptions that carry a mix of themes.

Item texts of the synthetic data set use the same words but another generator (:mod:`allmrec_jax.embedded.synthetic`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from allmrec_jax.embedded.lexicon import FUNCTION, PLAIN, THEMES

WORDS: tuple[tuple[str, ...], ...] = tuple((theme.lower(), *words) for theme, words in THEMES.items())
"""What carries each theme: its name and its words."""

_ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sl sp st str t th tr v w z"
_VOWELS = "a e i o u ai ea ee ie io oa oo ou"
_CODAS = "b ck ct d f ft g l ld lt m mp n nd ng nt p r rd rm rn rt s sk st t th x"
_ENDINGS = "s ed er ing ly al ic ion ium able ment ness"
# Every third syllable or so is open, every fourth word has no ending.
ONSETS, VOWELS = _ONSETS.split(), _VOWELS.split()
CODAS, ENDINGS = [""] * 10 + _CODAS.split(), [""] * 4 + _ENDINGS.split()


def invented_word(rng: np.random.Generator) -> str:
    """A pronounceable word of one to three syllables that means nothing."""
    syllables = [_pick(rng, part) for _ in range(rng.integers(1, 4)) for part in (ONSETS, VOWELS, CODAS)]
    return "".join(syllables) + _pick(rng, ENDINGS)


def draw_mix(rng: np.random.Generator) -> Float[np.ndarray, "themes"]:
    """How much of each theme an item has: one to three themes, summing to 1."""
    mix = np.zeros(len(WORDS))
    count = rng.choice(3, p=(0.5, 0.35, 0.15)) + 1
    mix[rng.choice(len(WORDS), count, replace=False)] = rng.dirichlet(np.full(count, 2.0))
    return mix


def write_text(
    rng: np.random.Generator, topics: Sequence[Sequence[str]], weights: Float[np.ndarray, "topics"], longest: int = 40
) -> str:
    """A title and perhaps a description, at least one word of them on a topic.

    Args:
        topics: the words of each topic.
        weights: how often each is spoken of; sums to 1.
        longest: most words in the description.
    """

    def content(count: int, share: float) -> list[str]:
        kinds = rng.choice(len(topics), count, p=weights)
        on_topic = rng.random(count) < share
        on_topic[rng.integers(count)] = True
        return [
            _pick(rng, topics[int(kind)]) if on else _pick(rng, PLAIN) for kind, on in zip(kinds, on_topic, strict=True)
        ]

    title = " ".join(content(int(rng.integers(1, 7)), 0.65))
    description = "No Description"
    if rng.random() < 0.8:
        words = content(int(rng.integers(2, longest + 1)), rng.uniform(0.2, 0.8))
        spoken = rng.random(len(words)) < 0.4
        words = [f"{_pick(rng, FUNCTION)} {w}" if s else w for w, s in zip(words, spoken, strict=True)]
        description = " ".join(words)
    form = rng.integers(4)
    if form == 0:
        return f"Title: {title}, Description: {description}"
    if form == 1:
        return f'"{title}, {description}"'
    return title if form == 2 else f"{title}. {description}"


@dataclasses.dataclass(frozen=True)
class TextPairs:
    """Texts in pairs, both of a pair on the same topics.

    Attributes:
        texts: 2B of them: the first of every pair, then the second of every pair.
        overlap: [B, B] in 0..1, how much the topics of two pairs have in common: the cosine of their mixes.
    """

    texts: list[str]
    overlap: Float[np.ndarray, "B B"]


def draw_pairs(rng: np.random.Generator, count: int, invented: float = 0.25, longest: int = 40) -> TextPairs:
    """Draw ``count`` pairs.

    Args:
        invented: share of pairs whose topic is a dozen invented words of its own, shared with no other pair: they teach
            an encoder to compare words that it has never met.
        longest: most words in a description.
    """
    mixes = np.zeros((count, len(WORDS) + count))
    first, second = [], []
    for i in range(count):
        if rng.random() < invented:
            topics: Sequence[Sequence[str]] = [[invented_word(rng) for _ in range(rng.integers(2, 13))]]
            weights = np.ones(1)
            mixes[i, len(WORDS) + i] = 1
        else:
            topics, weights = WORDS, draw_mix(rng)
            mixes[i, : len(WORDS)] = weights
        first.append(write_text(rng, topics, weights, longest))
        second.append(write_text(rng, topics, weights, longest))
    unit = mixes / np.linalg.norm(mixes, axis=1, keepdims=True)
    return TextPairs(first + second, (unit @ unit.T).astype(np.float32))


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]
