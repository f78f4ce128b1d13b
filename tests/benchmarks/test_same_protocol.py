"""The comparison of trained systems: the rule that both train by, the metrics that both get, and the verdict."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from allmrec_jax.models.alignment import alignment_losses


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parents[2] / "benchmarks" / "same_protocol.py"
    spec = importlib.util.spec_from_file_location("same_protocol", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["same_protocol"] = module
    spec.loader.exec_module(module)
    return module


class System:
    """One whose validation goes through ``values``; its state is the number of epochs."""

    name = "fake"

    def __init__(self, values):
        self.values, self.epochs = values, 0

    def epoch(self):
        self.epochs += 1

    def state(self):
        return self.epochs

    def load(self, state):
        self.epochs = state

    def value(self):
        return self.values[self.epochs]


@pytest.mark.parametrize(
    ("values", "rule", "trained", "best"),
    [
        ({2: 0.1, 4: 0.3, 6: 0.2, 8: 0.25, 10: 0.9}, (10, 2, 2), 8, 4),  # stops before the late rise
        ({2: 0.1, 4: 0.3, 5: 0.4}, (5, 2, 2), 5, 5),  # the last epoch is validated too
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends(program, values, rule, trained, best):
    system = System(values)
    told = program.train(system, program.Rule(*rule))
    assert (told["epochs"], told["best_epoch"], system.epochs, told["valid"]) == (trained, best, best, values[best])


def test_ranks_and_gains(program):
    rank = program.ranks(np.asarray([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]))
    assert rank.tolist() == [1, 2, 3], "a tie counts against the target"
    np.testing.assert_allclose(program.ndcg10(np.asarray([1, 3, 11])), [1, 0.5, 0])


def test_stage1_losses_are_those_of_training(program):
    rng = np.random.default_rng(0)
    shapes = {"items": 3, "latents": 4, "item_outputs": 3, "texts": 5, "text_latents": 4, "text_outputs": 5}
    tables = program.Tables(**{name: rng.normal(size=(7, w)).astype(np.float32) for name, w in shapes.items()})
    users = rng.normal(size=(6, 3)).astype(np.float32)
    positives, negatives = rng.integers(1, 7, (2, 6))
    outputs = {"e": tables.latents, "q": tables.text_latents, "items": tables.item_outputs}
    theirs = alignment_losses(
        outputs | {"texts": tables.text_outputs},
        tables.items,
        tables.texts,
        users,
        positives,
        negatives,
        np.ones(6, np.float32),
        negatives_too=True,
        mean_logits=True,
        detach_texts=True,
    )
    ours = program.stage1_losses(tables, users, positives, negatives)
    for name in ("rec", "match", "item_recon", "text_recon"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)  # float64 against float32
    asked = program.Asked(np.zeros((6, 1)), np.stack([positives, negatives], axis=1))
    found = program.stage1_test(tables, users, asked)
    won = np.sum(users * (tables.item_outputs[positives] - tables.item_outputs[negatives]), axis=1) > 0
    assert (found["ranks"] == 1).tolist() == won.tolist()


def runs(program, hits, users=4000):
    """One run a seed, with so many hits; the rest are misses."""
    told = {"seconds_per_epoch": 1.0, "cpu_seconds_per_epoch": 1.0}
    return [told | {"ranks": np.where(np.arange(users) < hit * users, 1, 5).tolist()} for hit in hits]


@pytest.mark.parametrize(
    ("ours", "official", "within"),
    [
        ((0.50, 0.51, 0.505), (0.505, 0.50, 0.51), True),
        ((0.52, 0.53, 0.525), (0.50, 0.51, 0.505), False),  # apart
        ((0.40, 0.50, 0.60), (0.40, 0.50, 0.60), False),  # seeds too far apart to tell
    ],
)
def test_the_verdict_needs_both_intervals(program, ours, official, within):
    found = program.half_summary("cf", {"ours": runs(program, ours), "official": runs(program, official)})
    assert found["within_limit"] is within and found["speed_ratio"] == 1
    assert found["hit@1"]["ours"] == pytest.approx(np.mean(ours))
