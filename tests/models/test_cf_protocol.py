"""Loading a CF model: a finished run's export, or a user's own arrays."""

import json
import shutil

import jax
import numpy as np
import pytest

from allmrec_jax.data.dataset import CUTS, write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import save_arrays
from allmrec_jax.models.cf.protocol import ArrayCF, load_cf
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.runs import Run

USERS, ITEMS, DIM = 4, 6, 3


def make_dataset(path, name="tiny"):
    sequences = [[1, 2, 3, 4], [2, 3, 4], [5, 6, 1, 2], [6, 5, 4, 3]]
    return write_dataset(
        path,
        name=name,
        items=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"{name} {item}" for item in range(1, ITEMS + 1)],
        descriptions=[""] * ITEMS,
    )


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mine"
    path.mkdir()
    np.save(path / "items.npy", rng.normal(size=(ITEMS + 1, DIM)))
    for cut in CUTS:
        np.save(path / f"users_{cut}.npy", rng.normal(size=(USERS, DIM)).astype(np.float32))
    return path


def make_run(tmp_path, dataset):
    """A finished run with random SASRec parameters."""
    config = SASRecConfig(ITEMS, dim=4, blocks=1, max_length=5)
    params = SASRec(config).init_params(jax.random.key(0))
    run = Run.open(tmp_path / "checkpoints", dataset.name, "cf", config, 0, dataset.hash, {})
    save_arrays(run.export_path("params.safetensors"), params)
    card = {"model": "sasrec", "config": {"num_items": ITEMS, "dim": 4, "blocks": 1, "max_length": 5}}
    run.export_path("cf.json").write_text(json.dumps(card))
    run.finish({})
    return run, SASRecCF(config, params)


def test_a_run_loads_as_the_model_that_it_holds(tmp_path, dataset):
    run, original = make_run(tmp_path, dataset)
    cf = load_cf(run.path, dataset)
    assert cf.live and (cf.num_items, cf.dim, cf.identity) == (ITEMS, 4, run.identity)
    histories, _ = dataset.history(np.arange(USERS)[[0, 2]], "test", 5)
    np.testing.assert_array_equal(cf.at("test").user_vectors(None, histories), original.user_vectors(None, histories))
    np.testing.assert_array_equal(cf.item_vectors(), original.item_vectors())


def test_own_arrays_are_looked_up_by_user_and_cut(dataset, arrays):
    cf = load_cf(arrays, dataset)
    assert isinstance(cf, ArrayCF) and not cf.live
    assert (cf.num_items, cf.dim) == (ITEMS, DIM)
    users = np.array([2, 0])
    candidates = np.array([[1, 5], [6, 2]])
    items = np.load(arrays / "items.npy").astype(np.float32)
    for cut in CUTS:
        vectors = np.load(arrays / f"users_{cut}.npy")[users]
        bound = cf.at(cut)
        np.testing.assert_array_equal(bound.user_vectors(users, np.zeros((2, 5), np.int32)), vectors)
        expected = [[vectors[b] @ items[i] for i in row] for b, row in enumerate(candidates)]
        # One dot product of three numbers in two programs.
        np.testing.assert_allclose(bound.score(users, np.zeros((2, 5)), candidates), expected, atol=1e-6)


def test_the_identity_of_own_arrays_is_their_content(dataset, arrays):
    before = load_cf(arrays, dataset).identity
    assert load_cf(arrays, dataset).identity == before
    users = np.load(arrays / "users_valid.npy")
    users[0, 0] += 1
    np.save(arrays / "users_valid.npy", users)
    assert load_cf(arrays, dataset).identity != before


def test_what_only_a_live_model_can_do_is_refused(dataset, arrays):
    cf = load_cf(arrays, dataset)
    nothing = np.zeros((1, 5), np.int32)
    with pytest.raises(UserError, match="history cut"):
        cf.user_vectors(np.array([0]), nothing)
    with pytest.raises(UserError, match="live model"):
        cf.at("test").user_vectors(None, nothing)
    with pytest.raises(UserError, match="dropout"):
        cf.at("test").user_vectors(np.array([0]), nothing, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("items.npy", np.zeros((ITEMS, DIM)), rf"items.npy.*\[{ITEMS}, {DIM}\].*\[{ITEMS + 1}, D\]"),
        ("users_train.npy", np.zeros((USERS, DIM), np.int64), "users_train.npy: int64"),
        ("users_valid.npy", np.zeros((USERS, DIM + 1)), "users_valid.npy.*width 4.*items.npy has 3"),
        ("users_test.npy", np.zeros(USERS), r"users_test.npy.*\[4\]"),
        ("users_test.npy", np.full((USERS, DIM), 1e300), "users_test.npy: 'in float32' is not finite at \\[0, 0\\]"),
        ("users_test.npy", np.full((USERS, DIM), np.nan), "users_test.npy: 'users_test' is not finite at \\[0, 0\\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(dataset, arrays, file, array, message):
    np.save(arrays / file, array)
    with pytest.raises(UserError, match=message):
        load_cf(arrays, dataset)


def test_a_missing_or_pickled_array_is_named(dataset, arrays):
    np.save(arrays / "users_test.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"users_test\.npy"):
        load_cf(arrays, dataset)
    (arrays / "users_test.npy").unlink()
    with pytest.raises(UserError, match=r"users_test\.npy"):
        load_cf(arrays, dataset)


def test_wrong_directories_are_refused(tmp_path, dataset):
    with pytest.raises(UserError, match="neither"):
        load_cf(tmp_path, dataset)
    run, _ = make_run(tmp_path, dataset)
    with pytest.raises(UserError, match="not on other"):
        load_cf(run.path, make_dataset(tmp_path / "other", "other"))
    (run.path / "DONE").rename(run.path / "UNDONE")
    with pytest.raises(UserError, match="not finished"):
        load_cf(run.path, dataset)


def test_a_damaged_export_is_named(tmp_path, dataset):
    run, _ = make_run(tmp_path, dataset)
    export = run.path / "export"
    kept = tmp_path / "kept"
    shutil.copytree(export, kept)
    (run.path / "DONE").write_text("{}")  # of an earlier version, without hashes
    (export / "cf.json").write_text('{"model": "sasrec"')
    with pytest.raises(UserError, match=r"cf\.json"):
        load_cf(run.path, dataset)
    (export / "cf.json").write_text('{"model": "bert4rec", "config": {}}')
    with pytest.raises(UserError, match="bert4rec"):
        load_cf(run.path, dataset)
    shutil.copy(kept / "cf.json", export)
    data = (kept / "params.safetensors").read_bytes()
    (export / "params.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"params\.safetensors"):
        load_cf(run.path, dataset)
