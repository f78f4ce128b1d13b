"""The trainings of rows: their identities, commands and changes."""

import re

import click
import pytest
from tiny_place import recipes

from allmrec_jax.commands.train import command as train
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.experiments.graph import Workplace, effective_changes, trainings_of
from allmrec_jax.experiments.plan import show_plan
from allmrec_jax.experiments.rows import at_seeds, known_rows
from allmrec_jax.trained.kinds import KINDS, parse_changes

pytest_plugins = "tiny_fixtures"


def test_planned_identities_are_those_of_the_runs_and_follow_every_change(place):
    work = Workplace(
        load_dataset(place / "data"), place / "other", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    row = recipes().row("A-LLMRec", 0)
    names = {work.identity(node) for node in row.nodes()}
    changes = [
        recipes(cf={"dim": 9}),
        recipes(stage1={"alpha": 0.1}),
        recipes(stage2={"epochs": 7}),
    ]
    moved = [len(names - {work.identity(node) for node in each.row("A-LLMRec", 0).nodes()}) for each in changes]
    assert moved == [3, 2, 1], "a change moves the training and all that is built on it"
    assert "--cf" in work.command(row.trainings[-1]) and "to train" in show_plan([(work, [row], None)])


def test_every_kind_has_a_command_that_takes_the_planned_options(place):
    work = Workplace(
        load_dataset(place / "data"), place / "other", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    given = {kind: {"learning_rate": 0.5} for kind in KINDS}
    names = [name for name in known_rows() if name != "RECFORMER"]  # there is no Longformer here
    for node in trainings_of(at_seeds(recipes(**given), names, 1, 1)):
        words = work.command(node)
        command = train.get_command(click.Context(train), words[1])
        command.make_context(words[1], words[2:])  # raises on an unknown option or a bad value
        assert node.settings.learning_rate == 0.5


def test_changes_are_parsed_and_bad_ones_named():
    parsed = parse_changes(["cf.epochs=3", "stage2.schedule=cosine", "stage2.user_vector=false", "cf.dropout=0.25"])
    assert parsed == {"cf": {"epochs": 3, "dropout": 0.25}, "stage2": {"schedule": "cosine", "user_vector": False}}
    for line, message in (
        ("epochs=3", "write --set cf.epochs=3 or "),
        ("speed=3", "KIND.SETTING=VALUE"),
        ("stage3.epochs=3", "KIND.SETTING=VALUE"),
        ("cf.speed=3", "no setting 'speed'"),
        ("cf.epochs=many", "a whole number is expected"),
        ("stage2.schedule=steep", "one of constant, cosine"),
        ("stage2.user_vector=1", "true or false"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse_changes([line])
    assert effective_changes("stage2", "small", {"epochs": 9, "batch_size": 32}) == (("epochs", 9),)
    assert effective_changes("cf", "small", {"blocks": 1}, model="gru4rec") == (("model", "gru4rec"),)
    assert effective_changes("stage1", "paper", {"positions": "last"}, positions="all") == (("positions", "all"),)
