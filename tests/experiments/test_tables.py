"""The records of the tables agree with the systems, the paper's numbers and the programs that read them."""

import dataclasses
import inspect

import pytest

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.evaluation.genres import MAJORITY
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments.make import Options, make_tables, plan_tables
from allmrec_jax.experiments.rows import BUDGETS, Recipes, is_row
from allmrec_jax.experiments.tables import PRESETS, TABLES
from allmrec_jax.report import paper
from allmrec_jax.trained.kinds import KINDS

pytest_plugins = "tiny_fixtures"


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_record_names_what_there_is(table):
    systems = list(table.systems())
    assert systems and len(set(systems)) == len(systems)
    assert all(is_row(SYSTEMS[name]) for name in systems)
    assert table.reference in (*systems, MAJORITY)
    assert table.budget is None or table.budget in BUDGETS
    wanted = {
        name for name, each in inspect.signature(table.cases).parameters.items() if each.kind is each.KEYWORD_ONLY
    }
    assert wanted == {option.name for option in table.options}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_record_of_a_system_can_be_followed(preset):
    for name, system in SYSTEMS.items():
        assert set(system.against) <= set(SYSTEMS) and name not in system.against
        assert set(system.changes) <= set(KINDS) and system.about
        assert system.variant_of is None or SYSTEMS[system.variant_of].answer is system.answer
        assert system.only_in is None or name in TABLES[system.only_in].systems()
        if is_row(system):
            row = Recipes(preset, {}).row(name, 0)
            assert [node.kind for node in row.trainings[-1:]] == ([] if system.trained is None else [system.trained])


def test_cases_are_titled_filed_and_compared_with_the_paper(place):
    dataset = load_dataset(place / "data")
    few = TABLES["table6"].cases(dataset, users=(16, 8), sample_seed=0)
    assert [case.title for case in few] == ["Table 6: trained on 16 users", "Table 6: trained on 8 users"]
    assert [case.folder for case in few] == ["16", "8"]
    assert few[0].scenario.trained.num_users == 16 and few[0].scenario.asked.num_users == dataset.num_users
    for name in ("table1", "table4", "table8", "table9", "table10", "table11"):
        (case,) = TABLES[name].cases(dataset)
        assert case.title.startswith(f"Table {name[5:]}: ") and case.scenario.asked is dataset
        assert any(paper.hit_at_1(system, "all", case.published) for system in TABLES[name].systems())


def test_a_table_of_ones_own_is_made_like_the_others(place, monkeypatch):
    own = dataclasses.replace(TABLES["table4"], name="mine", systems=lambda: ("Popularity",), reference="Popularity")
    monkeypatch.setattr(TABLES, "records", {**TABLES.records, "mine": own})
    (planned,) = plan_tables(Options(place / "data", out=place / "mine", checkpoints=place / "own"), "MINE")
    assert [row.name for row in planned.rows] == ["Popularity"] and planned.record["table"] == "mine"
    with pytest.raises(Exception, match="unknown table 'nothing'; known: table1"):
        make_tables(Options(place / "data"), "nothing", None)
