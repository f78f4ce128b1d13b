"""Results, users and training runs of the contract's shape, small and made up, for the report's tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.evaluation.results import Outcome, data_record, users_frame, write_results

HIT = {
    "Oracle": 0.7,
    "Popularity": 0.1,
    "SASRec": 0.4,
    "LLM-Only": 0.05,
    "A-LLMRec": 0.6,
    "A-LLMRec (SBERT)": 0.5,
    "A-LLMRec, items permuted": 0.1,
    "A-LLMRec, users swapped": 0.1,
}
"""Hit@1 of each made-up system, about."""


def make_dataset(path: Path, users: int = 120, items: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(1, items + 1), size=8, replace=False) for _ in range(users)]
    titles = [f"Silver Orbit {item} of the Galaxy" for item in range(1, items + 1)]
    titles[3::7] = [f'The "<b>Bold</b>" & the {number}th' for number in range(len(titles[3::7]))]
    titles[4] = "Naïve café ☕ [CandidateEmb]"
    return write_dataset(
        path,
        name="made-up",
        items=np.concatenate(sequences),
        offsets=np.arange(users + 1) * 8,
        titles=titles,
        descriptions=["about space"] * items,
        categories=[["Films", ("Comedy", "Western", "War")[item % 3]] for item in range(items)],
    )


def make_results(directory: Path, dataset: Dataset) -> dict[str, Any]:
    """Writes ``results.json`` and ``users.parquet``; returns the former."""
    rng = np.random.default_rng(1)
    drawn = load_candidates(dataset)
    titles = [[dataset.titles[item] for item in row] for row in drawn.candidates]
    outcomes = []
    for system, rate in HIT.items():
        scores = rng.normal(size=drawn.candidates.shape)
        hits = rng.random(len(drawn.users)) < rate
        scores[hits, drawn.target_column[hits]] = 9
        texts = [
            f'{row[best]}"' if rng.random() < 0.9 else "galaxy galaxy"
            for row, best in zip(titles, scores.argmax(axis=1), strict=True)
        ]
        outcomes.append(Outcome(system, scores, texts if "LLM" in system else None, titles))
    frame = users_frame(outcomes, drawn.users, drawn.target, drawn.candidates, dataset.slices, drawn.seed)
    run = {"scenario": "overall", "seed": 0, "candidates_sha": drawn.sha256}
    kinds = {"SASRec": "cf", "A-LLMRec": "stage2", "A-LLMRec (SBERT)": "stage2"}
    return write_results(
        directory,
        frame,
        runs=[{"system": system, "id": identity_of(kinds.get(system, "none")), **run} for system in HIT],
        data=data_record(dataset),
        pairs=[*((system, "SASRec") for system in HIT if system not in ("SASRec", "Oracle")), ("A-LLMRec", "LLM-Only")],
        baselines=["Popularity", "SASRec", "LLM-Only"],
        settings={"max_users": None, "llm": "opt-nano", "length_normalised": True},
        versions={"jax": "0.10.2", "flax": "0.12.8"},
        times={"steps": [{"name": "prepare", "seconds": 3.21, "peak_mib": 311.0}]},
    )


def identity_of(kind: str) -> str:
    """The identity of the made-up run of a kind."""
    return hashlib.sha256(kind.encode()).hexdigest()


def make_run(checkpoints: Path, kind: str = "stage2", steps: int = 600) -> Path:
    """A finished training run with curves, where runs lie; stage 2 is built on the others."""
    identity = identity_of(kind)
    directory = checkpoints / "made-up" / kind / identity[:12]
    directory.mkdir(parents=True)
    upstream = {role: identity_of(role) for role in ("cf", "stage1")} if kind == "stage2" else {}
    about = {
        "kind": kind,
        "identity": identity,
        "settings": {"learning_rate": 1e-4, "epochs": 5},
        "seed": 0,
        "upstream": upstream,
        "data": {"name": "made-up", "hash": identity_of("data")},
        "machine": {"processor": "Abacus 3000", "cores": 2, "platform": "Linux"},
        "versions": {"jax": "0.10.2"},
        "command": ["/somewhere/private/allmrec/cli.py", "train", kind, "--data", "/somewhere/private/data"],
    }
    (directory / "run.json").write_text(json.dumps(about))
    (directory / "DONE").write_text("{}")
    (directory / "cost.json").write_text('{"seconds": 12.0, "peak_mib": 400}')
    lines = [{"step": step, "loss": 3 * 0.99**step + 0.4} for step in range(10, steps + 1, 10)]
    lines[-1] |= {"valid/hit@1": 0.41, "valid/mrr": 0.5}
    lines[len(lines) // 2] |= {"valid/hit@1": 0.3, "valid/mrr": 0.4}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory
