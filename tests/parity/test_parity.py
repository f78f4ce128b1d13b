"""The comparison without a clone: stock PyTorch parts, recorded numbers, and a mistake in every component."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from allmrec_jax import cli
from allmrec_jax.parity import cases, compare
from allmrec_jax.parity.alterations import ALTERATIONS
from allmrec_jax.parity.golden import RECORDED, STEPS, Golden
from allmrec_jax.parity.ours import DRAWING, OURS
from allmrec_jax.parity.reference import COMPONENTS, DRAWN, ONLY_A_CLONE, Drawn, DrawnStep, RefusedError, Steps
from allmrec_jax.parity.stock import Stock
from allmrec_jax.parity.tolerances import TOLERANCES
from allmrec_jax.parity.watched import sasrec_masks

SHORT = Steps(cf=10, stage1=2, stage2=4)
"""As many as show every user and a wrong optimizer; `allmrec parity` takes the whole lengths."""

CPU = jax.devices("cpu")[0]

UNALTERED = ("SASRec training, short histories", "Stage 1 training", "Stage 2 training")
"""Altered by `allmrec parity --selftest` alone: each takes some twenty seconds to compile."""


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        yield


@pytest.fixture(scope="module")
def stock():
    return Stock()


@pytest.fixture(scope="module")
def recorded():
    return {file: Golden(file) for file in RECORDED}


def failures(row):
    return [tensor for tensor in row.tensors if not tensor.passed]


@pytest.mark.parametrize("component", Stock().components())
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


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name not in (*ONLY_A_CLONE, *UNALTERED)])
def test_a_mistake_turns_the_row_red(stock, recorded, component, monkeypatch):
    # The first alteration of each; `allmrec parity --selftest` makes them all.
    monkeypatch.setitem(ALTERATIONS, component, ALTERATIONS[component][:1])
    (altered,) = compare.selftest([stock, *recorded.values()], [component], SHORT)
    assert altered.red, altered


def test_every_component_is_compared_and_can_be_altered(stock, recorded):
    seen = {one for reference in (stock, *recorded.values()) for one in reference.components()}
    assert seen | set(ONLY_A_CLONE) == set(COMPONENTS) == set(OURS) | set(DRAWING) == set(ALTERATIONS)
    assert set(DRAWING) == set(DRAWN)
    assert not list(compare.selftest([stock, *recorded.values()], ONLY_A_CLONE, SHORT)), "left out, not an error"


def test_alterations_change_the_product_alone():
    targets = [one.target for alterations in ALTERATIONS.values() for one in alterations]
    assert targets and not [target for target in targets if target.startswith("allmrec_jax.parity")]


def test_rows_with_stand_ins_are_partial(recorded):
    about = {(name, one): golden.source(one) for name, golden in recorded.items() for one in golden.components()}
    old = about["official_transformers_4.npz", "Prompts"].stood_in
    assert "opt-nano's byte-pair encoding" in old, "whose tokenizer has other tokens than OPT's"
    assert about["official.npz", "Stage 1"].stood_in and about["official.npz", "Stage 2 training"].stood_in
    tensors = (compare.Tensor("exact/ids", (1,), 0.0, 0.0, 0.0),)
    assert compare.Row("Prompts", "recorded", "cpu", "", "", old, "highest", tensors).verdict == "partial"
    assert not about["official.npz", "SASRec training"].stood_in


def test_our_side_multiplies_in_full_precision_in_every_thread(stock, monkeypatch):
    before, seen = jax.config.jax_default_matmul_precision, []

    def projectors(theirs):
        with ThreadPoolExecutor(1) as pool:  # as the product's samplers do
            seen.append(pool.submit(lambda: jax.config.jax_default_matmul_precision).result())
        return OURS["Projectors"](theirs)

    monkeypatch.setattr(compare, "OURS", OURS | {"Projectors": projectors})
    row = compare.compare(stock, "Projectors", SHORT, CPU)
    assert seen == [row.precision] == ["highest"]
    assert jax.config.jax_default_matmul_precision == before


def step(users, negatives, *masks):
    users, negatives = np.asarray(users), np.asarray(negatives)
    return DrawnStep(users, negatives, negatives, negatives, masks)


def test_draws_that_come_again_are_counted():
    rows, keep = np.arange(1, 21).reshape(2, 10), np.arange(8) % 3 > 0
    again = Drawn({}, [step([1, 2], rows, keep), step([1, 2], rows, keep)])
    assert again.repeats().tolist() == [2, 1, 1, 1]
    other = Drawn({}, [step([1, 2], rows, keep), step([2, 1], rows[::-1] + 40, ~keep)])
    assert other.repeats().tolist() == [0, 0, 0, 0]


def test_a_negative_that_the_user_has_met_is_refused(stock):
    user = 20
    met = cases.histories()[user - 1][0]
    with pytest.raises(RefusedError, match="has met items"):
        stock.stage_batch(np.asarray([user]), np.asarray([met]))


def test_what_the_reference_does_not_take_is_a_failed_row(stock, monkeypatch):
    def refuse(component, drawn):
        raise RefusedError("one mask too many")

    monkeypatch.setattr(stock, "replay", refuse)
    monkeypatch.setattr(compare, "DRAWING", {"SASRec with dropout": lambda steps: ({}, None)})
    row = compare.compare(stock, "SASRec with dropout", SHORT, CPU)
    assert row.verdict == "failed" and "one mask too many" in row.worst.name


def test_masks_of_short_inputs_count_the_pads_kept():
    counts, keep = np.full((1, 1, 2), 2, np.int32), np.zeros((1, 1, 2, 2), bool)
    embedding, attention = sasrec_masks([np.zeros((1, 2, 3), bool), counts, keep], 5)
    assert embedding.tolist() == [[[True] * 3] * 3 + [[False] * 3] * 2]
    assert attention[0, 0, 3:].tolist() == [[True, True, False, False, False]] * 2, "of three pads two are kept"


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
    row = compare.Row("SASRec training", "stock", "cpu", "torch", "", "", "highest", (), ([2.0, 1.0], [2.0, 1.0]))
    compare.plot(tmp_path / "parity.png", [row])
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_table_json_and_plot_and_fails_where_a_row_does(capsys, tmp_path, monkeypatch):
    arguments = ["parity", "--component", "Projectors", "--selftest", "--out", str(tmp_path)]
    monkeypatch.setattr(compare, "plot", lambda path, rows: Path(path).write_text("plot"))
    cli.main(arguments)
    shown = capsys.readouterr().out
    assert "| Projectors | stock PyTorch: torch" in shown and "2 of 2 alterations" in shown
    assert "on the cpu: precision highest" in shown
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
