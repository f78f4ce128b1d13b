"""Which trainings each system is made of."""

import dataclasses

import pytest
from tiny_place import recipes

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.systems import REDUCED, SYSTEMS
from allmrec_jax.experiments.graph import trainings_of
from allmrec_jax.experiments.rows import Recipes, at_seeds, choose, known_rows, rows_of

pytest_plugins = "tiny_fixtures"


def test_the_plan_has_each_training_once_and_upstream_first():
    rows = at_seeds(recipes(), known_rows(), 2, 1)
    nodes = trainings_of(rows)
    assert len(nodes) == len(set(nodes))
    for node in nodes:
        assert all(nodes.index(other) < nodes.index(node) for other in node.upstream)
    assert sum(node.kind == "cf" for node in nodes) == 8  # four models at two seeds
    # Three more backbones and A-LLMRec at the reduced budget, A-LLMRec and A-LLMRec_all at the whole one.
    assert sum(node.kind == "stage2" for node in nodes) == 6
    everything = next(row for row in rows if row.name == "A-LLMRec_all")
    assert {node.settings.positions for node in everything.nodes() if node.kind != "cf"} == {"all"}
    paper = recipes("paper").row("A-LLMRec", 0).trainings[-1]
    assert paper.changes == () and paper.settings.positions == "last"
    assert recipes("paper").row("A-LLMRec_all", 0).trainings[-1].changes == (("positions", "all"),)


def test_ablations_differ_from_a_llmrec_in_what_they_leave_out():
    small, paper = recipes(), recipes("paper")
    for name in rows_of("table8"):
        own = SYSTEMS[name].changes["stage1"]
        row = paper.row(name, 0)
        stage1 = row.trainings[1]
        assert dict(stage1.changes) == own and row.trainings[-1].changes == ()
    whole = small.row("A-LLMRec", 0).trainings[-1].settings
    for name in rows_of("table9"):
        own = SYSTEMS[name].changes["stage2"]
        assert small.row(name, 0).trainings[-1].settings == dataclasses.replace(whole, **own)
        changes = {key: value for key, value in own.items() if key != "text_share"}  # 0 in preset paper anyway
        assert dict(paper.row(name, 0).trainings[-1].changes) == changes


def test_reduced_rows_have_an_equally_cut_a_llmrec_beside_them():
    small = recipes(stage2={"style": "movies"})
    own = small.row(REDUCED, 0).trainings
    whole = small.row("A-LLMRec", 0).trainings
    assert (own[1].settings.epochs, own[2].settings.steps) < (whole[1].settings.epochs, whole[2].settings.steps)
    assert own[2].settings.style == "movies"
    ncf = small.row("A-LLMRec (NCF)", 0).trainings
    assert [node.settings for node in ncf[1:]] == [node.settings for node in own[1:]]
    assert small.at("reduced").row("A-LLMRec", 0).trainings == own == small.row("A-LLMRec (SASRec)", 0).trainings
    assert small.at("reduced").row("w/o L_rec", 0).trainings[2].settings == own[2].settings
    # What the user sets holds, and there may be no cut at all.
    assert recipes(stage2={"steps": 7}).row(REDUCED, 0).trainings[2].settings.steps == 7
    assert Recipes("small", {}, whole=True).row(REDUCED, 0).trainings == recipes().row("A-LLMRec", 0).trainings
    assert recipes("paper").row(REDUCED, 0).trainings == recipes("paper").row("A-LLMRec", 0).trainings


def test_unknown_systems_are_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown system 'BERT4Rec'; known: Popularity; NCF.*A-LLMRec \(GRU4Rec\)"):
        choose(known_rows(), ["BERT4Rec"])
    assert choose(["SASRec"], []) == ["SASRec"]
    assert choose(["SASRec"], ["a-llmrec", "sasrec"]) == ["SASRec", "A-LLMRec"]
