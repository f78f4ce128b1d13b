"""Results, users and training runs of the contract's shape, small and made up, for the report's tests."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import Dataset, write_dataset

HIT = {
    "Oracle": (0.72, 0.66),
    "Popularity": (0.18, 0.01),
    "SASRec": (0.61, 0.12),
    "LLM-Only": (0.05, 0.06),
    "A-LLMRec": (0.58, 0.31),
    "A-LLMRec (SBERT)": (0.49, 0.37),
    "A-LLMRec, items permuted": (0.08, 0.07),
    "A-LLMRec, users swapped": (0.11, 0.10),
}
"""Hit@1 of each made-up system on warm and cold items."""
GENERATES = [system for system in HIT if "LLM" in system]


def make_dataset(path: Path, users: int = 40, items: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(1, items + 1), size=8, replace=False) for _ in range(users)]
    titles = [f"Silver Orbit {item} of the Galaxy" for item in range(1, items + 1)]
    titles[3], titles[4] = 'The "<b>Bold</b>" & the Beautiful', "Naïve café ☕ [CandidateEmb]"
    return write_dataset(
        path,
        name="made-up",
        items=np.concatenate(sequences),
        offsets=np.arange(users + 1) * 8,
        titles=titles,
        descriptions=["about space"] * items,
    )


def make_results(directory: Path, dataset: Dataset) -> dict:
    """Writes ``results.json`` and ``users.parquet``; returns the former."""
    rng = np.random.default_rng(1)
    candidates = load_candidates(dataset)
    rows: list[dict] = []
    for system, (warm, cold) in HIT.items():
        for number, user in enumerate(candidates.users):
            hit = rng.random() < (warm, cold)[number % 2]
            valid = bool(hit or rng.random() < 0.9)
            shown = candidates.candidates[number]
            column = int(np.flatnonzero(shown == candidates.target[number])[0])
            title = dataset.titles[shown[column if hit else (column + 1) % 20]]
            rows.append(
                {
                    "user": int(user),
                    "system": system,
                    "seed": 0,
                    "slices": ["all", ("warm", "cold")[number % 2]],
                    "scores": rng.normal(size=20).tolist(),
                    "rank": 1 if hit else int(rng.integers(2, 21)),
                    "generated": (title + '"' if valid else "galaxy galaxy") if system in GENERATES else None,
                    "valid": valid if system in GENERATES else None,
                    "strict": hit if system in GENERATES else None,
                    "official": hit if system in GENERATES else None,
                }
            )
    systems: dict[str, dict] = {}
    for system, (warm, cold) in HIT.items():
        systems[system] = {}
        for name, value, count in (("all", (warm + cold) / 2, 1204), ("warm", warm, 880), ("cold", cold, 324)):
            metrics = ["hit@1", "hit@5", "ndcg@10", "mrr"]
            metrics += ["strict_hit@1", "official_hit@1", "valid_ratio"] if system in GENERATES else []
            shifted = {key: min(0.97, value * (1 + 0.12 * number)) for number, key in enumerate(metrics)}
            systems[system][name] = {"n": count} | {
                key: [middle, max(0, middle - 0.02), middle + 0.02] for key, middle in shifted.items()
            }
    results = {
        "schema": 1,
        "data": {"name": dataset.name, "hash": dataset.hash},
        "runs": [
            {"system": system, "scenario": "overall", "seed": 0, "id": "abc", "candidates_sha": candidates.sha256}
            for system in HIT
        ],
        "systems": systems,
        "paired": {
            "A-LLMRec - SASRec": {"all": [0.08, 0.05, 0.11], "warm": [-0.03, -0.06, 0.0], "cold": [0.19, 0.14, 0.24]},
            "A-LLMRec (SBERT) - SASRec": {"all": [0.065, 0.03, 0.1], "cold": [0.25, 0.2, 0.3]},
            "A-LLMRec, items permuted - A-LLMRec": {"all": [-0.37, -0.4, -0.34]},
        },
        "settings": {"max_users": None, "llm": "opt-nano", "length_normalised": True, "history_length": 10},
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "times": {"steps": [{"name": "prepare", "seconds": 3.21, "peak_mib": 311.0}]},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(directory / "users.parquet")
    return results


def make_run(directory: Path, kind: str = "stage2", steps: int = 600) -> Path:
    """A finished training run with curves."""
    directory.mkdir(parents=True)
    about = {"kind": kind, "identity": "f" * 64, "settings": {"learning_rate": 1e-4, "epochs": 5}, "seed": 0}
    (directory / "run.json").write_text(json.dumps(about))
    (directory / "DONE").write_text("{}")
    lines = [{"step": step, "loss": 3 * 0.99**step + 0.4} for step in range(10, steps + 1, 10)]
    lines[-1]["valid_hit@1"] = 0.41
    lines[len(lines) // 2]["valid_hit@1"] = 0.3
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory
