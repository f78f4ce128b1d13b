"""Recommendation: retrieval over known and new items, re-ranking, names, and what bad input gets."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.trained.recommend import (
    Catalogue,
    NewItem,
    Recommender,
    find_user,
    read_new_items,
    stand_ins,
)

N, D = 40, 5
NEW = [NewItem("new-1", "A Comet Returns", "space"), NewItem("new-2", "Saddle Song", "western")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng = np.random.default_rng(0)
    titles = [f"Orbit {item}" for item in range(1, N + 1)]
    titles[9] = titles[8]  # items 9 and 10 share a title
    return write_dataset(
        tmp_path_factory.mktemp("recommend") / "data",
        name="small",
        items=np.concatenate([rng.choice(np.arange(1, N + 1), 6, replace=False) for _ in range(12)]),
        offsets=np.arange(13) * 6,
        titles=titles,
        descriptions=[""] * N,
        users_raw=[f"user-{number:02d}" for number in range(12)],
        items_raw=[f"B{item:03d}" for item in range(1, N + 1)],
    )


class MeanCF:
    """The user is the mean of the history's vectors; scores are dot products."""

    live = True
    num_items, dim = N, D

    def __init__(self) -> None:
        self.vectors = np.random.default_rng(1).normal(size=(N + 1, D)).astype(np.float32)
        self.vectors[0] = 0

    def at(self, cut: str) -> "MeanCF":
        assert cut == "test"
        return self

    def item_vectors(self) -> np.ndarray:
        return self.vectors

    def user_vectors(self, users, items, *, key=None):
        return self.vectors[items].sum(axis=1) / np.maximum((items > 0).sum(axis=1), 1)[:, None]

    def score_catalogue(self, users, items):
        return self.user_vectors(users, items) @ self.vectors.T


class FavouriteLLM:
    """Likes one item best, then the others by index; remembers what it was shown."""

    def __init__(self, favourite: int) -> None:
        self.favourite = favourite

    def rank(self, histories, candidates, users):
        self.shown, self.history, self.users = candidates[0], histories[0], users
        return np.where(candidates == self.favourite, 0.0, -1.0 - candidates / 100)


def make(
    dataset: Dataset, favourite: int = 3, stand_in: dict[int, int] | None = None
) -> tuple[Recommender, FavouriteLLM]:
    """Item 40 stands in for both new items; ``stand_in`` says more."""
    catalogue = Catalogue.of(dataset, NEW)
    reads = np.array([*range(N + 1), N, N])
    for item, other in (stand_in or {}).items():
        reads[item] = other
    llm = FavouriteLLM(favourite)
    return Recommender(catalogue, cast(CFModel, MeanCF()), cast(LLMRecommender, llm), reads), llm


def test_retrieves_the_cf_models_best_and_reranks_them(dataset: Dataset):
    cf, history = MeanCF(), [1, 2, 4]
    scores = cf.vectors @ cf.vectors[history].mean(axis=0)
    scores[[0, *history, 9, 10]] = -np.inf
    best = set(np.argsort(-scores)[:15])
    recommender, llm = make(dataset, favourite=min(best))
    found = recommender.recommend(history, count=5, retrieve=20)
    assert best <= set(llm.shown)
    assert len(llm.shown) == 20
    assert found[0].item == min(best)
    assert len(found) == 5
    assert [each.log_likelihood for each in found] == sorted((each.log_likelihood for each in found), reverse=True)
    order = np.argsort(-scores)
    assert order[found[0].retrieved - 1] == found[0].item or found[0].retrieved > 1
    everything = recommender.recommend(history, count=20, retrieve=20)
    assert sum(each.probability for each in everything) == pytest.approx(1)
    assert sorted(each.retrieved for each in everything) == list(range(1, 21))


def test_never_recommends_the_history_nor_a_title_twice(dataset: Dataset):
    recommender, _ = make(dataset)
    found = recommender.recommend([1, 9], count=N, retrieve=N + 2)
    items = [each.item for each in found]
    assert not {1, 9, 10} & set(items)  # 10 has the title of 9
    assert len(items) == N - 3 + 2  # the new ones too
    found = recommender.recommend([1], count=N, retrieve=N + 2)
    assert len({9, 10} & {each.item for each in found}) == 1


def test_candidates_are_not_shown_in_the_order_of_retrieval(dataset: Dataset):
    recommender, llm = make(dataset)
    found = {each.item: each.retrieved for each in recommender.recommend([1, 2], count=20)}
    assert [found[item] for item in llm.shown] != sorted(found.values())


def test_items_are_retrieved_where_their_stand_ins_would_be(dataset: Dataset):
    cf = MeanCF()
    towards = cf.user_vectors(None, np.array([[1, 2]]))[0]
    order = [item for item in np.argsort(-(cf.vectors @ towards)) if item not in (0, 1, 2, 9, 10)]
    best, worst = int(order[0]), int(order[-1])
    recommender, _ = make(dataset, stand_in={N + 1: best, worst: best})
    found = {each.item: each for each in recommender.recommend([1, 2], count=20)}
    assert [found[item].retrieved for item in sorted((best, worst, N + 1))] == [1, 2, 3]  # ties by index
    assert found[N + 1].new and not found[worst].new


