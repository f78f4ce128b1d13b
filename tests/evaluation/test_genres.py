"""The favourite-genre task: what is true, what was named, what counts, and who is refused."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from allmrec_jax import cli
from allmrec_jax.data.candidates import Candidates
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.genres import (
    MAJORITY,
    MAJORITY_THREE,
    Genres,
    baselines,
    examples,
    genre_frame,
    genre_markdown,
    summarize_genres,
    write_genres,
)

CATEGORIES = [
    ["Movies", "Space"],
    ["Movies", "Space", "War"],
    ["Movies", "War"],
    ["Movies", "Comedy"],
    ["Movies", "Horror"],
    ["Movies"],
]
SEQUENCES = [[1, 2, 3, 6, 4], [4, 5, 4, 5, 1], [1, 1, 3, 2, 5]]


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(
        tmp_path / "data",
        name="Tiny",
        items=np.concatenate(SEQUENCES),
        offsets=np.array([0, 5, 10, 15]),
        titles=[f"Title {item}" for item in range(1, 7)],
        descriptions=[""] * 6,
        categories=CATEGORIES,
    )


@pytest.fixture
def asked():
    users = np.array([2, 0, 1], np.int32)
    targets = np.array([5, 4, 1], np.int32)
    return Candidates(users, targets, targets[:, None], "test", 0, "overall")


def test_favourites_are_those_before_the_target_and_ties_go_to_the_frequent(dataset, asked):
    genres = Genres.of(dataset)
    # Of the nine training interactions; Movies is on every item and says nothing.
    assert genres.counts == {"Space": 4, "War": 3, "Comedy": 2, "Horror": 1}
    assert genres.favourites(dataset, asked) == [["Space", "War"], ["Space", "War"], ["Comedy", "Horror"]]


def test_what_is_named_ends_at_the_quote_and_is_cut_at_commas(dataset):
    genres = Genres.of(dataset)
    assert genres.named('space, WAR" and Horror') == (["Space", "War"], True)
    assert genres.named('Space, Space"') == (["Space"], True)
    assert genres.named('Space, Drama"') == (["Space"], False)
    assert genres.named("") == ([], False) and genres.named("Movies") == ([], False)


def test_scores_differences_and_what_is_written(dataset, asked, tmp_path):
    genres = Genres.of(dataset)
    favourites = genres.favourites(dataset, asked)
    texts = ['Horror, War"', 'Space"', 'no idea"']
    frame = genre_frame(genres, "LLM", 0, asked.users, favourites, texts)
    assert frame["genre_hit"].to_list() == [True, True, False]
    assert frame["first_hit"].to_list() == [False, True, False]
    assert frame["valid_ratio"].to_list() == [True, True, False]
    import polars as pl

    whole = pl.concat([frame, *baselines(genres, asked.users, favourites)])
    systems, paired, tests = summarize_genres(whole, [("LLM", MAJORITY)])
    assert systems["LLM"]["all"]["n"] == 3 and systems["LLM"]["all"]["genre_hit"][0] == pytest.approx(2 / 3)
    assert systems[MAJORITY]["all"]["genre_hit"][0] == pytest.approx(2 / 3)  # Space
    assert systems[MAJORITY_THREE]["all"]["genre_hit"][0] == 1.0  # Space, War, Comedy
    assert paired[f"LLM - {MAJORITY}"]["all"][0] == 0.0 and tests[f"LLM - {MAJORITY}"]["all"] == 1.0
    said = examples(whole, dataset, asked)
    assert said[0]["user"] == 2 and said[0]["said"]["LLM"] == 'Horror, War"' and said[0]["favourites"] == favourites[0]
    about = {"data": {"name": "Tiny", "hash": "0" * 64}, "settings": {"question": " Which?"}, "runs": []}
    results = write_genres(tmp_path / "out", whole, dataset, asked, pairs=[("LLM", MAJORITY)], **about)
    page = genre_markdown(results, "Genres")
    assert "| LLM | 3 | 0.667" in page and "- LLM: no idea" in page and (tmp_path / "out" / "users.parquet").is_file()


def test_data_without_genres_is_refused_before_anything_else(dataset, tmp_path):
    plain = dataclasses.replace(dataset)
    plain.__dict__["categories"] = [[], *([["Movies"]] * 6)]
    with pytest.raises(UserError, match="0 of 6 items have a genre"):
        Genres.of(plain)
    half = dataclasses.replace(dataset)
    half.__dict__["categories"] = [[], ["War"], ["Space"], [], [], [], []]
    with pytest.raises(UserError, match="2 of 6 items have a genre"):
        Genres.of(half)
    write_dataset(
        tmp_path / "plain",
        name="Plain",
        items=dataset.items,
        offsets=dataset.offsets,
        titles=dataset.titles[1:],
        descriptions=[""] * 6,
    )
    told = CliRunner().invoke(cli.allmrec, ["experiment", "genres", "--data", str(tmp_path / "plain")])
    assert isinstance(told.exception, UserError) and "favourite-genre task needs them" in str(told.exception)
