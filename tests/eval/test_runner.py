"""The course of several tables."""

import os
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from allmrec_jax.eval import runner


def test_everything_is_trained_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def table(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            title=name, train=lambda: done.append(f"train {name}"), make=lambda: done.append(f"ask {name}")
        )

    monkeypatch.setattr(runner, "only_planned", lambda options, tables: False)
    runner.make_tables(None, [table("one"), table("two")])
    assert done == ["train one", "train two", "ask one", "ask two"]


def test_an_experiment_leaves_the_memory_of_a_gpu_to_its_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)

    @click.command()
    @runner.table_options
    def command(options: runner.Options) -> None:
        """Says what the setting is."""
        click.echo(os.environ.get(name))

    assert CliRunner().invoke(command, ["--data", "x"]).output == "false\n"
