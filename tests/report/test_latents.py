"""The map of items: groups, components and neighbours on planted vectors."""

import numpy as np
import pytest

from allmrec_jax.report.latents import agreement, grouped, principal


def test_an_item_goes_by_its_rarest_category_and_what_nearly_all_have_tells_nothing():
    categories = [[], ["Films", "War"], ["Films", "War", "Sea"], ["Films"], ["Films", "War"], ["Films", "Sea"], []]
    group, names = grouped(categories)
    assert names == ["War", "Sea"]  # all but the empty one are films
    assert group.tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert grouped([[], ["Films"], []]) == (pytest.approx(np.array([0, 0, 0])), [])


def test_components_find_a_planted_plane_whatever_the_turn():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(200, 2)) * [5.0, 2.0]
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    placed = principal(plane @ turn[:2] + 7.0)
    centred = plane - plane.mean(axis=0)
    assert np.linalg.norm(placed, axis=1) == pytest.approx(np.linalg.norm(centred, axis=1))
    assert placed.std(axis=0)[0] > placed.std(axis=0)[1]
    assert principal(-plane @ turn[:2]) == pytest.approx(-principal(plane @ turn[:2]))  # the axes do not turn over


def test_neighbours_agree_where_groups_lie_apart_and_by_chance_where_they_do_not():
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2], 60)
    apart = rng.normal(size=(180, 5)) + 30 * np.eye(5)[group]
    assert agreement(apart, group) == 1.0
    assert agreement(rng.normal(size=(180, 5)), group) == pytest.approx(1 / 3, abs=0.06)  # 1,800 neighbours, clustered
