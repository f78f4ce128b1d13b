import numpy as np
import pytest
import tiny_llm

from allmrec_jax import prompts
from allmrec_jax.errors import UserError
from allmrec_jax.prompts import (
    GENRE_QUESTION,
    ITEM_SLOT,
    NO_SLOT,
    STYLES,
    USER_SLOT,
    Pieces,
    PromptBatch,
    PromptTables,
    bucket,
    build_prompts,
    build_questions,
    title_table,
    tokenize,
    tokenize_pieces,
)

HOSTILE = [
    "",
    'He said "no", then left',
    "two\nlines\r\nand a tab\t",
    "😀 émigré 日本 \u202e",
    "x" * 10_000,
    "[CandidateEmb] [HistoryEmb] [UserRep]",
    "</s><pad><s> in the previous.",
    '"',
    " leading and trailing ",
]


def tables(titles, max_tokens=16, max_length=2048):
    return PromptTables(tiny_llm.tokenizer(), title_table(tiny_llm.tokenizer(), titles, max_tokens), max_length)


def render(batch: PromptBatch, row: int = 0) -> str:
    """The prompt as text, slots as <user>, <0>, <1>, … by column of ``items``; only ``lengths`` positions."""
    text, run = "", []
    for position in range(batch.lengths[row]):
        if batch.slot[row, position] == 0:
            run.append(int(batch.ids[row, position]))
            continue
        text, run = text + tiny_llm.tokenizer().decode(run), []
        text += "<user>" if batch.slot[row, position] == USER_SLOT else f"<{batch.slot_index[row, position]}>"
    return text + tiny_llm.tokenizer().decode(run)


def test_soft_layout_is_the_official_sentence():
    batch = build_prompts(
        tables(tiny_llm.TITLES),
        STYLES["movies"],
        np.array([[0, 1, 4]]),
        np.array([[3, 5, 7]]),
        np.array([5]),
        soft=True,
    )
    assert render(batch) == (
        '<user></s> is a user representation.This user has watched "Red Fox"<1>,"It"<2> in the previous. Recommend one '
        "next movie for this user to watch next from the following movie title set, "
        '"Blue Whale of the Deep"<3>,"It Follows"<4>,"Moon"<5>. The recommendation is "It Follows"</s>'
    )
    assert batch.items.tolist() == [[0, 1, 4, 3, 5, 7]]
    answer = batch.ids[0, batch.target_start[0] : batch.lengths[0]]
    assert tiny_llm.tokenizer().decode(answer) == 'It Follows"</s>'
    assert batch.targets[0][batch.target_mask[0] == 1].tolist() == answer.tolist()


@pytest.mark.parametrize(("style", "words"), [(name, vars(style)) for name, style in STYLES.items()])
def test_text_layout_of_every_style(style, words):
    batch = build_prompts(
        tables(tiny_llm.TITLES), STYLES[style], np.array([[1, 4]]), np.array([[3, 5]]), None, soft=False
    )
    assert render(batch) == (
        '</s>This user has {past} "Red Fox","It" in the previous. Recommend one next {noun} for this user to {verb} '
        'next from the following {noun} title set, "Blue Whale of the Deep","It Follows". The recommendation is "'
    ).format(**words)
    assert not batch.slot.any() and batch.targets.shape == (1, 0) and batch.lengths == batch.target_start


def test_ablated_layouts():
    given = tables(tiny_llm.TITLES), STYLES["goods"], np.array([[1]]), np.array([[3, 5]])
    no_user = render(build_prompts(*given, soft=True, user_slot=False))
    assert no_user.startswith('</s>This user has bought "Red Fox"<0> in')
    no_items = render(build_prompts(*given, soft=True, item_slots=False))
    assert no_items.startswith('<user></s> is a user representation.This user has bought "Red Fox" in')


