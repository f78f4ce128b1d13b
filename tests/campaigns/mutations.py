"""Damages every kind of file that is read, and looks at what becomes of it.

    python tests/campaigns/mutations.py --inputs 20000 --out benchmarks/results/campaign_mutations.json

Each input is one file changed in one way (``damage.py``): its bytes, its text, or, taken apart and put together again,
what its format says. It is refused in one line, or read as what it was (the change does not matter), or, of files that
carry no hash, read as something else that is sound; or it counts: an error with a traceback, numbers of a file with
hashes taken as good, more than a minute. Each input draws from a generator of its own, so that ``--first N --inputs 1``
repeats it. Files are restored after each, and compared at the end. With ``--out`` the counts are written as they come,
and the same command tries the faults again and goes on from there.

A module of the product that reads files is named in ``readers.py`` with the kinds that damage them; a test compares
that list with the modules, so that a new reader fails it until its files have a kind here.
"""

import argparse
import dataclasses
import faulthandler
import json
import logging
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import others
import own
import polars as pl
from damage import damaged
from kinds import Kind, contents, files, hash_of

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import load_dataset, replace_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import Outcome, read_users, users_frame, write_results
from allmrec_jax.fileio import digests, save_arrays, write_json
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRec, SASRecConfig
from allmrec_jax.report.readers import read_results, read_run
from allmrec_jax.runs import Run, load_run, machine, versions
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training.metrics import read_lines
from allmrec_jax.training.stage1_export import load_stage1
from allmrec_jax.training.stage1_settings import Stage1Settings
from allmrec_jax.training.stage2_settings import Stage2Settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # what other tests make their models with

LIMIT = 60
"""Seconds after which an input counts as hanging."""


