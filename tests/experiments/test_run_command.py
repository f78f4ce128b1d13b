"""The course of several tables."""

import functools
import os
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from allmrec_jax.errors import UserError
from allmrec_jax.eval import runner
from allmrec_jax.fileio import held


def test_everything_is_trained_before_anything_is_asked_under_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def table(name: str) -> SimpleNamespace:
        def step(what: str) -> None:
            for other in ("one", "two"):  # nobody else comes in between
                with pytest.raises(UserError, match="in use by process"), held(tmp_path / other / ".lock"):
                    pass
            done.append(f"{what} {name}")

        train, make = functools.partial(step, "train"), functools.partial(step, "ask")
        return SimpleNamespace(title=name, out=tmp_path / name, train=train, make=make)

    monkeypatch.setattr(runner, "only_planned", lambda options, tables: False)
    runner.make_tables(None, [table("one"), table("two")])
    assert done == ["train one", "train two", "ask one", "ask two"]
    with held(tmp_path / "one" / ".lock"):
        pass


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