def test_hostile_titles_shift_nothing():
    items = np.arange(1, len(HOSTILE))
    histories, candidates = items[None, :4], items[None, 4:]
    made = tables(HOSTILE)
    batch = build_prompts(made, STYLES["neutral"], histories, candidates, np.array([6]), soft=True)
    columns = np.flatnonzero(batch.slot[0] == ITEM_SLOT)
    assert batch.items[0, batch.slot_index[0, columns]].tolist() == items.tolist()
    assert np.flatnonzero(batch.slot[0] == USER_SLOT).tolist() == [0]
    # Every slot stands right behind its own title and the closing quote, whatever the title contains.
    close = made.pieces(STYLES["neutral"], True, True).close
    for item, column in zip(items, columns, strict=True):
        title = made.titles[item]
        assert batch.ids[0, column - len(close) - len(title) : column].tolist() == [*title, *close]
    # Special tokens come from the layout only: one to begin with, one to end with.
    inside = batch.ids[0, : batch.lengths[0]][batch.slot[0, : batch.lengths[0]] == 0]
    assert np.flatnonzero(inside == 2).tolist() == [0, len(inside) - 1]
    assert not np.isin(inside, [0, 1]).any()


def test_titles_survive_tokenisation_when_they_fit():
    made = tables(HOSTILE, max_tokens=20_000)
    assert [made.title(item) for item in range(len(HOSTILE))] == HOSTILE
    assert made.titles.cut == 0


def test_cut_titles_are_counted_and_never_split_a_character():
    titles = ["", "😀" * 9, "Moon", "a" * 50]
    table = title_table(tiny_llm.tokenizer(), titles, 10)
    assert table.cut == 2 and table.extended == 0
    assert max(len(table[item]) for item in range(4)) <= 10
    shown = PromptTables(tiny_llm.tokenizer(), table, 512).title(1)
    assert shown == "😀" * len(shown) and 0 < len(shown) < 9


def test_titles_that_collide_when_cut_get_a_longer_cut():
    titles = ["", "zq" * 30 + "a end", "zq" * 30 + "b end", "zq" * 30, "zq" * 40, "Moon"]
    made = tables(titles, max_tokens=6)
    shown = [made.title(item) for item in range(1, 6)]
    assert len(set(shown)) == 5
    assert made.titles.extended == 4 and shown[4] == "Moon"
    # No longer than it takes: the first two differ at their 61st letter.
    assert [len(title) for title in shown[:2]] == [61, 61] and titles[1].startswith(shown[0])


def test_titles_that_differ_in_the_first_token_behind_the_cut_are_told_apart():
    whole = tables(["", "zq" * 8 + "a", "zq" * 8 + "b"], max_tokens=64).titles
    limit = int((whole[1][: len(whole[2])] == whole[2]).argmin())  # the first token that differs
    made = tables(["", "zq" * 8 + "a", "zq" * 8 + "b"], max_tokens=limit)
    assert made.titles.extended == 2 and made.title(1) != made.title(2)


def test_equal_titles_are_not_extended():
    table = title_table(tiny_llm.tokenizer(), ["", "zq" * 30, "zq" * 30], 6)
    assert table.extended == 0 and len(table[1]) == 6


def test_the_oldest_history_gives_way_first():
    given = STYLES["neutral"], np.array([[1, 2, 3], [0, 0, 4]]), np.array([[5, 6], [7, 8]]), np.array([5, 8])
    full = build_prompts(tables(tiny_llm.TITLES), *given, soft=True)
    limit = int(full.lengths.max()) - 1
    made = tables(tiny_llm.TITLES, max_length=limit)
    fitted = build_prompts(made, *given, soft=True)
    assert fitted.dropped.tolist() == [1, 0] and fitted.ids.shape[1] <= limit
    assert "Red Fox" not in render(fitted).replace("Red Foxes", "") and "<1>" in render(fitted)
    with pytest.raises(UserError, match="longer than the language model's 40 positions"):
        build_prompts(tables(tiny_llm.TITLES, max_length=40), *given, soft=True)


def test_room_is_kept_for_the_longest_candidate():
    given = STYLES["neutral"], np.array([[1]]), np.array([[4, 3]])
    exact = int(build_prompts(tables(tiny_llm.TITLES), *given, np.array([3]), soft=True).lengths[0])
    build_prompts(tables(tiny_llm.TITLES, max_length=exact), *given, soft=True)
    with pytest.raises(UserError):
        build_prompts(tables(tiny_llm.TITLES, max_length=exact - 1), *given, soft=True)


