"""Prompts in the tokens of other families: a dummy prefix, a text begun by the tokenizer, chats, merges over edges."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_llm
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from allmrec_jax.errors import UserError
from allmrec_jax.inference.yes_no import word
from allmrec_jax.prompts import (
    GENRE_QUESTION,
    NO_SLOT,
    STYLES,
    PromptBatch,
    PromptTables,
    build_prompts,
    build_questions,
    chat_of,
    title_table,
    tokenize,
)

TITLES = ["", "Red Fox", "Red Foxes", "It", "Ghost Ship", 'A "Quoted" Moon', "été"]
HISTORY, CANDIDATES = np.array([[0, 1, 4]]), np.array([[2, 3, 5, 6]])
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>"]
LONGEST = 8
"""Letters of a token at most."""


def texts() -> list[str]:
    """Whole prompts, so that merges over the edges of pieces are learnt where a tokenizer allows them."""
    return [
        f'This user has watched "{one}","{other}" in the previous. The recommendation is "{one}"'
        for one in TITLES[1:]
        for other in TITLES[1:]
    ]


def finished(tokenizer: Tokenizer, *, begins: bool) -> Any:
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT
    )


@cache
def sentencepiece(legacy: bool) -> Any:
    """As Llama 2's: BPE over text whose spaces are ▁, one put before it; unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *bytes_], show_progress=False, max_token_length=9
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.normalizer = spaces
    tokenizer.train_from_iterator(texts(), trainer)
    if legacy:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(tokenizer, begins=True)


