"""``allmrec eval overall``: every system on all test users and one candidate file (the paper's Table 1).

Warm and cold items (its Table 4) are slices of the same answers. Programs of this kind measure and never train.

Expected on 2 cores with the embedded models: about 2 minutes for 1,000 users and five language-model systems.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from allmrec_jax.commands.mesh import llm_of_runs, mesh_options
from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import RESULTS, data_record, table, users_frame, write_results
from allmrec_jax.evaluation.systems import (
    SYSTEMS,
    choose_systems,
    compared_pairs,
    prompt_settings,
    system_identity,
    system_label,
)
from allmrec_jax.experiments.rows import is_baseline
from allmrec_jax.inference.decode import PRESETS
from allmrec_jax.runs import versions
from allmrec_jax.settings import resolve, settings_options
from allmrec_jax.trained.sources import EvaluationSettings, Sources, prompts_at_once

SCENARIO = "overall"


@click.command(
    name=SCENARIO,
    short_help="all test users on one candidate file (Table 1)",
    epilog="Example: allmrec eval overall --data data/Movies --runs checkpoints/Movies/stage2/0a1b2c3d4e5f --out runs",
)
@mesh_options(lambda given: given["llm"] or llm_of_runs(given["runs"]))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A finished run, or a directory of your own CF arrays; may be repeated. What a stage-2 run was built on is "
    "found beside it.",
)
@click.option(
    "--systems",
    multiple=True,
    help=f"A system to ask; may be repeated. {'; '.join(SYSTEMS)}.  [all that the runs allow]",
)
@click.option("--oracle", type=click.Path(path_type=Path), help="oracle.npz of synthetic data, for the Oracle row.")
@click.option("--llm", help="The language model: where stage 2's lies now, or LLM-Only's where there is no stage 2.")
@click.option(
    "--llm-weights",
    type=click.Choice(["dtype", "int8"]),
    help="The language model's kernels in the type it was trained with, or rounded to int8.  [as in training]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the candidate file and the controls.")
@click.option("--max-users", type=click.IntRange(min=1), help="Ask so many users, a seeded sample.  [all]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Prompts read at once.  [4 on a CPU, 16 elsewhere]")
@click.option("--generate/--no-generate", default=True, help="Let language models also write titles.  [yes]")
@settings_options(PRESETS)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where results.json and users.parquet go.")
def command(
    data: Path,
    runs: tuple[Path, ...],
    systems: tuple[str, ...],
    oracle: Path | None,
    llm: str | None,
    llm_weights: Any,
    seed: int,
    max_users: int | None,
    batch_size: int | None,
    generate: bool,
    preset: str,
    overrides: dict[str, Any],
    out: Path,
) -> None:
    """Rank and generate with every system on the same users and candidates, and write the results.

    The preset and the three options beside it say how titles are generated.
    """
    RESULTS.claim(out)
    decode = resolve(PRESETS, preset, overrides)
    settings = EvaluationSettings(seed, llm, batch_size or prompts_at_once(), decode, generate, llm_weights=llm_weights)
    dataset = load_dataset(data)
    sources = Sources(dataset, runs, settings, oracle)
    names = choose_systems(sources, systems)
    questions = Questions(dataset, load_candidates(dataset, SCENARIO, "test", seed, max_users))

    outcomes, seconds = [], {}
    labels = {name: system_label(sources, name) for name in names}
    for name, label in labels.items():
        started = time.perf_counter()
        with progress(label, len(questions.candidates.users)) as advance:
            outcomes.append(SYSTEMS[name].answer(sources, questions, label, advance))
        seconds[label] = round(time.perf_counter() - started, 2)
        print(f"{label}: {len(questions.candidates.users):,} users in {seconds[label]:.1f} s", file=sys.stderr)

    asked = questions.candidates
    pairs = [(labels[name], labels[other]) for name, other in compared_pairs(names)]
    pairs += [(label, "SASRec") for name, label in labels.items() if name != "SASRec" and "SASRec" in names]
    frame = users_frame(outcomes, asked.users, asked.target, asked.candidates, dataset.slices, seed)
    results = write_results(
        out,
        frame,
        runs=[
            {
                "system": label,
                "scenario": SCENARIO,
                "seed": seed,
                "id": system_identity(sources, SYSTEMS[name]),
                "candidates_sha": asked.sha256,
            }
            for name, label in labels.items()
        ],
        data=data_record(dataset),
        pairs=list(dict.fromkeys(pairs)),
        baselines=[label for label in labels.values() if is_baseline(label)],
        settings={"max_users": max_users, **dataclasses.asdict(settings), **prompt_settings(sources, names)},
        versions=versions(),
        times={"systems": seconds},
    )
    print(table(results["systems"]))
    print(out)


@contextmanager
def progress(name: str, users: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; yields what to call with the number of users just answered."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=users)
        yield lambda count: bar.advance(task, count)


if __name__ == "__main__":
    command()