def test_padding_is_on_the_right_and_bucketed():
    batch = build_prompts(
        tables(tiny_llm.TITLES), STYLES["neutral"], np.array([[0, 1], [2, 3]]), np.array([[4], [5]]), soft=True
    )
    size = batch.ids.shape[1]
    assert size == bucket(int(batch.lengths.max())) and size % 32 == 0
    beyond = np.arange(size) >= batch.lengths[:, None]
    assert (batch.ids[beyond] == 1).all() and not batch.slot[beyond].any()
    assert batch.lengths[0] != batch.lengths[1]


@pytest.mark.parametrize("soft", [True, False])
def test_without_a_history_a_prompt_begins_with_the_request(soft):
    made = tables(tiny_llm.TITLES)
    batch = build_prompts(made, STYLES["movies"], np.array([[0, 0], [0, 3]]), np.array([[4], [4]]), soft=soft)
    told = [
        made.tokenizer.decode(
            [token for token, slot in zip(ids[:length], slots, strict=False) if slot == NO_SLOT],
            clean_up_tokenization_spaces=False,
        )
        for ids, slots, length in zip(batch.ids, batch.slot, batch.lengths, strict=True)
    ]
    request = "Recommend one next movie for this user to watch next"
    user = " is a user representation." if soft else ""
    assert told[0].startswith(f"</s>{user}{request}") and told[0].split(request)[1] == told[1].split(request)[1]
    assert (batch.slot[0] == ITEM_SLOT).sum() == (1 if soft else 0)


@pytest.mark.parametrize("item_slots", [True, False])
def test_a_question_behind_a_history_reads_as_in_opt_nanos_training(item_slots):
    made = tables(tiny_llm.TITLES)
    histories = np.array([[0, 3, 1], [5, 2, 4]])
    asked = build_questions(made, STYLES["movies"], histories, GENRE_QUESTION, item_slots=item_slots, reserve=8)
    pieces = made.pieces(STYLES["movies"], False, item_slots)
    question = tokenize(made.tokenizer, GENRE_QUESTION)
    for row, (history, ids, slots, length) in enumerate(
        zip(histories, asked.ids, asked.slot, asked.lengths, strict=True)
    ):
        # What list_tasks writes: titles with their quotes and slots, and without slots a quote of its own.
        expected = [np.array([made.bos]), pieces.head]
        for place, item in enumerate(history[history > 0]):
            expected += [pieces.comma] if place else []
            expected += [made.titles[item], pieces.close, *([np.array([made.pad])] if item_slots else [])]
        expected += [question] if item_slots else [pieces.end, question]
        np.testing.assert_array_equal(ids[:length], np.concatenate(expected))
        assert (slots == ITEM_SLOT).sum() == (item_slots and (history > 0).sum()), row
        assert not (slots == USER_SLOT).any()
    assert asked.targets.shape[1] == 0


def test_questions_leave_out_what_does_not_fit():
    histories = np.array([[1, 2, 3, 4]])
    whole = build_questions(
        tables(tiny_llm.TITLES), STYLES["movies"], histories, GENRE_QUESTION, item_slots=True, reserve=8
    )
    short = tables(tiny_llm.TITLES, max_length=int(whole.lengths[0]) + 7)
    cut = build_questions(short, STYLES["movies"], histories, GENRE_QUESTION, item_slots=True, reserve=8)
    assert whole.dropped[0] == 0 and cut.dropped[0] == 1


@pytest.mark.parametrize(("user_slot", "begins"), [(True, True), (True, False), (False, True), (False, False)])
def test_only_what_nothing_stands_before_is_a_texts_beginning(monkeypatch, user_slot, begins):
    asked = []

    def recorded(tokenizer, text, *, begins=False):
        asked.append(begins)
        return np.zeros(0, np.int32)

    monkeypatch.setattr(prompts, "tokenize", recorded)
    tokenize_pieces(None, STYLES["neutral"], user_slot=user_slot, begins=begins)
    first = begins and not user_slot
    expected = {name: first and name in ("head", "alone") for name in Pieces._fields}
    assert dict(zip(Pieces._fields, asked, strict=True)) == expected
