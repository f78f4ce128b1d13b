"""The page on adding a CF model: its code is run as it stands, outside the package."""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.data.prepare import prepare
from allmrec_jax.embedded.synthetic import PRESETS, generate
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_MODELS, CF_PRESETS, register_cf_model

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """What the page's two blocks leave behind, run beside the embedded data."""
    monkeypatch.chdir(tmp_path)
    generate(tmp_path / "raw", 0, PRESETS["tiny"])
    prepare(tmp_path / "raw" / "Nano_Movies.json.gz", tmp_path / "data" / "movies")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[:2]
    names: dict = {"__name__": "the_page"}
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            for block in blocks:
                exec(block, names)
        yield names
    finally:
        CF_MODELS.records.pop("item-mean", None)


def test_the_page_works(program: dict) -> None:
    assert "item-mean" in CF_PRESETS and CF_PRESETS["item-mean"]["small"] is program["PRESETS"]["small"]
    dataset = load_dataset("data/movies")
    again = load_cf(program["run"], dataset)
    table = again.item_vectors()
    expected = np.stack([table[[3, 7]].mean(0), table[[1, 4, 2]].mean(0)])
    np.testing.assert_allclose(program["vectors"], expected, rtol=1e-5, atol=1e-6)  # rounding of a mean
    shown = np.array([[5, 6], [8, 9]])
    np.testing.assert_allclose(program["scores"], np.einsum("bd,bkd->bk", expected, table[shown]), rtol=1e-4, atol=1e-6)

    # It has learnt what it was shown: the next item is above a random one, beyond chance by five standard errors.
    users = dataset.users_with("train")
    histories, targets = dataset.history(users, "train", 24)
    others = np.random.default_rng(0).integers(1, dataset.num_items + 1, len(users))
    scores = np.asarray(again.score(users, histories, np.stack([targets, others], axis=1)))
    assert np.mean(scores[:, 0] > scores[:, 1]) > 0.5 + 5 * 0.5 / np.sqrt(len(users))

    with pytest.raises(UserError, match="already"):
        register_cf_model(program["MODEL"])
