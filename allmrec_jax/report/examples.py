"""A few test users for the report: what the model was shown, what each system chose, what was true."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import read_users
from allmrec_jax.prompts import STYLES, PromptStyle, prompt_text
from allmrec_jax.rng import numpy_rng

VECTOR = "◆"
"""Stands for a soft token in a prompt shown to people."""


def draw_examples(directory: Path, results: Mapping[str, Any], data: Path, count: int = 5) -> list[dict[str, Any]]:
    """``count`` evaluated users, drawn by seed whatever came out, as the report's template takes them.

    Args:
        directory: holds ``users.parquet``.
        results: the ``results.json`` beside it.
        data: the data set that was evaluated.
        count: how many users.

    Raises:
        UserError: it is another data set than was evaluated, or ``users.parquet`` is damaged.
    """
    import polars as pl

    dataset = load_dataset(data)
    if dataset.hash != results["data"]["hash"]:
        raise UserError(
            f"{directory}/results.json: measured on data set {results['data']['name']} (hash "
            f"{results['data']['hash'][:12]}), but {data} has hash {dataset.hash[:12]}; name the one that was evaluated"
        )
    frame = read_users(directory)
    seed = int(frame["seed"][0])
    frame = frame.filter(pl.col("seed") == seed)
    users = frame["user"].unique().sort().to_numpy()
    drawn = numpy_rng(seed, "report/examples").choice(users, min(count, len(users)), replace=False)
    style, length = _style(results)
    return [
        _example(dataset, int(user), frame.filter(pl.col("user") == user).to_dicts(), style, length) for user in drawn
    ]


def _example(
    dataset: Dataset, user: int, rows: list[dict[str, Any]], style: PromptStyle, length: int
) -> dict[str, Any]:
    """``rows`` are the systems' answers to this user."""
    shown, target = rows[0]["candidates"], rows[0]["target"]
    history = [dataset.titles[item] for item in dataset.history(np.array([user]), "test", length)[0][0] if item]
    titles = [dataset.titles[item] for item in shown]
    return {
        "user": user,
        "slices": ", ".join(f"{name} item" for name in rows[0]["slices"] if name != "all"),
        "history": history,
        "candidates": titles,
        "target": shown.index(target),
        "answers": [_answer(row) for row in rows],
        "prompt": readable_prompt(style, history, titles),
    }


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["generated"] is None:
        verdict = ("right", "good") if row["rank"] == 1 else ("wrong", "bad")
    elif row["strict"]:
        verdict = ("right", "good")
    else:
        verdict = ("another candidate", "bad") if row["valid"] else ("not one candidate", "bad")
    return {
        "system": row["system"],
        "generated": row["generated"],
        "verdict": verdict[0],
        "kind": verdict[1],
        "rank": row["rank"],
    }


def readable_prompt(style: PromptStyle, history: list[str], candidates: list[str]) -> str:
    """The soft prompt as text, vectors shown as :data:`VECTOR`, up to where the answer starts."""
    pieces = prompt_text(style)
    comma = pieces.close + VECTOR + pieces.comma
    past, shown = (comma.join(titles) + pieces.close + VECTOR for titles in (history, candidates))
    return f"{VECTOR}</s>{pieces.head}{past}{pieces.middle}{shown}{pieces.tail}"


def _style(results: Mapping[str, Any]) -> tuple[PromptStyle, int]:
    settings = results.get("settings", {})
    return STYLES[settings.get("prompt_style", "neutral")], settings.get("history_length", 10)
