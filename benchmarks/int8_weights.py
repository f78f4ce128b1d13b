"""What rounding the frozen language model's kernels to int8 does: to scores and ranking, to a training, to logits.

A trained stage-2 run is asked twice for the same test users, with the kernels as in training and in int8; with
``--train`` the same run is trained again with int8 from the start and asked too. Beside it, the error of a random
model's logits at another shape, with bfloat16's own for comparison. Writes JSON.

    make demo
    python benchmarks/int8_weights.py --data runs/demo/data-0 --run checkpoints/Nano_Movies/stage2/RUN --train
"""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from full_size_world import random_params

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.metrics import ranking_metrics, target_ranks
from allmrec_jax.models.llm.int8 import quantize_params
from allmrec_jax.models.llm.opt import OPT, PUBLISHED
from allmrec_jax.runs import load_run, versions
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training.metrics import read_lines
from allmrec_jax.training.stage2 import train_stage2

LENGTH, ROWS = 256, 2
"""Of the random prompts."""


def ask(dataset: Dataset, run: Path, weights: str | None, users: int) -> dict[str, np.ndarray]:
    """Scores [U, K] of A-LLMRec and of LLM-Only, and the targets' columns [U]."""
    sources = Sources(dataset, [run], EvaluationSettings(generate=False, llm_weights=weights))  # type: ignore[arg-type]
    questions = Questions(dataset, load_candidates(dataset, "overall", "test", 0, users))
    found = {
        name: SYSTEMS[name].answer(sources, questions, name, lambda count: None).scores
        for name in ("A-LLMRec", "LLM-Only")
    }
    return {**found, "target": questions.candidates.target_column}


def measures(scores: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Ranking, and the mean negative log-likelihood of the targets' titles."""
    metrics = ranking_metrics(target_ranks(scores, target))
    named = {name: round(float(metrics[name].mean()), 4) for name in ("hit@1", "ndcg@10")}
    return {**named, "loss": round(float(-np.take_along_axis(scores, target[:, None], 1).mean()), 4)}


def compare(plain: np.ndarray, rounded: np.ndarray) -> dict[str, float]:
    """How far scores are apart, and for how many users the first choice is the same."""
    moved = np.abs(rounded - plain)
    return {
        "same_first_choice": round(float((plain.argmax(1) == rounded.argmax(1)).mean()), 4),
        "mean_score_change": round(float(moved.mean()), 4),
        "largest_score_change": round(float(moved.max()), 4),
    }


def logits_error(llm: str) -> dict[str, Any]:
    """Relative root-mean-square error of a random model's logits against float32."""
    config = PUBLISHED[llm]
    params = random_params(config, jnp.dtype(jnp.float32))
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (ROWS, LENGTH))
    positions = np.broadcast_to(np.arange(LENGTH), ids.shape)

    def logits(dtype: Any, params: Any) -> np.ndarray:
        model = OPT(config, jnp.dtype(dtype))

        @jax.jit
        def run(params: Any) -> jax.Array:
            variables = {"params": params}
            hidden, _ = model.apply(variables, model.apply(variables, ids, method="embed"), positions)
            return model.apply(variables, hidden, method="logits")

        return np.asarray(run(params))

    exact = logits(jnp.float32, params)
    tried = {
        "int8": (jnp.float32, quantize_params(params)),
        "bfloat16": (jnp.bfloat16, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)),
    }
    found: dict[str, Any] = {"llm": llm, "prompts": ROWS, "tokens": LENGTH}
    for name, given in tried.items():
        error = logits(*given) - exact
        found[name] = round(float(np.sqrt(np.square(error).mean() / np.square(exact).mean())), 5)
    return found


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The data set of the run.")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="A finished `train stage2` run.")
@click.option("--checkpoints", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--train", is_flag=True, help="Train the run again with int8 kernels.")
@click.option("--users", default=1000, show_default=True, help="Test users to ask.")
@click.option("--random-llm", type=click.Choice(list(PUBLISHED)), default="facebook/opt-125m", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/int8_weights.json")
def main(data: Path, run: Path, checkpoints: Path, train: bool, users: int, random_llm: str, out: Path | None) -> None:
    """Measure what int8 kernels change."""
    dataset, export = load_dataset(data), load_stage2(run)
    card = json.loads((run / "export" / "stage2.json").read_text(encoding="utf-8"))
    runs = {"as trained": run}
    asked = {"as trained": ask(dataset, run, None, users), "int8 when asked": ask(dataset, run, "int8", users)}
    if train:
        runs["int8 in training too"] = again = train_stage2(
            dataset,
            Path(card["cf"]),
            Path(card["stage1"]),
            card["llm"],
            dataclasses.replace(export.settings, llm_weights="int8"),
            load_run(run)["seed"],
            checkpoints,
            resume=True,
        )
        asked["int8 in training too"] = ask(dataset, again, None, users)
    plain = asked["as trained"]
    result = {
        "data": {"name": dataset.name, "hash": dataset.hash},
        "llm": card["llm"],
        "dtype": export.settings.dtype,
        "users": users,
        "systems": {
            name: {
                system: {**measures(found[system], found["target"]), **compare(plain[system], found[system])}
                for system in ("A-LLMRec", "LLM-Only")
            }
            for name, found in asked.items()
        },
        "steps": load_run(run)["settings"]["steps"],
        "last_training_loss": {
            name: round(read_lines(path / "metrics.jsonl")[-1]["loss"], 4) for name, path in runs.items()
        },
        "logits_relative_error": logits_error(random_llm),
        "platform": platform.platform(),
        "versions": versions(),
    }
    path = out or Path(__file__).parent / "results" / "int8_weights.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
