"""The comparison of trained systems: the rule that both train by, the metrics that both get, and the verdict."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel  # type: ignore[import-untyped]

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

    def measures(self):
        return {"loss": self.values[self.epochs]}


@pytest.mark.parametrize("sign", [1, -1], ids=["more is better", "less is better"])
@pytest.mark.parametrize(
    ("values", "rule", "trained", "best"),
    [
        ({2: 0.1, 4: 0.3, 6: 0.2, 8: 0.25, 10: 0.9}, (10, 2, 2), 8, 4),  # stops before the late rise
        ({2: 0.1, 4: 0.3, 5: 0.4}, (5, 2, 2), 5, 5),  # the last epoch is validated too
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends(program, values, rule, trained, best, sign):
    system = System({epoch: sign * value for epoch, value in values.items()})
    told = program.train(system, program.Rule(*rule, "loss", sign == 1))
    assert (told["epochs"], told["best_epoch"], system.epochs) == (trained, best, best)
    assert told["validations"] == [
        {"epoch": epoch, "loss": sign * value} for epoch, value in values.items() if epoch <= trained
    ]


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


def test_stage1_measures_are_of_ranks_and_losses(program):
    found = {"ranks": np.asarray([1, 1, 3, 11]), "text_ranks": np.asarray([1, 2, 2, 2]), "losses": {"rec": 1.5}}
    assert program.stage1_measures(found) == pytest.approx(
        {"hit@1": 0.5, "ndcg@10": 0.625, "own text hit@1": 0.25, "rec": 1.5}
    )


def test_one_data_set_gets_the_paired_interval_over_seeds(program):
    rng = np.random.default_rng(0)
    ours, official = rng.normal(size=(2, 10))
    expected = ttest_rel(ours, official).confidence_interval()
    assert program.difference([ours - official]) == pytest.approx([(ours - official).mean(), *expected])


def test_data_sets_count_alike_each_with_its_own_spread(program):
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 2, 10), rng.normal(-1, 0.1, 7)
    # Welch's interval of mean(first) - mean(-second), halved.
    expected = ttest_ind(first, -second, equal_var=False).confidence_interval()
    found = program.difference([first, second])
    assert found == pytest.approx([(first.mean() + second.mean()) / 2, *(bound / 2 for bound in expected)])


def runs(hits, users=4000):
    """One run a seed, with so many hits; the rest are misses."""
    told = {"seconds_per_epoch": 1.0, "cpu_seconds_per_epoch": 1.0, "validations": [{"epoch": 1, "hit@1": 0.1}]}
    return [told | {"ranks": np.where(np.arange(users) < hit * users, 1, 5).tolist()} for hit in hits]


@pytest.mark.parametrize(
    ("ours", "official", "within"),
    [
        ((0.502, 0.506, 0.504), (0.504, 0.502, 0.506), True),
        ((0.53, 0.54, 0.535), (0.50, 0.51, 0.505), False),  # apart
        ((0.40, 0.50, 0.60), (0.50, 0.60, 0.40), False),  # seeds too far apart to tell
    ],
)
def test_the_verdict_looks_at_every_data_set_and_at_their_mean(program, ours, official, within):
    same, other = (
        {"ours": runs((0.5, 0.5)), "official": runs((0.5, 0.5))},
        {"ours": runs(ours), "official": runs(official)},
    )
    sets = {
        name: {
            half: {"summary": program.half_summary("cf", made), "seeds": len(made["ours"])} for half in program.HALVES
        }
        for name, made in (("same", same), ("other", other))
    }
    results = {"sets": sets, "pooled": program.pooled(sets)}
    assert program.within_limit(results) is within
    mean = results["pooled"]["cf"]["test"]["hit@1"][0]
    assert mean == pytest.approx((np.mean(ours) - np.mean(official)) / 2, abs=1e-9)
    assert sets["other"]["cf"]["summary"]["speed_ratio"] == 1