def make(root: Path) -> dict[str, Kind]:
    """A tiny instance of each kind below ``root``."""
    rng = np.random.default_rng(0)
    data = replace_dataset(
        root / "data",
        name="tiny",
        items=rng.integers(1, 41, 8 * 6).astype(np.int32),
        offsets=np.arange(9) * 6,
        timestamps=np.arange(8 * 6),
        titles=[f"Title {item}" for item in range(1, 41)],
        descriptions=[f"About {item}" for item in range(1, 41)],
        categories=[["a", "b"] for _ in range(40)],
        manifest={"preset": "paper"},
    )
    candidates = load_candidates(data)

    def read_data() -> str:
        return contents(load_dataset(data.path))

    def read_candidates() -> str:
        read = load_candidates(data)
        return hash_of(read.users, read.target, read.candidates)

    settings = dataclasses.replace(CF_PRESETS["sasrec"]["paper"], dim=8, max_length=10)
    cf = Run.open(root / "checkpoints", data.name, "cf", settings, 0, data.hash, {})
    config = SASRecConfig(data.num_items, dim=8, max_length=10)
    save_arrays(cf.export_path("params.safetensors"), jax.device_get(SASRec(config).init_params(jax.random.key(0))))
    write_json(cf.export_path("cf.json"), {"model": "sasrec", "config": dataclasses.asdict(config)})
    cf.finish({"step": 1})

    stage1 = Run.open(root / "checkpoints", data.name, "stage1", Stage1Settings(), 0, data.hash, {"cf": cf.identity})
    latents = rng.normal(size=(41, 8)).astype(np.float32)
    np.save(stage1.export_path("items_joint.npy"), latents)
    np.save(stage1.export_path("items_text.npy"), latents + 1)
    np.save(stage1.export_path("trained.npy"), data.train_count > 0)
    save_arrays(stage1.export_path("params.safetensors"), {"item": {"kernel": latents}})
    stage1.finish({})

    stage2 = Run.open(root / "checkpoints", data.name, "stage2", Stage2Settings(), 0, data.hash, {"cf": cf.identity})
    save_arrays(stage2.export_path("params.safetensors"), {"item_in": {"kernel": latents}})
    write_json(stage2.export_path("stage2.json"), {"llm": "opt-nano"})
    stage2.finish({})

    trained = Run.open(root / "checkpoints", data.name, "toy", Stage1Settings(), 0, data.hash, {})
    state = {"kernel": jnp.asarray(latents), "half": jnp.ones(3, jnp.bfloat16), "key": jax.random.key(0)}
    trained.save(3, state, {"stale": 2})
    trained.mark_best(3, {"hit@1": 0.5})
    (trained.path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(9)))
    abstract = jax.eval_shape(lambda: state)

    def read_checkpoint() -> str:
        return hash_of(trained.restore(abstract), trained.progress(3, dict[str, int]))

    scores = rng.normal(size=candidates.candidates.shape).astype(np.float32)
    frame = users_frame(
        [Outcome("SASRec", scores)], candidates.users, candidates.target, candidates.candidates, data.slices, 0
    )
    run = {"system": "SASRec", "scenario": "overall", "seed": 0, "id": cf.identity, "candidates_sha": candidates.sha256}
    write_results(
        root / "results",
        frame,
        runs=[run],
        data={"name": data.name, "hash": data.hash},
        settings={"table": "table1", "title": "T"},
        versions={},
        times={"systems": {"SASRec": 1.0}},
    )

    def export(path: Path, read: Callable[[], str]) -> Kind:
        return Kind(files(path / "export"), read, True)

    def read_tables() -> str:
        frame = read_users(root / "results")
        return hash_of(frame.hash_rows().to_numpy())

    return {
        "data set": Kind(
            [path for path in files(root / "data", ".allmrec") if path.parent == data.path], read_data, True
        ),
        "mark of a data set": Kind([data.path / ".allmrec"], read_data),
        "candidates": Kind(files(data.path / "candidates"), read_candidates, True),
        "export of cf": export(cf.path, lambda: hash_of(_model(load_cf(cf.path, data)))),
        "export of stage 1": export(stage1.path, lambda: hash_of(_fields(load_stage1(stage1.path)))),
        "export of stage 2": export(
            stage2.path, lambda: hash_of(load_stage2(stage2.path).params, load_stage2(stage2.path).llm)
        ),
        "checkpoint": Kind(files(trained.path / "steps", "hashes.json"), read_checkpoint, True),
        "hashes of a checkpoint": Kind([trained.path / "steps" / "3" / "hashes.json"], read_checkpoint),
        "run.json and DONE": Kind(
            [cf.path / "run.json", cf.path / "DONE"],
            lambda: hash_of(load_run(cf.path), read_run(cf.path), _model(load_cf(cf.path, data))),
            slow=True,
        ),
        "best": Kind([trained.path / "best"], lambda: hash_of(trained.best_step())),
        "metrics.jsonl": Kind(
            [trained.path / "metrics.jsonl"], lambda: hash_of(read_lines(trained.path / "metrics.jsonl")), False
        ),
        "users.parquet": Kind([root / "results" / "users.parquet"], read_tables, True),
        "results.json": Kind(
            [root / "results" / "results.json"],
            lambda: hash_of(read_results(root / "results"), read_tables()),
        ),
    }


def _model(model: Any) -> Any:
    return [model.params, repr(model.config), model.identity]


def _fields(read: Any) -> Any:
    return [read.joint, read.text, read.trained, read.params, repr(read.settings)]


PARTS: dict[str, Callable[[Path], Iterable[tuple[str, Kind]]]] = {
    "runs": lambda root: make(root / "runs").items(),
    "own": lambda root: own.beside(root / "own", root / "runs" / "results"),
    "raw": lambda root: others.raw(root / "raw"),
    "models": lambda root: others.models(root / "models"),
    "official": lambda root: others.official_files(root / "official"),
    "given": lambda root: others.given_by_users(root / "given"),
}
"""The kinds by who wrote the files."""