@cache
def bytewise(*, begins: bool, merging: bool) -> Any:
    """As Llama 3's and SmolLM2's: BPE over bytes; ``merging`` is over the edges of words too, and over quotes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merging)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, max_token_length=LONGEST
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return finished(tokenizer, begins=begins)


TOKENIZERS = {
    "dummy prefix, legacy": lambda: sentencepiece(True),
    "dummy prefix": lambda: sentencepiece(False),
    "bytes": lambda: bytewise(begins=False, merging=False),
    "bytes, merging": lambda: bytewise(begins=False, merging=True),
}


def tables(tokenizer: Any, **other: Any) -> PromptTables:
    return PromptTables(tokenizer, title_table(tokenizer, TITLES, 32), 512, eos=2, pad=2, **other)


def text_ids(batch: PromptBatch) -> list[int]:
    """Of the first prompt, without slots."""
    length = int(batch.lengths[0])
    return [int(token) for token, slot in zip(batch.ids[0, :length], batch.slot[0], strict=False) if slot == NO_SLOT]


def asked(made: PromptTables, **layout: Any) -> PromptBatch:
    return build_prompts(made, STYLES["movies"], HISTORY, CANDIDATES, **layout)


def whole(tail: str = ". The recommendation is ") -> str:
    shown = ",".join(f'"{TITLES[item]}"' for item in CANDIDATES[0])
    return (
        'This user has watched "Red Fox","Ghost Ship" in the previous. Recommend one next movie for this user to watch '
        f'next from the following movie title set, {shown}{tail}"'
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_together_read_as_the_whole_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    found = text_ids(asked(tables(tokenizer, bos=None), soft=False))
    assert tokenizer.decode(found, clean_up_tokenization_spaces=False) == whole()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_have_the_tokens_of_the_whole_text_but_at_quotes(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    found = text_ids(asked(tables(tokenizer, bos=None), soft=False))
    expected = list(tokenizer(whole(), add_special_tokens=False).input_ids)

    def ends(ids: list[int]) -> set[int]:
        return {len(tokenizer.decode(ids[: n + 1], clean_up_tokenization_spaces=False)) for n in range(len(ids))}

    edges = ends(found) ^ ends(expected)
    reach = LONGEST if name == "bytes, merging" else 1  # letters behind a quote that a token holds
    near = {n + m for n, letter in enumerate(whole()) if letter in '",' for m in range(reach + 1)}
    assert edges <= near
    assert bool(edges) == (name != "bytes")  # whose pattern keeps letters and quotes apart, as GPT-2's does


@pytest.mark.parametrize("name", TOKENIZERS)
def test_titles_and_answers_begin_as_behind_a_quote(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    made = tables(tokenizer, bos=None)
    for item, title in enumerate(TITLES[1:], 1):
        assert made.title(item) == title
        assert tokenizer.decode(made.answer(item)[:-1], clean_up_tokenization_spaces=False) == title + '"'
        if "dummy" in name:  # no ▁ of its own: the quote is before it
            assert not tokenizer.convert_ids_to_tokens(made.titles[item].tolist())[0].startswith("▁")
    if "dummy" in name:
        assert tokenizer.convert_ids_to_tokens(tokenizer("Red", add_special_tokens=False).input_ids)[0][0] == "▁"


def test_titles_are_cut_between_characters_behind_a_dummy_prefix() -> None:
    tokenizer = sentencepiece(False)
    cut = title_table(tokenizer, ["", "été" * 4, "Red Fox"], 3)
    assert cut.cut == 1
    assert tokenizer.decode(cut[1]) in "été" * 4


@pytest.mark.parametrize("soft", [False, True])
def test_the_text_begins_as_its_tokenizer_begins_it(soft: bool) -> None:
    layout: dict[str, Any] = {"soft": soft}
    first = asked(tables(bytewise(begins=True, merging=False), bos=1, bos_first=True), **layout)
    none = asked(tables(bytewise(begins=False, merging=False), bos=None, bos_first=True), **layout)
    official = asked(tables(bytewise(begins=False, merging=False), bos=1), **layout)
    assert first.ids[0, 0] == 1 and first.slot[0, :2].tolist() == [0, int(soft)]
    assert none.slot[0, :2].tolist() == [int(soft), 0]
    assert 1 not in none.ids[0, : none.lengths[0]]
    assert official.ids[0, int(soft)] == 1
    assert first.lengths[0] == official.lengths[0] == none.lengths[0] + 1
    np.testing.assert_array_equal(first.ids[0, 2:60], official.ids[0, 2:60])


def test_yes_no_prompts_begin_likewise() -> None:
    tokenizer = sentencepiece(True)
    begun = word(tables(tokenizer, bos=1, bos_first=True), STYLES["movies"]).head
    expected = tokenizer('This user has watched "').input_ids
    assert begun.tolist() == expected
    assert word(tables(tokenizer, bos=None), STYLES["movies"]).head.tolist() == expected[1:]


def test_a_chat_holds_the_request_and_begins_the_answer() -> None:
    tokenizer = bytewise(begins=True, merging=False)
    made = tables(tokenizer, bos=1, bos_first=True, chat=chat_of(tokenizer, "here"))
    request, answer = whole().split(' The recommendation is "')
    said = f'<s>[user] {request}</s>\n[assistant] The recommendation is "'
    found = text_ids(asked(made, soft=False))
    assert tokenizer.decode(found, clean_up_tokenization_spaces=False) == said
    assert answer == ""
    assert found.count(1) == 1 and found.count(2) == 1  # the template's own, recognised
    assert asked(made, soft=True).slot[0, len(made.opening)] == 1  # the user's vector opens the user's words
    question = build_questions(made, STYLES["movies"], HISTORY, GENRE_QUESTION, item_slots=False, reserve=4)
    assert tokenizer.decode(text_ids(question)).endswith('</s>\n[assistant] The favorite genres of this user are "')


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match="models/x: the tokenizer has no chat template; leave chat off"):
        chat_of(tiny_llm.tokenizer(), "models/x")


def test_pieces_of_opts_tokenizer_are_as_ever() -> None:
    """No lead is put before them: its tokens are those of the text alone."""
    tokenizer = tiny_llm.tokenizer()
    for text in ("Red Fox", " is a user", '","'):
        assert tokenize(tokenizer, text).tolist() == tokenizer(text, add_special_tokens=False).input_ids
