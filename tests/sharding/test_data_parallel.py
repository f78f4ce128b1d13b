"""CF models and stage 1 on a mesh: every axis splits their batches, and they learn what they learn on one device."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.fileio import load_arrays
from allmrec_jax.models.cf.sasrec import SASRecSettings
from allmrec_jax.sharding import use_mesh
from allmrec_jax.training.cf import train_cf
from allmrec_jax.training.stage1 import train_stage1
from allmrec_jax.training.stage1_settings import Stage1Settings

CF = SASRecSettings(
    dim=8, blocks=1, max_length=8, dropout=0.1, learning_rate=1e-2, batch_size=14, epochs=2, buckets=1,
    evaluate_every=2, patience=0, validation_negatives=5, choose="last",
)  # fmt: skip

STAGE1 = Stage1Settings(
    epochs=1, batch_size=10, accumulation=2, learning_rate=1e-3, latent_dim=8, text_max_tokens=16, validation_users=20
)

MESH = "data=2,tensor=2"
"""Divides neither of the batches."""


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(30)[:length] + 1 for length in rng.integers(4, 9, 37)]
    return write_dataset(
        tmp_path_factory.mktemp("data"),
        name="tiny",
        items=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"item {item}" for item in range(1, 31)],
        descriptions=[""] * 30,
    )


@pytest.fixture(scope="module")
def cf_runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trained on one device and on a mesh."""
    runs = []
    for mesh in (None, MESH):
        with use_mesh(mesh):
            runs.append(train_cf(dataset, CF, 0, tmp_path_factory.mktemp("cf"), quiet=True))
    return runs


def assert_same_losses(runs: list[Path]) -> None:
    """Float32 sums in another order, a few steps of Adam long."""
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_cf(cf_runs: list[Path]) -> None:
    assert_same_losses(cf_runs)
    abouts = [json.loads((run / "run.json").read_text()) for run in cf_runs]
    assert abouts[0]["identity"] == abouts[1]["identity"]  # a mesh is no part of it
    assert [about["mesh"] for about in abouts] == [None, MESH]


def test_stage1(dataset: Dataset, cf_runs: list[Path], tmp_path: Path) -> None:
    runs = []
    for mesh in (None, MESH):
        with use_mesh(mesh):
            runs.append(train_stage1(dataset, cf_runs[0], "sbert-nano", STAGE1, 0, tmp_path / str(mesh), quiet=True))
    assert_same_losses(runs)
    one, other = (load_arrays(run / "export" / "params.safetensors") for run in runs)
    for found, wanted in zip(jax.tree.leaves(other), jax.tree.leaves(one), strict=True):
        # Adam's steps of 1e-3 turn where a gradient is near zero; four of them.
        np.testing.assert_allclose(found, wanted, atol=2e-3)
