"""The comparison without a clone: stock PyTorch parts, recorded numbers, and a mistake in every component."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from allmrec_jax import cli
from allmrec_jax.parity import compare
from allmrec_jax.parity.alterations import ALTERATIONS
from allmrec_jax.parity.golden import RECORDED, STEPS, Golden
from allmrec_jax.parity.ours import OURS
from allmrec_jax.parity.reference import COMPONENTS, ONLY_A_CLONE, Steps
from allmrec_jax.parity.stock import Stock
from allmrec_jax.parity.tolerances import TOLERANCES

SHORT = Steps(cf=20, stage1=8, stage2=8)
"""As many steps as a wrong optimizer needs to show; `allmrec parity` takes the whole lengths."""

CPU = jax.devices("cpu")[0]


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        yield


@pytest.fixture(scope="module")
def stock():
    return Stock(SHORT)


@pytest.fixture(scope="module")
def recorded():
    return {file: Golden(file) for file in RECORDED}


def failures(row):
    return [tensor for tensor in row.tensors if not tensor.passed]


@pytest.mark.parametrize("component", Stock(SHORT).components())
def test_equals_stock_pytorch(stock, component):
    row = compare.compare(stock, component, SHORT, CPU)
    assert row.tensors and not failures(row)


# The trainings are recorded at their whole lengths: `allmrec parity` compares those.
@pytest.mark.parametrize(
    ("file", "component"),
    [(file, one) for file in RECORDED for one in Golden(file).components() if "training" not in one],
)
def test_equals_the_recorded_official_code(recorded, file, component):
    row = compare.compare(recorded[file], component, STEPS, CPU)
    assert row.tensors and not failures(row)


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name not in ONLY_A_CLONE])
def test_a_mistake_turns_the_row_red(stock, recorded, component, monkeypatch):
    # The first alteration of each; `allmrec parity --selftest` makes them all.
    monkeypatch.setitem(ALTERATIONS, component, ALTERATIONS[component][:1])
    (altered,) = compare.selftest([stock, *recorded.values()], [component], SHORT)
    assert altered.red, altered


def test_every_component_is_compared_and_can_be_altered(stock, recorded):
    seen = {one for reference in (stock, *recorded.values()) for one in reference.components()}
    assert seen | set(ONLY_A_CLONE) == set(COMPONENTS) == set(OURS) == set(ALTERATIONS)
    assert not list(compare.selftest([stock, *recorded.values()], ONLY_A_CLONE, SHORT)), "left out, not an error"


def test_the_tolerances_are_those_asked_for():
    assert TOLERANCES["forward"].value <= 1e-5 and TOLERANCES["gradient"].value <= 1e-4
    assert TOLERANCES["final"].value <= 1e-3 and TOLERANCES["exact"].value == 0
    assert all(tolerance.reason for tolerance in TOLERANCES.values())


def test_distances():
    a, b = np.asarray([1.0, 2.0]), np.asarray([1.0, 4.0])
    assert compare._distance(a, b, "forward") == (2.0, 0.5)
    assert compare._distance(a, b, "exact") == (2.0, 0.5)
    assert compare._distance(a, b, "final") == (2.0, 2 / np.sqrt(17))
    assert compare._distance(a, b[:1], "forward") == (np.inf, np.inf), "a wrong shape is not broadcast"
    nan = compare.Tensor("forward/x", (1,), np.nan, np.nan, 1e-5)
    assert not nan.passed, "a NaN is no agreement"


def test_plot_of_a_training(tmp_path):
    row = compare.Row("SASRec training", "stock", "cpu", "torch", "", "", (), ([2.0, 1.0], [2.0, 1.0]))
    compare.plot(tmp_path / "parity.png", [row])
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_table_json_and_plot_and_fails_where_a_row_does(capsys, tmp_path, monkeypatch):
    arguments = ["parity", "--component", "Projectors", "--selftest", "--out", str(tmp_path)]
    monkeypatch.setattr(compare, "plot", lambda path, rows: Path(path).write_text("plot"))
    cli.main(arguments)
    shown = capsys.readouterr().out
    assert "| Projectors | stock PyTorch: torch" in shown and "2 of 2 alterations" in shown
    report = json.loads((tmp_path / "parity.json").read_text())
    assert {row["verdict"] for row in report["rows"]} == {"passed"} and report["versions"]["torch"]
    lines = (tmp_path / "parity.md").read_text().splitlines()
    assert len(lines) == 2 + sum(len(row["tensors"]) for row in report["rows"])
    assert all(one["red"] for one in report["selftest"]) and (tmp_path / "parity.png").exists()

    monkeypatch.setattr("allmrec_jax.models.projectors.LEAKY_SLOPE", 0.02)
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--component", "Projectors"])
    assert stop.value.code == 1 and "failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is not a clone of the official repository: it has no pre_train/sasrec/model.py"),
        (["empty"], "pre_train.sasrec.model has no SASRec: not the official repository"),
        (["broken"], "pre_train.sasrec.model cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_what_is_not_a_clone_is_named(capsys, tmp_path, files, message):
    from allmrec_jax.parity.official import FILES

    for name in FILES.values() if files else ():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1 / 0\n" if files == ["broken"] else "")
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--official", str(tmp_path)])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and message in shown.err and shown.err.count("\n") == 1


def test_an_unknown_component_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--component", "Nonsense"])
    assert stop.value.code == 2 and "unknown component 'Nonsense'" in capsys.readouterr().err
