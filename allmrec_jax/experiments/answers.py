"""The answers of a table's rows: asked for once, kept beside the runs, and put together as results."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from allmrec_jax.data.candidates import Candidates, load_candidates
from allmrec_jax.data.dataset import Dataset
from allmrec_jax.data.scenarios import Scenario
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.ask import write_freely
from allmrec_jax.evaluation.genres import Genres, baselines, genre_frame, write_genres
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import users_frame, write_results
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments.graph import Row, Training, Workplace
from allmrec_jax.fileio import atomic_path, read_json, recover, sha256, verify, write_json
from allmrec_jax.parquet import read_frame
from allmrec_jax.records import read_cost
from allmrec_jax.runs import versions
from allmrec_jax.settings import hashed_fields
from allmrec_jax.trained.kinds import KINDS
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.metrics import read_lines

if TYPE_CHECKING:
    import polars as pl

ANSWERS_VERSION = 1
"""Part of what kept answers are known by: raise it when a change makes the same runs answer otherwise."""


def check_texts(dataset: Dataset, rows: Sequence[Row]) -> None:
    """Refuses rows that need titles on data without any, or where all are the same ("No Title")."""
    if dataset.has_titles:
        return
    for row in rows:
        if row.llm or any(KINDS[node.kind].reads_texts for node in row.nodes()):
            raise UserError(
                f"{dataset.path}: no item has a title, and {row.name} needs them; leave it out of --systems"
            )


def training_record(work: Workplace, node: Training) -> dict[str, Any]:
    """What a finished run was trained with and what it took; ``seconds`` is null where nobody measured."""
    path, settings = work.path(node), node.settings
    steps = max((line["step"] for line in read_lines(path / "metrics.jsonl")), default=0)
    cost = read_cost(path)
    return {
        "kind": getattr(settings, "kind", node.kind),
        "identity": work.identity(node),
        "preset": node.preset,
        "changes": dict(node.changes),
        "seed": node.seed,
        "steps": steps,
        "unit": "epochs" if node.kind == "cf" else "steps",
        "batch_size": getattr(settings, "batch_size", None),
        "seconds": cost and cost["seconds"],
        "peak_mib": cost and cost.get("peak_mib"),
    }


@dataclasses.dataclass(frozen=True)
class EvaluationProtocol:
    """How the rows are asked.

    Attributes:
        scenario: who is asked about.
        candidate_seed: of the candidate file, one for all rows and seeds.
        max_users: users asked at most; ``None`` is all.
        llm_users: of these, the first so many for rows that read long prompts.
        settings: batch size, decoding, generation, the wording of text-only prompts.
        question: asked behind the history in place of a recommendation; its answers are favourite genres.
    """

    scenario: Scenario
    candidate_seed: int
    max_users: int | None
    llm_users: int | None
    settings: EvaluationSettings
    question: str | None = None

    def candidates(self, llm: bool) -> Candidates:
        """What systems without or with a language model are asked to choose from."""
        counts = [count for count in (self.max_users, self.llm_users if llm else None) if count is not None]
        return load_candidates(self.scenario.asked, "overall", "test", self.candidate_seed, min(counts, default=None))

    @property
    def record(self) -> dict[str, Any]:
        """For ``results.json``."""
        counts = {"candidate_seed": self.candidate_seed, "max_users": self.max_users, "llm_users": self.llm_users}
        question = {} if self.question is None else {"question": self.question}
        return {"scenario": dict(self.scenario.about), **counts, **question, **dataclasses.asdict(self.settings)}


class _Kept(TypedDict):
    seconds: float
    sha256: NotRequired[str]


def kept_answers(work: Workplace, row: Row, protocol: EvaluationProtocol) -> tuple[Path, dict[str, Any]]:
    """Where a row's answers are kept, and what they depend on."""
    dataset, scenario = work.dataset, protocol.scenario
    # A system without a training of its own answers by the language model or by the data alone.
    own = [work.identity(node) for node in row.trainings] or [work.model_hash("llm", None) if row.llm else dataset.hash]
    asked: dict[str, Any] = {
        "system": row.system,
        "runs": own,
        "seed": row.seed,
        "users": scenario.asked.hash,
        "version": ANSWERS_VERSION,
        "candidates": protocol.candidates(row.llm).sha256,
    }
    asked |= {} if scenario.history is None else {"history": scenario.history}
    asked |= {} if protocol.question is None else {"question": protocol.question}
    body = json.dumps({**asked, "settings": hashed_fields(protocol.settings)}, sort_keys=True)
    name = f"{hashlib.sha256(body.encode()).hexdigest()[:16]}.parquet"
    return work.checkpoints / dataset.name / "answers" / name, asked


def read_kept(kept: Path) -> "tuple[pl.DataFrame, float]":
    """Kept answers, and how many seconds they took.

    Raises:
        UserError: a file of the pair is missing or damaged.
    """
    remedy = f"delete {kept} to have the question asked again"
    record = read_json(kept.with_suffix(".json"), _Kept, remedy)
    if "sha256" in record:
        verify(kept.parent, {kept.name: record["sha256"]}, remedy)
    return read_frame(kept, remedy), record["seconds"]


