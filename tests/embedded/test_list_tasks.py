"""Generated tasks have exactly the layout of the prompts that recommendations are asked with."""

import re

import numpy as np
import pytest

from allmrec_jax.embedded.list_tasks import SKILLS, Shape, TaskWriter, pack
from allmrec_jax.embedded.opt_nano import train_tokenizer
from allmrec_jax.prompts import ITEM_SLOT, STYLES, USER_SLOT, PromptTables, build_prompts, title_table

SHAPE = Shape(batch=3, length=288, titles="words", candidates=20, history=8, queries=1)
LAYOUT = {
    "user": {"soft": True},
    "history": {"soft": True, "user_slot": False},
    "text": {"soft": False},
    "words": {"soft": True, "item_slots": False},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(4096, 0)


@pytest.fixture(scope="module")
def writer(tokenizer):
    return TaskWriter(tokenizer)


@pytest.mark.parametrize("style", range(len(STYLES)))
@pytest.mark.parametrize("skill", LAYOUT)
def test_layout_is_that_of_build_prompts(tokenizer, writer, skill, style):
    task = writer.task(np.random.default_rng(1), SHAPE, skill, style)
    # Random titles may begin with a space or hold odd bytes; those of the lexicon survive text and back.
    text = tokenizer.decode([token for token in task.tokens if token not in tokenizer.all_special_ids])
    titles = re.findall(r'"([^"]*)"', text)
    depth = text.split(" in the previous.")[0].count('"') // 2
    history, candidates, answer = titles[:depth], titles[depth:-1], titles[-1]
    tables = PromptTables(tokenizer, title_table(tokenizer, ["", *history, *candidates], 64), 1024)
    if any(writer_ids != list(tables.titles[i + 1]) for i, writer_ids in enumerate(_titles(task, tokenizer, titles))):
        pytest.fail("a title did not survive text and back; choose another seed for this test")
    batch = build_prompts(
        tables,
        list(STYLES.values())[style],
        np.arange(1, depth + 1)[None],
        np.arange(depth + 1, len(titles))[None],
        np.array([depth + 1 + candidates.index(answer)]),
        **LAYOUT[skill],
    )
    assert batch.ids[0, : batch.lengths[0]].tolist() == task.tokens
    slots = np.flatnonzero(np.isin(batch.slot[0], (USER_SLOT, ITEM_SLOT)))
    assert [column for column, _, _ in task.slots] == slots.tolist()
    assert [token for _, token, _ in task.answers] == batch.targets[0, batch.target_mask[0] > 0].tolist()


def _titles(task, tokenizer, titles):
    return [tokenizer(title, add_special_tokens=False).input_ids for title in titles[:-1]]


@pytest.mark.parametrize("skill", ["user", "history"])
def test_certain_target_is_the_nearest_slot(tokenizer, skill):
    writer = TaskWriter(tokenizer, certain=True)
    rng = np.random.default_rng(2)
    for _ in range(10):
        task = writer.task(rng, SHAPE, skill)
        # One sequence blends the same words everywhere, so that slots are compared by their weights.
        weights = np.array([weights for _, _, weights in task.slots])
        columns = np.array([column for column, _, _ in task.slots])
        answered = [token for _, token, _ in task.answers][:-2]
        starts = [c - 1 - len(answered) for c in columns]
        shown = [task.tokens[start : start + len(answered)] == answered for start in starts]
        question = weights[0]
        if skill == "history":
            middle = next(i for i in range(len(columns) - 1) if columns[i + 1] - columns[i] > 15)
            question = weights[: middle + 1].mean(0)
            candidates = range(middle + 1, len(columns))
        else:
            middle = next(i for i in range(1, len(columns) - 1) if columns[i + 1] - columns[i] > 15)
            candidates = range(middle + 1, len(columns))
        best = max(candidates, key=lambda i: weights[i] @ question)
        assert shown[best]


def test_near_targets_are_drawn_more_often(writer):
    """Answers are drawn by likeness: the nearest slot wins most often, but not always."""
    rng = np.random.default_rng(3)
    nearest = []
    for _ in range(60):
        task = writer.task(rng, SHAPE, "user")
        weights = np.array([weights for _, _, weights in task.slots])
        columns = np.array([column for column, _, _ in task.slots])
        answered = [token for _, token, _ in task.answers][:-2]
        middle = next(i for i in range(1, len(columns) - 1) if columns[i + 1] - columns[i] > 15)
        best = columns[max(range(middle + 1, len(columns)), key=lambda i: weights[i] @ weights[0])]
        nearest.append(task.tokens[best - 1 - len(answered) : best - 1] == answered)
    assert 0.25 < np.mean(nearest) < 0.95


def test_same_seed_same_batch_and_other_seed_another(writer):
    one, again, other = (writer.batch(np.random.default_rng(seed), SHAPE, 1024) for seed in (5, 5, 6))
    for name, a, b in zip(one._fields, one, again, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert (one.ids != other.ids).any()


def test_packed_answers_point_at_their_predecessors(writer):
    rng = np.random.default_rng(4)
    tasks = [writer.task(rng, SHAPE, skill) for skill in list(SKILLS)[:3]]
    batch = pack(tasks, SHAPE, np.zeros(3, int), writer.pad)
    for at, token, weight in zip(batch.answer_at, batch.answer, batch.weight, strict=True):
        if weight:
            row, column = divmod(int(at), SHAPE.length)
            assert tasks[row].tokens[column + 1] == token
    assert batch.weight.sum() == sum(len(task.answers) for task in tasks)


def test_clear_text_tasks_have_one_answer(writer):
    """Of titles of whole words: what the history and the candidates share names the answer; the last one otherwise."""
    rng = np.random.default_rng(6)
    theme_of = {token: i for i, words in enumerate(writer.themes) for word in words for form in word for token in form}
    unrelated = 0
    for _ in range(40):
        task = writer.task(rng, SHAPE, "text", 1, clear=True)
        head, middle, tail = (
            writer.pieces["text"][1].head,
            writer.pieces["text"][1].middle,
            writer.pieces["text"][1].tail,
        )
        before, after = _cut(task.tokens[1 + len(head) :], middle)
        shown, answer = _cut(after, tail)
        comma = writer.pieces["text"][1].comma
        history, candidates = _split(before, comma), _split(shown, comma)
        target = candidates.index(answer[: -len(writer.pieces["text"][1].end) - 1])
        words = {token for title in history for token in title}
        sharing = [i for i, title in enumerate(candidates) if not words.isdisjoint(title)]
        common = set.intersection(*({theme_of.get(token) for token in title} for title in history)) - {None}
        themed = [i for i, title in enumerate(candidates) if common & {theme_of.get(token) for token in title}]
        if sharing or (themed and target in themed):
            assert set(sharing) <= {target} and target in {*sharing, *themed}
        else:
            unrelated += 1
            assert target == len(candidates) - 1
    assert 4 <= unrelated <= 20  # 30% of 40 are 12, with a standard deviation of 2.9


def _cut(tokens, piece):
    at = next(i for i in range(len(tokens)) if tokens[i : i + len(piece)] == piece)
    return tokens[:at], tokens[at + len(piece) :]


def _split(tokens, comma):
    parts = [[]]
    for token in tokens:
        parts.append([]) if [token] == list(comma) else parts[-1].append(token)
    return parts
