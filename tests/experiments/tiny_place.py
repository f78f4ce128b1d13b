"""A tiny data set and language model on which experiments are planned and made; a plugin of this folder's tests."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_llm

from allmrec_jax import cli
from allmrec_jax.data.dataset import load_dataset, write_dataset
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments import execute
from allmrec_jax.experiments.graph import Workplace
from allmrec_jax.experiments.rows import Recipes
from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.runs import Run, load_run

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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write(root / "data")
    (root / "llm").mkdir()
    tiny_llm.tokenizer().save_pretrained(root / "llm")
    (root / "llm" / "config.json").write_text(json.dumps(OPTConfig().to_dict()))
    (root / "llm" / "model.safetensors").write_text("{}")  # its hash is all that is asked for
    return root


@pytest.fixture
def in_this_process(monkeypatch):
    """Every training is its real command, here and not in a process of its own, up to its run, which is then done."""
    ran, opened = [], Run.open

    def run(arguments, name, lock):
        ran.append(name)
        cli.main(list(arguments))
        return {"seconds": 2.0, "peak_mib": 100}

    def finished(*args, **kwargs):
        run = opened(*args, **kwargs)
        if not run.done:
            (run.path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
            run.export_path("weights").write_text("")
            run.finish({})
        return run

    def answer(sources, questions, name, advance):
        advance(len(questions.candidates.users))
        asked.append(name)
        rng = np.random.default_rng(len(name))
        return Outcome(name, rng.random(questions.candidates.candidates.shape))

    asked = []
    monkeypatch.setattr(execute, "train_in_process", run)
    monkeypatch.setattr(Run, "open", staticmethod(finished))
    monkeypatch.setattr("allmrec_jax.training.stage2.load_stage1", lambda path: None)
    for stage in ("stage1", "stage2"):
        cf = f"allmrec_jax.training.{stage}.load_cf"
        monkeypatch.setattr(cf, lambda path, dataset: SimpleNamespace(identity=load_run(path)["identity"]))
    for name in ASKED:
        monkeypatch.setitem(SYSTEMS.records, name, dataclasses.replace(SYSTEMS[name], answer=answer))
    with jax.numpy_dtype_promotion("standard"):
        yield SimpleNamespace(trained=ran, asked=asked)