def campaign(
    root: Path, inputs: int, seed: int, first: int = 0, out: Path | None = None, parts: Sequence[str] = tuple(PARTS)
) -> dict[str, Any]:
    """Damages files, of each kind in turn, and counts what became of them.

    Args:
        root: an empty folder.
        inputs: the inputs' number, those before ``first`` counted.
        seed: of all draws.
        first: the input to begin with.
        out: where the counts so far are kept and gone on from.
        parts: of :data:`PARTS`.
    """
    kinds = {name: kind for part in parts for name, kind in PARTS[part](root)}
    before = {name: (kind.read(), kind.read()) for name, kind in kinds.items()}
    assert all(right == again for right, again in before.values()), "reading twice must say the same"
    turns = [name for again in range(5) for name, kind in kinds.items() if not (again and kind.slow)]
    whole = digests(root)
    intact = {path: path.read_bytes() for kind in kinds.values() for path in kind.files}
    counts: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    slowest: dict[str, float] = dict.fromkeys(kinds, 0.0)
    faults: dict[int, str] = {}
    numbers, reached = list(range(first, inputs)), first
    if out is not None and out.is_file() and (so_far := json.loads(out.read_text()))["seed"] == seed:
        for name, kind in so_far["kinds"].items():
            slowest[name] = kind["slowest_seconds"]
            counts[name].update({key: kind[key] for key in OUTCOMES if key in kind})
        reached = so_far["inputs"]
        numbers = list(range(reached, inputs))
        for fault in so_far["faults"]:  # is tried again
            number, name, outcome = (fault.split(", ", 3)[i] for i in range(3))
            counts[name][outcome] -= 1
            numbers.insert(0, int(number))

    def found(number: int) -> dict[str, Any]:
        told = {
            name: {"hashed": kinds[name].hashed, **+counts[name], "slowest_seconds": round(slowest[name], 2)}
            for name in kinds
        }
        total = {outcome: sum(each[outcome] for each in counts.values()) for outcome in OUTCOMES}
        return {"inputs": number, "seed": seed, **total, "kinds": told, "faults": list(faults.values())}

    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name = turns[number % len(turns)]
        kind = kinds[name]
        path = rng.choice([path for path in kind.files if intact[path]])
        swapped = [intact[other] for other in (*kind.files, *rng.sample(list(intact), 2)) if other != path]
        changed = damaged(intact[path], swapped, rng)
        if changed == intact[path]:
            counts[name]["unchanged"] += 1
            continue
        path.write_bytes(changed)
        faulthandler.dump_traceback_later(5 * LIMIT, exit=True)
        started = time.perf_counter()
        outcome, what = _outcome(kind, before[name][0])
        seconds = time.perf_counter() - started
        faulthandler.cancel_dump_traceback_later()
        if seconds > LIMIT:  # whatever became of the alarm's exception
            outcome = "hang"
        slowest[name] = max(slowest[name], seconds)
        if outcome in ("traceback", "hang") or (kind.hashed and outcome == "accepted"):
            faults[number] = f"{number}, {name}, {outcome}, {path.relative_to(root)}: {what}"
            print(faults[number], flush=True)
        counts[name][outcome] += 1
        path.write_bytes(intact[path])
        reached = max(reached, number + 1)
        if out is not None and number % 100 == 99:
            write_json(out, found(reached))
    after = digests(root)
    assert {name: after.get(name) for name in whole if not _written_by_reading(name)} == {
        name: digest for name, digest in whole.items() if not _written_by_reading(name)
    }, "files were lost or changed"
    return found(inputs)


OUTCOMES = ("refused", "harmless", "accepted", "unchanged", "traceback", "hang")


def _written_by_reading(name: str) -> bool:
    """Whether a file is what a command made of the damaged ones."""
    return name.startswith(("raw/prepared/", "official/taken-over/", "own/report/"))


def _outcome(kind: Kind, right: str) -> tuple[str, str]:
    """One of :data:`OUTCOMES`, and what is to be known of a fault."""

    def hang(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of numbers that are lost
            return ("harmless" if kind.read() == right else "accepted"), ""
    except UserError as error:
        plain = "\n" not in str(error) and len(str(error)) < 2000
        return ("refused", "") if plain else ("traceback", f"not one line: {str(error)[:300]!r}")
    except TimeoutError:
        return "hang", ""
    except (Exception, pl.exceptions.PanicException) as error:
        return "traceback", f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), given.first + given.inputs, given.seed, given.first, given.out, given.parts)
    print(json.dumps({key: found[key] for key in ("inputs", *OUTCOMES)}))
    if given.out is not None:
        about = {"command": " ".join(["python", *sys.argv]), "versions": versions(), "machine": machine()}
        write_json(given.out, {**about, **found})
    print(f"{time.time() - started:.0f} s")
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
