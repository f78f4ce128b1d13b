"""A tiny data set, and what experiments on it are asked with; the fixtures are in ``tiny_fixtures``."""

import numpy as np

from allmrec_jax.data.dataset import load_dataset, write_dataset
from allmrec_jax.experiments.graph import Workplace
from allmrec_jax.experiments.rows import Recipes

USERS, ITEMS = 40, 44
SMALL = ["cf.epochs=2", "cf.dim=8", "cf.max_length=8", "stage1.freeze_encoder=true", "stage2.steps=2"]
ASKED = ["SASRec", "LLM-Only", "TALLRec (yes-no)", "MLP-LLM", "A-LLMRec", "A-LLMRec (SBERT)"]


def write(path, titled=True):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, USERS)
    words = ("Red", "Moon", "Fox", "It", "Ghost Ship", "Deep", "Blue Whale", "Saddle", "Spur", "Ship", "Is")
    return write_dataset(
        path,
        name="Tiny",
        items=np.concatenate([rng.permutation(np.arange(1, ITEMS + 1))[:length] for length in lengths]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"{word} {number}" if titled else "No Title" for number in range(4) for word in words],
        descriptions=[""] * ITEMS,
    )


def arguments(place, *more, out="out", changes=SMALL):
    words = ["experiment", "table1", "--data", place / "data", "--checkpoints", place / "checkpoints"]
    words += ["--llm", place / "llm", "--out", place / out, *(word for line in changes for word in ("--set", line))]
    return [str(word) for word in (*words, *more)]


def workplace(place):
    models = {"llm": str(place / "llm"), "encoder": "sbert-nano", "longformer": "absent"}
    return Workplace(load_dataset(place / "data"), place / "other", models)


def recipes(preset="small", **given):
    return Recipes(preset, given)
