"""The share of real tokens among those that stage 2 processes in an epoch, and in how many shapes they come.

Tokens of prompt and answer against rows times padded length, for batches in the order drawn and for sorted ones
(``--sort-batches``). Needs a tokenizer only, no weights. Writes JSON.

    python benchmarks/padding.py --data data/scientific --tokenizer facebook/opt-6.7b
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.pretrained.llm import load_tokenizer
from allmrec_jax.prompts import PromptTables, title_table
from allmrec_jax.runs import versions
from allmrec_jax.training.stage2_batches import Stage2Sampler
from allmrec_jax.training.stage2_settings import PRESETS, Stage2Settings


def epoch(dataset: Dataset, tables: PromptTables, settings: Stage2Settings) -> dict[str, Any]:
    """Builds every batch of an epoch, without user vectors."""
    sampler = Stage2Sampler(dataset, None, tables, dataclasses.replace(settings, user_vector=False), 0)
    steps = -(-len(sampler) // settings.batch_size)
    lengths = [sampler(index).prompts.lengths for index in range(steps)]
    return {
        "sort_batches": settings.sort_batches,
        "batch_size": settings.batch_size,
        "steps": steps,
        "mean_tokens": round(float(sum(map(sum, lengths))) / (steps * settings.batch_size), 1),
        "real_share": round(sampler.tokens_read / sampler.tokens_processed, 4),
        "compiled_shapes": len(sampler.shapes),
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option("--tokenizer", default="facebook/opt-6.7b", show_default=True, help="A directory, a hub name, opt-nano.")
@click.option("--batch-size", "sizes", multiple=True, type=int, default=(4, 32), show_default=True)
@click.option("--sort-batches", "sorts", multiple=True, type=int, default=(0, 64), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/padding.json")
def main(data: Path, tokenizer: str, sizes: tuple[int, ...], sorts: tuple[int, ...], out: Path | None) -> None:
    """Count real and padded tokens."""
    dataset, settings = load_dataset(data), PRESETS["paper"]
    loaded = load_tokenizer(tokenizer)
    tables = PromptTables(loaded, title_table(loaded, dataset.titles, settings.title_max_tokens), 2048)
    result = {
        "data": {"name": dataset.name, "hash": dataset.hash},
        "tokenizer": Path(tokenizer).name,
        "settings": "preset paper, without the user's vector",
        "epochs": [
            epoch(dataset, tables, dataclasses.replace(settings, batch_size=size, sort_batches=sort))
            for size in sizes
            for sort in sorts
        ],
        "versions": versions(),
    }
    path = out or Path(__file__).parent / "results" / "padding.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
