"""Fixtures of this folder's tests: a place with a data set and a language model, and trainings in this process."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_llm
from tiny_place import ASKED, write

from allmrec_jax import cli
from allmrec_jax.evaluation.results import Outcome
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments import execute
from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.runs import Run, load_run


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
