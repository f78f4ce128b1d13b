"""Measuring trained systems on the same users and candidates."""

import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allmrec_jax.api.data import load_data
from allmrec_jax.api.devices import devices
from allmrec_jax.api.runs import TrainedRun, find_run
from allmrec_jax.api.table import Table

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset

SCENARIO = "overall"

COLUMNS = ("hit@1", "ndcg@10", "mrr", "strict_hit@1", "valid_ratio")
"""The metrics that a results table shows."""

log = logging.getLogger(__name__)


class Results(Table[str]):
    """What an evaluation found: a row for each system.

    Attributes:
        results: all of it, as ``results.json`` holds it: every metric by system and slice with its interval, and every
            paired comparison.
        path: the directory of ``results.json`` and ``users.parquet``; ``None`` where they were not kept.
    """

    def __init__(self, results: Mapping[str, Any], path: Path | None):
        super().__init__(list(results["systems"]), f"{results['data']['name']}: mean and 95% interval")
        self.results, self.path = results, path

    def record(self, row: str) -> dict[str, Any]:
        """A system's metrics on all users, and Hit@1 on those whose target is warm or cold."""
        slices = self.results["systems"][row]
        cells: dict[str, Any] = {"system": row, "users": slices["all"]["n"]}
        for metric in COLUMNS:
            cells[metric] = slices["all"][metric][0] if metric in slices["all"] else None
            if metric == "hit@1":
                low, high = slices["all"][metric][1:]
                cells["interval"] = f"{low:.3f} to {high:.3f}"
                cells |= {f"hit@1 {part}": slices[part][metric][0] for part in ("warm", "cold") if part in slices}
        return cells

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rows = self.shown()
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def evaluate(
    data: "Dataset | str | os.PathLike[str]",
    systems: "Sequence[TrainedRun | str | os.PathLike[str]]",
    *,
    users: int | None = None,
    runs: "Sequence[TrainedRun | str | os.PathLike[str]]" = (),
    every: bool = False,
    out: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    seed: int = 0,
    preset: str = "small",
    generate: bool = True,
    batch_size: int | None = None,
    llm: str | None = None,
    llm_weights: Literal["dtype", "int8"] | None = None,
    chat: bool = False,
    oracle: str | os.PathLike[str] | None = None,
    mesh: str | None = None,
    distributed: str | None = None,
    **decoding: Any,
) -> Results:
    """Asks systems about the same users and candidates, and measures their answers.

    Each test user's next item is to be found among 20 candidates with different titles. Nothing is trained.

    Args:
        data: the data set, or its directory.
        systems: runs, as the training functions return them, by directory or by name; directories of one's own CF
            arrays; and systems by the name that tables show, e.g. ``"LLM-Only"``.
        users: ask so many users, a seeded sample; all by default.
        runs: runs that systems called by name are made of, and that are not asked about by themselves. What a stage-2
            run was built on is found beside it.
        every: ask every system that the runs allow, the controls among them.
        out: a directory for ``results.json`` and ``users.parquet``, for :func:`write_report`.
        checkpoints: the folder of runs in which names are looked up.
        seed: of the candidates and the controls.
        preset: of generation: ``"small"``, ``"paper"`` or ``"official"``.
        generate: let language models also write titles; ranking alone is faster.
        batch_size: prompts read at once.
        llm: the language model: where stage 2's lies now, or LLM-Only's where there is no stage 2.
        llm_weights: the language model's kernels as trained with, or rounded to ``"int8"``.
        chat: put LLM-Only's prompts in the tokenizer's chat template; those of trained systems stay as trained.
        oracle: the ``oracle.npz`` of generated data, for the system Oracle.
        mesh: devices to use.
        distributed: join processes on several hosts.
        decoding: single settings of generation, e.g. ``max_new_tokens=16``.

    Raises:
        UserError: an unknown system, a run of other data, or something that a system needs is not there.

    Example:
        >>> results = ar.evaluate(data, [cf, system, "LLM-Only"], users=500)
        >>> results.results["systems"]["A-LLMRec"]["cold"]["hit@1"]
    """
    from allmrec_jax.data.candidates import load_candidates
    from allmrec_jax.evaluation.progress import progress
    from allmrec_jax.evaluation.questions import Questions
    from allmrec_jax.evaluation.results import RESULTS, data_record, users_frame, write_results
    from allmrec_jax.evaluation.systems import (
        SYSTEMS,
        choose_systems,
        compared_pairs,
        is_baseline,
        prompt_settings,
        system_identity,
        system_label,
    )
    from allmrec_jax.inference.decode import PRESETS
    from allmrec_jax.runs import versions
    from allmrec_jax.settings import resolve
    from allmrec_jax.trained.sources import EvaluationSettings, Sources, prompts_at_once

    dataset = load_data(data)
    known = {name.casefold(): name for name in SYSTEMS}
    named = [known[each.casefold()] for each in systems if isinstance(each, str) and each.casefold() in known]
    own = [each for each in systems if not (isinstance(each, str) and each.casefold() in known)]
    places = [find_run(each, checkpoints, data=dataset) for each in (*own, *runs)]
    decode = resolve(PRESETS, preset, decoding)
    if oracle is not None:
        oracle = Path(oracle)
    with devices(mesh, distributed, lambda: llm or _language_model(places)):
        settings = EvaluationSettings(
            seed, llm, batch_size or prompts_at_once(), decode, generate, llm_weights=llm_weights, chat=chat
        )
        sources = Sources(dataset, places, settings, oracle)
        names = choose_systems(sources, () if every else [*named, *_systems_of(places[: len(own)])])
        questions = Questions(dataset, load_candidates(dataset, SCENARIO, "test", seed, users))
        asked = questions.candidates
        if out is not None:  # what was named wrongly has been said, and nothing has been asked
            RESULTS.claim(Path(out))
        outcomes, seconds = [], {}
        labels = {name: system_label(sources, name) for name in names}
        for name, label in labels.items():
            started = time.perf_counter()
            with progress(label, len(asked.users)) as advance:
                outcomes.append(SYSTEMS[name].answer(sources, questions, label, advance))
            seconds[label] = round(time.perf_counter() - started, 2)
            log.info("%s: %s users in %.1f s", label, f"{len(asked.users):,}", seconds[label])
        pairs = [(labels[name], labels[other]) for name, other in compared_pairs(names)]
        pairs += [(label, "SASRec") for name, label in labels.items() if name != "SASRec" and "SASRec" in names]
        frame = users_frame(outcomes, asked.users, asked.target, asked.candidates, dataset.slices, seed)
        measured = [
            {
                "system": label,
                "scenario": SCENARIO,
                "seed": seed,
                "id": system_identity(sources, SYSTEMS[name]),
                "candidates_sha": asked.sha256,
            }
            for name, label in labels.items()
        ]
        said = {"max_users": users, **dataclasses.asdict(settings), **prompt_settings(sources, names)}
        with tempfile.TemporaryDirectory() as passing:
            results = write_results(
                Path(passing if out is None else out),
                frame,
                runs=measured,
                data=data_record(dataset),
                pairs=list(dict.fromkeys(pairs)),
                baselines=[label for label in labels.values() if is_baseline(label)],
                settings=said,
                versions=versions(),
                times={"systems": seconds},
            )
    return Results(results, None if out is None else Path(out))


def _systems_of(places: Sequence[Path]) -> list[str]:
    """The system that each run stands for: the first that the registry makes of a run of its kind."""
    from allmrec_jax.errors import UserError
    from allmrec_jax.evaluation.systems import SYSTEMS
    from allmrec_jax.runs import load_run
    from allmrec_jax.trained.sources import run_kind

    found = []
    for path in places:
        kind = run_kind(load_run(path)) if (path / "run.json").is_file() else "arrays"
        name = next((name for name, system in SYSTEMS.items() if system.needs == kind), None)
        if name is None:
            raise UserError(f"{path}: no system is made of a {kind} run alone; name a stage-2 run, or a CF run")
        found.append(name)
    return found


def _language_model(places: Sequence[Path]) -> str | None:
    """The language model that the first of these runs with one was trained with."""
    from allmrec_jax.api.runs import read_run

    for path in places:
        if (path / "export" / "stage2.json").is_file():
            from allmrec_jax.api.recommending import ALLMRec

            return ALLMRec(path, read_run(path).about).llm
    return None
