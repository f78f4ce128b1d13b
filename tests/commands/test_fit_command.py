"""`allmrec fit` ends with the line to try next."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from allmrec_jax.cli import allmrec


@dataclasses.dataclass
class Fitted:
    """What :func:`allmrec_jax.fit` returns, without a training."""

    path: Path = Path("kept/Movies/stage2/0a1b2c3d4e5f")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((), "allmrec recommend --run kept/Movies/stage2/0a1b2c3d4e5f --item 'Alien (1979)'"),
        (("--name", "first"), "allmrec recommend --run first --item 'Alien (1979)'"),
        (
            ("--name", "first", "--checkpoints", "kept"),
            "allmrec recommend --run first --checkpoints kept --item 'Alien (1979)'",
        ),
        (("--name", "a", "--until", "cf"), "allmrec train stage1 --data data/movies --cf a"),
        (
            ("--until", "stage1", "--checkpoints", "kept"),
            "allmrec train stage2 --data data/movies --stage1 kept/Movies/stage2/0a1b2c3d4e5f --checkpoints kept",
        ),
    ],
)
def test_the_next_line_names_the_run_as_it_was_named(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], line: str
) -> None:
    data = SimpleNamespace(path=Path("data/movies"), titles=["", "Alien (1979)"])
    monkeypatch.setattr("allmrec_jax.api.data.load_data", lambda path: data)
    monkeypatch.setattr("allmrec_jax.api.training.fit", lambda dataset, **options: Fitted())
    told = CliRunner().invoke(allmrec, ["fit", "--data", "data/movies", *given])
    assert told.exception is None and told.output.splitlines()[-1] == f"next: {line}"
