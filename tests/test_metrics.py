import numpy as np
import pytest

from allmrec_jax.metrics import (
    CATALOGUE,
    catalogue_metrics,
    catalogue_ranks,
    official_hit,
    ranking_metrics,
    strict_choice,
    target_ranks,
)


def test_ranks_count_better_candidates_and_ties_against_the_target():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [5.0, 5.0, 0.0]])
    assert target_ranks(scores, np.array([0, 1, 2, 0])).tolist() == [1, 2, 3, 2]


def test_a_score_that_is_not_a_number_never_helps_the_target():
    scores = np.array([[np.nan, 1.0, 0.0], [2.0, np.nan, 0.0]])
    assert target_ranks(scores, np.array([0, 0])).tolist() == [3, 2]


def test_ranking_metrics_by_hand():
    values = ranking_metrics(np.array([1, 2, 3, 5, 7, 20]))
    assert values["hit@1"].tolist() == [1, 0, 0, 0, 0, 0]
    assert values["hit@3"].tolist() == [1, 1, 1, 0, 0, 0]
    assert values["hit@5"].tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(values["ndcg@5"], [1, 1 / np.log2(3), 0.5, 1 / np.log2(6), 0, 0])
    np.testing.assert_allclose(values["ndcg@10"], [1, 1 / np.log2(3), 0.5, 1 / np.log2(6), 1 / 3, 0])
    np.testing.assert_allclose(values["mrr"], [1, 1 / 2, 1 / 3, 1 / 5, 1 / 7, 1 / 20])


TITLES = ["It", "It Follows", 'The "Big" One', "Alien", 'Alien" II']


@pytest.mark.parametrize(
    ("generated", "choice"),
    [
        ('It"', 0),
        ('It Follows"', 1),
        ("It Follows", 1),  # ended without the closing quote
        (' Alien" \n', 3),
        ('The "Big" One"', 2),
        ('Alien" II"', 4),
        ('Alien"." and more words', 3),
        ('Alien" or "Alien"', 3),
        ("It Foll", None),
        ("it follows", None),
        ("Alien, It", None),
        ('Alien","It"', None),
        ('Alien""It"', None),
        ('Aliens"', None),
        ("", None),
        ('"', None),
    ],
)
def test_strict_choice(generated, choice):
    assert strict_choice(generated, TITLES) == choice


def test_an_empty_title_is_never_chosen():
    assert strict_choice('"', ["", "Alien"]) is None
    assert strict_choice("", ["", "Alien"]) is None


@pytest.mark.parametrize(
    ("generated", "title", "hit"),
    [
        ('Alien"', "Alien", True),
        ('ALIEN"', "alien", True),
        ('It Follows"', "It", True),  # substring
        ('Heat","Alien","It"', "Alien", True),  # a list of candidates
        ('Heat"', "", True),  # an empty title
        ("Alien", "Alien", False),  # no closing quote
        ('Alien\nmore"', "Alien", False),  # only the first line
        ('Heat"', "Alien", False),
        ('item title" : "Alien"', "Alien", True),
        ('item title" : Alien', "Alien", True),  # no quote is left: the whole line
    ],
)
def test_official_hit_keeps_the_official_quirks(generated, title, hit):
    assert official_hit(generated, title) is hit


def test_catalogue_ranks_leave_out_what_was_met_and_count_ties_against():
    scores = np.array([[9.0, 1.0, 5.0, 3.0, 4.0, 3.0], [9.0, 2.0, 2.0, np.nan, 1.0, 0.0]])
    # Item 2 was met; of items 1, 3, 4, 5 one is better than item 3 and one ties with it.
    # Nothing was met but the target itself; items 2 and 3 (not a number) stand beside item 1.
    ranks = catalogue_ranks(scores, np.array([[0, 2], [0, 1]]), np.array([3, 1]))
    assert ranks.tolist() == [3, 3]


def test_catalogue_metrics():
    metrics = catalogue_metrics(np.array([1, 10, 11, 20, 21]))
    assert list(metrics) == list(CATALOGUE)
    assert metrics["catalogue_recall@10"].tolist() == [1, 1, 0, 0, 0]
    assert metrics["catalogue_recall@20"].tolist() == [1, 1, 1, 1, 0]
    np.testing.assert_allclose(metrics["catalogue_ndcg@10"], [1, 1 / np.log2(11), 0, 0, 0])
    np.testing.assert_allclose(metrics["catalogue_ndcg@20"], [1, 1 / np.log2(11), 1 / np.log2(12), 1 / np.log2(21), 0])