def answers_of(
    work: Workplace,
    row: Row,
    protocol: EvaluationProtocol,
    advance: Callable[[str, int], contextlib.AbstractContextManager],
) -> "tuple[pl.DataFrame, dict[str, Any]]":
    """A row's answers and what is to be known about them; kept beside the runs, for other tables ask the same.

    Returns:
        the users' frame, and the entry of ``results.json``'s ``runs``.
    """
    import polars as pl

    scenario, candidates = protocol.scenario, protocol.candidates(row.llm)
    kept, asked = kept_answers(work, row, protocol)
    about: dict[str, Any] = {
        "system": row.name,
        "scenario": scenario.about["scenario"],
        "seed": row.seed,
        "id": asked["runs"][-1],
        "candidates_sha": candidates.sha256,
        "users": len(candidates.users),
        "trainings": [training_record(work, node) for node in row.nodes()],
    }
    for file in (kept, kept.with_suffix(".json")):
        recover(file)
    if kept.is_file():
        frame, about["seconds"] = read_kept(kept)
        return frame.with_columns(system=pl.lit(row.name)), about
    started = time.perf_counter()
    runs = [work.path(node) for node in row.trainings]
    if scenario.transferred:
        from allmrec_jax.evaluation.transfer import TransferredSources

        sources: Sources = TransferredSources(work.dataset, runs, protocol.settings, scenario.asked)
    else:
        sources = Sources(work.dataset, runs, protocol.settings)
    with advance(row.name, len(candidates.users)) as tell:
        questions = Questions(scenario.asked, candidates, scenario.known, scenario.history)
        system = SYSTEMS[row.system]
        if protocol.question is not None:
            if system.writes is None:
                raise UserError(f"{row.name} cannot answer in words; leave it out of --systems")
            genres = Genres.of(scenario.asked)
            texts = write_freely(system.writes(sources), questions, protocol.question, tell)
            favourites = genres.favourites(scenario.asked, candidates)
            frame = genre_frame(genres, row.name, row.seed, candidates.users, favourites, texts)
        else:
            outcome = system.answer(sources, questions, row.name, tell)
            slices = work.dataset.slices if scenario.known else {}
            frame = users_frame([outcome], candidates.users, candidates.target, candidates.candidates, slices, row.seed)
    about["seconds"] = round(time.perf_counter() - started, 2)
    with atomic_path(kept) as sibling:
        frame.write_parquet(sibling)
        record = {"seconds": about["seconds"], "sha256": sha256(sibling), **asked}
        write_json(kept.with_suffix(".json"), record, indent=None)
    return frame, about


def evaluate_rows(
    work: Workplace,
    rows: Sequence[Row],
    protocol: EvaluationProtocol,
    out: Path,
    *,
    data: Mapping[str, Any],
    reference: str = "SASRec",
    baselines: Sequence[str] = (),
    settings: Mapping[str, Any],
    advance: Callable[[str, int], contextlib.AbstractContextManager],
) -> dict[str, Any]:
    """Asks every row, and writes ``results.json`` and ``users.parquet`` into ``out``; returns the former.

    Args:
        data: name and hash of the data set that the scenario was made from.
        reference: the row that every other one is tested against.
        baselines: rows that are systems of others; every other row is also tested against the best of them.
        settings: of the experiment, for the record.
        advance: given a row's name and its number of users, a context that yields what to call after each batch.
    """
    import polars as pl

    frames, runs = [], []
    for row in rows:
        frame, about = answers_of(work, row, protocol, advance)
        frames.append(frame)
        runs.append(about)
    if protocol.question is not None:
        frames += asked_of_nobody(protocol)
    names = list(dict.fromkeys(name for frame in frames for name in frame["system"].unique(maintain_order=True)))
    pairs = [(name, reference) for name in names if name != reference and reference in names]
    for row in rows:
        pairs += [(row.name, other) for other in row.against if other in names and other != reference]
    about = {
        "runs": runs,
        "data": data,
        "pairs": list(dict.fromkeys(pairs)),
        "settings": {**settings, **protocol.record},
        "versions": versions(),
        "times": {"systems": {f"{run['system']}, seed {run['seed']}": run["seconds"] for run in runs}},
    }
    if protocol.question is not None:
        asked = max((protocol.candidates(row.llm) for row in rows), key=lambda each: len(each.users))
        return write_genres(out, pl.concat(frames), protocol.scenario.asked, asked, **about)
    return write_results(out, pl.concat(frames), baselines=baselines, **about)


def asked_of_nobody(protocol: EvaluationProtocol) -> "list[pl.DataFrame]":
    """The answers to the question about genres of rows that read no history."""
    asked, dataset = protocol.candidates(llm=True), protocol.scenario.asked
    genres = Genres.of(dataset)
    return baselines(genres, asked.users, genres.favourites(dataset, asked))
