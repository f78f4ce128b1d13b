"""The example of docs/bring_your_own_cf.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np

from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.models.cf.protocol import load_cf

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bring_your_own_cf.md"


def test_the_example_gives_a_cf_model_that_ranks_and_knows_no_target(tmp_path, monkeypatch):
    """Users keep to one of four groups of items, so a factorisation finds a user's group."""
    rng, users, group = np.random.default_rng(0), 120, 15
    rows = [rng.permutation(group)[:8] + 1 + group * (user % 4) for user in range(users)]
    dataset = write_dataset(
        tmp_path / "data" / "movies",
        name="movies",
        items=np.concatenate(rows),
        offsets=np.arange(users + 1) * 8,
        titles=[f"Title {item}" for item in range(1, 4 * group + 1)],
        descriptions=[""] * 4 * group,
    )
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(", 50\n", ", 4\n"), PAGE, "exec"), {})

    cf = load_cf(tmp_path / "my_cf", dataset)
    assert cf.dim == 4
    everyone = np.arange(users)
    for cut in ("valid", "test"):
        histories, targets = dataset.history(everyone, cut, 8)
        candidates = np.stack([targets, (targets + group - 1) % (4 * group) + 1], axis=1)
        scores = np.asarray(cf.at(cut).score(everyone, histories, candidates))
        assert (scores[:, 0] > scores[:, 1]).mean() > 0.95, cut

    # Another test item changes no user vector before it and no item vector.
    before = {path.name: np.load(path) for path in (tmp_path / "my_cf").iterdir()}
    items = dataset.items.copy()
    items[7] = items[7] % group + 1
    write_dataset(
        tmp_path / "data" / "movies", name="movies", items=items, offsets=dataset.offsets,
        titles=dataset.titles[1:], descriptions=dataset.descriptions[1:],
    )  # fmt: skip
    exec(compile(code.replace(", 50\n", ", 4\n"), PAGE, "exec"), {})
    for name, values in before.items():
        np.testing.assert_array_equal(np.load(tmp_path / "my_cf" / name), values, err_msg=name)
