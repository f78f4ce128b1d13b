"""The shipped language model does on held-out lists what A-LLMRec asks of a language model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.embedded.lexicon import PLAIN, THEMES
from allmrec_jax.embedded.list_tasks import Shape, TaskWriter
from allmrec_jax.embedded.opt_nano import answer_logits, score
from allmrec_jax.embedded.theme_texts import invented_word
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.metrics import strict_choice
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.pretrained.llm import load_checkpoint, load_tokenizer
from allmrec_jax.prompts import STYLES, PromptTables, title_table

POSITIONS = 1024
REAL_TITLES = (
    "Jaws",
    "Alien",
    "Casablanca",
    "The Godfather",
    "Citizen Kane",
    "Taxi Driver",
    "Raging Bull",
    "Blade Runner",
    "Some Like It Hot",
    "Gone with the Wind",
    "The Maltese Falcon",
    "Singin' in the Rain",
    "Lawrence of Arabia",
    "The Wizard of Oz",
    "2001: A Space Odyssey",
    "12 Angry Men",
    "Pulp Fiction",
    "The Shawshank Redemption",
    "One Flew Over the Cuckoo's Nest",
    "The Silence of the Lambs",
    "The Bridge on the River Kwai",
    "The Treasure of the Sierra Madre",
    "Eternal Sunshine of the Spotless Mind",
    "The Assassination of Jesse James by the Coward Robert Ford",
    "The Good, the Bad and the Ugly",
    "Butch Cassidy and the Sundance Kid",
    "Star Wars: Episode V - The Empire Strikes Back",
    "The Lord of the Rings: The Fellowship of the Ring",
    "The Lord of the Rings: The Return of the King",
    "Pirates of the Caribbean: The Curse of the Black Pearl",
    "Indiana Jones and the Kingdom of the Crystal Skull",
    "Everything You Always Wanted to Know About Sex",
    "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb",
    "Borat: Cultural Learnings of America for Make Benefit Glorious Nation of Kazakhstan",
    "Birdman or (The Unexpected Virtue of Ignorance)",
    "Le fabuleux destin d'Amélie Poulain",
    "Crouching Tiger, Hidden Dragon",
    "Se7en",
    "WALL-E",
    "Toy Story 3",
    "E.T. the Extra-Terrestrial",
    "O Brother, Where Art Thou?",
)


@pytest.fixture(scope="module")
def nano() -> tuple[OPT, Any, Any]:
    config, params = load_checkpoint("opt-nano", jnp.float32)
    return OPT(config), params, load_tokenizer("opt-nano")


@pytest.fixture(scope="module")
def titles_of(nano) -> dict[str, list[str]]:
    """Titles of 2 to 24 words, half of them words that the model was never shown; of the lexicon; and real ones."""
    rng = np.random.default_rng(7)
    words = [*(word for theme in THEMES.values() for word in theme), *PLAIN]

    def word(invented: float) -> str:
        return (invented_word(rng) if rng.random() < invented else str(rng.choice(words))).capitalize()

    def titles(longest: int, invented: float) -> list[str]:
        return [" ".join(word(invented) for _ in range(rng.integers(2, longest + 1))) for _ in range(300)]

    return {"random": titles(24, 0.5), "lexicon": titles(4, 0.0), "real": list(REAL_TITLES)}


def marks(
    nano, kind: str, titles: list[str] | None = None, style: int | None = None, count: int = 16, long: bool = False
) -> np.ndarray:
    """Shares of ``count`` answers that are right, and that are copied right once begun, as greedy generation would."""
    model, params, tokenizer = nano
    shape = Shape(count, 960 if long else 288, "long" if long else "words", 20, 6, 1)
    writer = TaskWriter(tokenizer, certain=True, titles=titles)
    forward = jax.jit(lambda params, batch: answer_logits(model, params, batch, jax.random.key(0)).argmax(-1))
    with jax.numpy_dtype_promotion("standard"):
        return score(forward, params, writer, np.random.default_rng(5), shape, kind, style).mean(0)


@pytest.mark.parametrize("style", range(len(STYLES)), ids=list(STYLES))
def test_chooses_and_copies_with_every_verb(nano, style):
    chosen, copied = marks(nano, "user", style=style)
    # Of 16 answers; chance is 0.07. Blends of 4 to 16 words are often nearly alike, so that being right is hard.
    assert chosen >= 0.5
    assert copied >= 0.9


@pytest.mark.parametrize("kind", ["random", "real"])
def test_copies_titles_it_was_never_shown(nano, titles_of, kind):
    chosen, copied = marks(nano, "user", titles=titles_of[kind], count=24, long=True)
    assert chosen >= 0.4
    assert copied >= 0.6


@pytest.mark.parametrize("kind", ["lexicon", "random", "real"])
def test_text_only_prompt_names_a_candidate(nano, titles_of, kind):
    """What LLM-Only asks: greedy generation, read strictly."""
    llm, params, tokenizer = nano
    titles = titles_of[kind]
    rng = np.random.default_rng(8)
    rows = np.stack([rng.permutation(len(titles))[:25] + 1 for _ in range(32)])
    tables = PromptTables(tokenizer, title_table(tokenizer, ["", *titles], 64), POSITIONS)
    asked = LLMRecommender(llm, params, tables, STYLES["movies"], decode=DecodeSettings(max_new_tokens=64))
    texts = asked.generate(rows[:, :5], rows[:, 5:])
    valid = [
        strict_choice(text, [titles[i - 1] for i in row[5:]]) is not None for text, row in zip(texts, rows, strict=True)
    ]
    assert np.mean(valid) >= {"lexicon": 0.8, "random": 0.5, "real": 0.5}[kind]


def test_names_what_a_history_has_in_common(nano):
    named, _ = marks(nano, "genre", count=24)
    assert named >= 0.3


def test_positions_and_tokenizer(nano):
    config, tokenizer = nano[0].config, nano[2]
    assert config.max_position_embeddings == POSITIONS
    text = 'Amélie 猫 \U0001f600 \x00\n"[CandidateEmb]"'
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