def test_the_cf_model_reads_stand_ins_and_the_language_model_the_items_themselves(dataset: Dataset):
    recommender, llm = make(dataset, stand_in={N + 2: 7, 3: 8})
    recommender.recommend([1, N + 2, 3])
    assert llm.history[-3:].tolist() == [1, N + 2, 3]
    assert llm.users[0] == pytest.approx(MeanCF().vectors[[1, 7, 8]].mean(axis=0))


def test_stand_ins_are_the_trained_items_of_nearest_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("allmrec_jax.trained.recommend.CHUNK", 7)
    rng = np.random.default_rng(3)
    texts, trained = rng.uniform(size=(31, 6)).astype(np.float32), rng.random(31) < 0.5
    trained[0] = False
    texts[5] = texts[4] + 1e-3
    trained[4:6] = True, False
    found = stand_ins(texts, trained)
    assert found[0] == 0 and found[5] == 4
    for item in range(1, 31):
        distances = np.where(trained, np.square(texts - texts[item]).sum(axis=1), np.inf)
        assert found[item] == (item if trained[item] else distances.argmin())
    assert stand_ins(texts, np.arange(31) > 0).tolist() == list(range(31))


def test_only_the_last_items_of_a_long_history_are_read_and_none_of_it_is_recommended(dataset: Dataset):
    recommender, llm = make(dataset)
    history = [*range(1, 31)] * 3
    found = recommender.recommend(history, count=20)
    assert llm.history.tolist() == history[-50:]
    assert not set(history) & {each.item for each in found}


def test_empty_history_and_nothing_left(dataset: Dataset):
    recommender, _ = make(dataset)
    with pytest.raises(UserError, match="empty history"):
        recommender.recommend([])
    with pytest.raises(UserError, match="nothing is left"):
        recommender.recommend(range(1, N + 3))


def test_items_are_found_by_id_and_by_title(dataset: Dataset):
    catalogue = Catalogue.of(dataset, NEW)
    assert catalogue.find("B005") == 5
    assert catalogue.find("  orbit   5 ") == 5
    assert catalogue.find("a comet returns") == N + 1
    films = Catalogue.of(dataset, [NewItem("m", "Matrix, The (1999)")])
    assert films.find("The Matrix (1999)") == films.find("matrix, the (1999)") == N + 1
    with pytest.raises(UserError, match=r"2 items are titled 'Orbit 9'.*B009, B010"):
        catalogue.find("Orbit 9")
    with pytest.raises(UserError, match=r"nearest: 'A Comet Returns'"):
        catalogue.find("A Comet Return")
    with pytest.raises(UserError) as error:
        catalogue.find("something else entirely")
    assert "nearest" not in str(error.value)


def test_users_are_found_by_id(dataset: Dataset):
    assert find_user(dataset, "user-07") == 7
    with pytest.raises(UserError, match=r"has no user 'user-7'; nearest: 'user-07'"):
        find_user(dataset, "user-7")
    with pytest.raises(UserError, match=r"no user 'x'; ids look like 'user-00', .*--min-user"):
        find_user(dataset, "x")


def test_an_id_taken_is_refused(dataset: Dataset):
    with pytest.raises(UserError, match="'B003': data set small has that id"):
        Catalogue.of(dataset, [NewItem("B003", "Another")])
    with pytest.raises(UserError, match="'x': it occurs twice"):
        Catalogue.of(dataset, [NewItem("x", "One"), NewItem("x", "Two")])


def test_new_items_are_read_from_json_lines(tmp_path: Path):
    path = tmp_path / "new.jsonl"
    path.write_text('{"id": "a", "title": "T \\"q\\"", "description": "D"}\n\n{"id": "b", "title": "🌊"}\n')
    assert read_new_items(path) == [NewItem("a", 'T "q"', "D"), NewItem("b", "🌊")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"id": "a", "title": "T"}\n[]', "line 2: not a JSON object"),
        ('{"id": "a"}', "line 1: 'title' is missing"),
        ("[" * 100_000, "line 1: not valid JSON .nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
        ('{"id": true, "title": "T"}', "line 1: 'id' must be"),
        ('{"asin": "a", "title": "T"}', "line 1: 'id' is missing; there are 'asin', 'title'"),
        ('[{"id": "a", "title": "T"}]', "line 1: not a JSON object"),
        ('{"id": "a", "title": " "}', "line 1: 'title' must be"),
        ('{"id": "a", "title": "T", "description": ["D"]}', "line 1: 'description' must be"),
        ("\n", "no item in it"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_bad_new_items_name_the_line(tmp_path: Path, content: str | bytes | None, message: str):
    path = tmp_path / "new.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        read_new_items(path)
    assert str(path) in str(error.value)
