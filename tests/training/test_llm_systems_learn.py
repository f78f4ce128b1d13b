"""Systems that project vectors into the embedded language model learn what is planted, and nothing where nothing is."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from allmrec_jax.data.candidates import make_candidates
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.models.cf.gru4rec import GRU4RecSettings
from allmrec_jax.models.cf.sasrec import SASRecSettings
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.cf import train_cf
from allmrec_jax.training.stage1 import train_stage1
from allmrec_jax.training.stage1_settings import Stage1Settings
from allmrec_jax.training.stage2 import train_stage2
from allmrec_jax.training.stage2_settings import Stage2Settings

GROUPS, SIZE, USERS, CANDIDATES = 4, 12, 100, 5
CF: dict[str, Any] = dict(
    dim=16, max_length=8, learning_rate=2e-2, batch_size=50, epochs=12, buckets=1, evaluate_every=12, patience=0,
    loss="softmax", choose="last", validation_negatives=10, validation_users=20,
)  # fmt: skip
MODELS = {"sasrec": SASRecSettings(blocks=1, dropout=0.2, **CF), "gru4rec": GRU4RecSettings(hidden=16, **CF)}
# Joint embeddings as wide as the CF model's vectors: MLP-LLM's programs serve A-LLMRec too.
STAGE1 = Stage1Settings(
    latent_dim=CF["dim"],
    epochs=8,
    batch_size=50,
    learning_rate=1e-2,
    freeze_encoder=True,
    text_max_tokens=16,
    validation_users=0,
)
# A language model that is sure of itself gives fresh projectors no gradient: without a warm start nothing is learnt.
STAGE2 = Stage2Settings(
    steps=2, batch_size=8, learning_rate=1e-3, warm_start_steps=30, positions="all", history_length=2,
    candidates=CANDIDATES, title_max_tokens=6, dtype="float32", choose="last",
)  # fmt: skip


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_dataset(path, shuffled):
    """Users walk through the 12 items of one of four groups; shuffled, each interaction's item is any item.

    All items are alike popular, so that popularity is right by chance alone, and no title tells an item's group.
    """
    rng = np.random.default_rng(0)
    sequences = [
        (rng.integers(SIZE) + np.arange(rng.integers(6, 10))) % SIZE + 1 + SIZE * rng.integers(GROUPS)
        for _ in range(USERS)
    ]
    if shuffled:
        sequences = [1 + rng.permutation(GROUPS * SIZE)[: len(sequence)] for sequence in sequences]
    words = ["Silver Comet", "Dusty Saddle", "Hidden Reef", "Broken Clue"]
    titles = [f"{word} {number}" for word in words for number in range(SIZE)]
    return write_dataset(
        path,
        name="walks",
        items=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[titles[place] for place in rng.permutation(len(titles))],
        descriptions=[""] * GROUPS * SIZE,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["planted", "shuffled"])
def place(request, tmp_path_factory):
    """A data set with a trained SASRec, and whether there is something to learn."""
    root = tmp_path_factory.mktemp("walks")
    dataset = make_dataset(root / "data", request.param)
    with jax.numpy_dtype_promotion("standard"):
        return dataset, train_cf(dataset, MODELS["sasrec"], 0, root / "runs", quiet=True), root / "runs", request.param


def judge(place, name, runs):
    """Holds a system's Hit@1 against popularity's: three standard errors beyond, or within two where shuffled.

    LLM-Only, which is not trained, stays within two on both: what the others learn is in their vectors.
    """
    dataset, _, _, shuffled = place
    asked = make_candidates(dataset, count=CANDIDATES)
    settings = EvaluationSettings(llm="opt-nano", batch_size=50, generate=False, wording=STAGE2)
    sources = Sources(dataset, runs, settings)
    outcome = SYSTEMS[name].answer(sources, Questions(dataset, asked), name, lambda count: None)
    noise = np.random.default_rng(1).random(asked.candidates.shape)  # popularity's ties are broken at random

    def hits(scores):
        return (np.argmax(scores, axis=1) == asked.target_column).astype(float)

    gain = hits(outcome.scores) - hits(dataset.train_count[asked.candidates] + noise)
    error = gain.std() / np.sqrt(len(gain))
    level = shuffled or name == "LLM-Only"
    assert abs(gain.mean()) < 2 * error if level else gain.mean() > 3 * error, (gain.mean(), error)


def test_llm_only(place):
    judge(place, "LLM-Only", [])


def test_mlp_llm(place):
    dataset, cf, out, _ = place
    settings = dataclasses.replace(STAGE2, item_vectors="cf")
    judge(place, "MLP-LLM", [cf, train_stage2(dataset, cf, None, "opt-nano", settings, 0, out, quiet=True)])


def test_a_llmrec(place):
    dataset, cf, out, _ = place
    stage1 = train_stage1(dataset, cf, "sbert-nano", STAGE1, 0, out, quiet=True)
    judge(place, "A-LLMRec", [cf, stage1, train_stage2(dataset, cf, stage1, "opt-nano", STAGE2, 0, out, quiet=True)])


def test_a_llmrec_all_on_another_backbone(place):
    dataset, _, out, _ = place
    cf = train_cf(dataset, MODELS["gru4rec"], 0, out, quiet=True)
    settings = dataclasses.replace(STAGE1, positions="all", epochs=6)
    stage1 = train_stage1(dataset, cf, "sbert-nano", settings, 0, out, quiet=True)
    judge(place, "A-LLMRec", [cf, stage1, train_stage2(dataset, cf, stage1, "opt-nano", STAGE2, 0, out, quiet=True)])
