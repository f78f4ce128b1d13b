"""Single users for the report: what the model was shown, how likely each system found each title, what was true."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.intervals import bootstrap
from allmrec_jax.prompts import STYLES, PromptStyle, prompt_text
from allmrec_jax.report.facts import about_scenario
from allmrec_jax.report.figures import Series, Tone
from allmrec_jax.rng import numpy_rng

if TYPE_CHECKING:
    import polars as pl

VECTOR = "◆"
"""Stands for a soft token in a prompt shown to people."""

SHOWN = 10
"""Items of a history that are shown at most, the latest."""

VERDICTS = ("another item first", "right", "another candidate", "not one candidate")
"""What an answer came to: a ranking's first place, or what a text names. Only the second is a hit."""

DECILES = 10


def asked_dataset(results: Mapping[str, Any], dataset: Dataset) -> Dataset:
    """``dataset``, or where cold users were asked about, theirs, which lies beside it."""
    about = about_scenario(results)
    if about["scenario"] != "cold users":
        return dataset
    from allmrec_jax.data.scenarios import cold_users

    return cold_users(dataset, simulate=about.get("simulated", False))[0].asked


def sample_users(frame: "pl.DataFrame", count: int) -> list[int]:
    """``count`` users drawn by seed, whatever came out, from those whom every system was asked about."""
    import polars as pl

    seed = frame["seed"].to_list()[0]
    systems = frame["system"].n_unique()
    asked = frame.group_by("user").agg(pl.col("system").n_unique()).filter(pl.col("system") == systems)
    users = asked["user"].sort().to_numpy()
    return [
        int(user) for user in numpy_rng(seed, "report/examples").choice(users, min(count, len(users)), replace=False)
    ]


def describe_users(
    frame: "pl.DataFrame", dataset: Dataset, users: Sequence[int], results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """These users with their histories, candidates and every system's answer at its first seed.

    Raises:
        UserError: the data set has no such users, or other targets.
    """
    import polars as pl

    first = frame.filter(pl.col("seed") == pl.col("seed").min().over("system"))
    rows = first.filter(pl.col("user").is_in(list(users))).partition_by("user", as_dict=True)
    return [_user(dataset, user, rows[(user,)].to_dicts(), results) for user in users]


def _user(dataset: Dataset, user: int, rows: list[dict[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    shown, target = rows[0]["candidates"], rows[0]["target"]
    sequence = dataset.sequence(user) if user < dataset.num_users else np.zeros(1, np.int32)
    if sequence[-1] != target:
        raise UserError(
            f"{dataset.path}: user {user}'s last item is not the target of the results; they are of other data"
        )
    known = about_scenario(results).get("history", len(sequence))
    sequence = sequence[max(0, len(sequence) - 1 - known) :]
    history = [dataset.titles[item] for item in sequence[:-1][-SHOWN:]]
    titles = [dataset.titles[item] for item in shown]
    return {
        "user": user,
        "slices": [name for name in rows[0]["slices"] if name != "all"],
        "history": history,
        "met": len(sequence) - 1,
        "candidates": titles,
        "target": shown.index(target),
        "answers": [_answer(row) for row in rows],
        "prompt": readable_prompt(wording(results), history, titles),
    }


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    verdict = int(row["rank"] == 1)
    if row["generated"] is not None:
        verdict = 1 if row["strict"] else 2 if row["valid"] else 3
    return {
        "system": row["system"],
        "generated": row["generated"],
        "verdict": VERDICTS[verdict],
        "right": verdict == 1,
        "rank": row["rank"],
        "scores": row["scores"],
    }


def browser_data(described: Sequence[Mapping[str, Any]]) -> str:
    """The users as compact JSON that may stand in a page: titles once, scores with four digits."""
    titles: dict[str, int] = {}
    systems = [answer["system"] for answer in described[0]["answers"]]

    def number(title: str) -> int:
        return titles.setdefault(title, len(titles))

    users = []
    for each in described:
        answers = [
            [a["rank"], VERDICTS.index(a["verdict"]), a["generated"], [float(f"{score:.4g}") for score in a["scores"]]]
            for a in each["answers"]
        ]
        users.append(
            {
                "u": each["user"],
                "s": each["slices"],
                "m": each["met"],
                "h": [number(title) for title in each["history"]],
                "c": [number(title) for title in each["candidates"]],
                "t": each["target"],
                "a": answers,
            }
        )
    body = {"systems": systems, "verdicts": VERDICTS, "titles": list(titles), "users": users}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def readable_prompt(style: PromptStyle, history: list[str], candidates: list[str]) -> str:
    """The soft prompt as text, vectors shown as :data:`VECTOR`, up to where the answer starts."""
    pieces = prompt_text(style)
    comma = pieces.close + VECTOR + pieces.comma
    past, shown = (comma.join(titles) + pieces.close + VECTOR for titles in (history, candidates))
    return f"{VECTOR}</s>{pieces.head}{past}{pieces.middle}{shown}{pieces.tail}"


def wording(results: Mapping[str, Any]) -> PromptStyle:
    """The words of the prompts, as far as the results say it."""
    settings = results.get("settings", {})
    words = settings.get("wording") or {}
    style = settings.get("prompt_style") or words.get("style") or "neutral"
    return STYLES[style]


def popularity(frame: "pl.DataFrame", dataset: Dataset, systems: Sequence[tuple[str, Tone]]) -> list[Series]:
    """Hit@1 by the popularity decile of the target, 1 the items with the fewest training interactions.

    Args:
        frame: every user's answers.
        dataset: whose training interactions count; ties go by index, as in its slices.
        systems: names and tones of the lines.
    """
    import polars as pl

    order = np.argsort(dataset.train_count[1:], kind="stable")
    decile = np.zeros(dataset.num_items + 1, np.int64)
    decile[1 + order] = 1 + np.arange(dataset.num_items) * DECILES // dataset.num_items
    drawn = []
    for name, tone in systems:
        part = frame.filter(pl.col("system") == name).with_columns(hit=(pl.col("rank") == 1).cast(pl.Float64))
        part = part.group_by("user", maintain_order=True).agg(pl.col("hit").mean(), pl.col("target").first())
        placed, hit = decile[part["target"].to_numpy()], part["hit"].to_numpy()
        points = [
            (float(place), *bootstrap(hit[placed == place, None])[0].tolist())
            for place in range(1, DECILES + 1)
            if np.any(placed == place)
        ]
        drawn.append(Series(name, points, tone))
    return drawn
