"""What the models themselves say of an evaluation: the map of items, and what soft tokens add."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.report import facts
from allmrec_jax.report.readers import read_answers, read_run
from allmrec_jax.report.users import sample_users


def model_sections(
    loaded: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, Dataset],
    known: Mapping[str, Path],
    directories: Sequence[Path],
    attributed: int,
) -> dict[str, Any]:
    """The map of items and the attribution, of the first A-LLMRec row whose runs and data set are at hand."""
    ready = [
        (directory, results, identity, datasets[results["data"]["hash"]])
        for directory, results in zip(directories, loaded, strict=True)
        if (identity := facts.run_of(results, "A-LLMRec") or "") in known
        and results["data"]["hash"] in datasets
        and results["runs"][0]["scenario"] == "overall"
        and facts.main_metric(results) == "hit@1"
    ]
    if not ready:
        return {}
    directory, results, identity, dataset = ready[0]
    upstream = read_run(known[identity])["upstream"]
    cf, stage1 = known.get(upstream.get("cf", "")), known.get(upstream.get("stage1", ""))
    drawn: dict[str, Any] = {}
    if cf and stage1:
        from allmrec_jax.report.latents import item_map

        drawn["map"] = _or_why(lambda: item_map(dataset, stage1, cf))
    if attributed and (directory / "users.parquet").is_file():
        drawn["attribution"] = _or_why(lambda: _attribution(directory, results, dataset, known[identity], attributed))
    return drawn


def _or_why(make: Any) -> dict[str, Any]:
    """What ``make`` gives, or why it gives nothing."""
    try:
        return {"made": make(), "why_not": ""}
    except UserError as error:
        return {"made": None, "why_not": str(error)}


def _attribution(
    directory: Path, results: Mapping[str, Any], dataset: Dataset, stage2: Path, count: int
) -> list[dict[str, Any]]:
    import polars as pl

    from allmrec_jax.report.attribution import attribute_users

    frame = read_answers(directory).filter(pl.col("system") == "A-LLMRec")
    frame = frame.filter(pl.col("seed") == pl.col("seed").min())
    drawn = [frame.filter(pl.col("user") == user).to_dicts()[0] for user in sample_users(frame, count)]
    rows = [(row["user"], row["target"], row["candidates"]) for row in drawn]
    found = []
    for row, tokens in zip(
        drawn, attribute_users(dataset, stage2, rows, llm=results["settings"].get("llm")), strict=True
    ):
        most = max(abs(token.value) for token in tokens) or 1.0
        found.append(
            {
                "user": row["user"],
                "rank": row["rank"],
                "target": dataset.titles[row["target"]],
                "tokens": [
                    {
                        "kind": token.kind,
                        "title": dataset.titles[token.item] if token.item else "the user’s vector",
                        "true": token.kind == "candidate" and token.item == row["target"],
                        "value": token.value,
                        "width": round(50 * abs(token.value) / most, 1),
                    }
                    for token in tokens
                ],
            }
        )
    return found
