"""Damages every kind of file that is read back, and looks at what becomes of it.

    python tests/campaigns/mutations.py --inputs 20000 --out benchmarks/results/campaign_mutations.json

Each input is one file changed in one way: bits flipped, cut short, a block of zeros, bytes added or taken away,
emptied, or, where it is JSON, another value or structure in one place. It is refused in one line, or read as what it
was (the change does not matter), or it counts: an error with a traceback; and, of files that carry hashes, other
numbers taken as good. Draws are seeded; the files are restored after each input, and compared at the end.
"""

import argparse
import dataclasses
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import load_dataset, replace_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import Outcome, read_users, users_frame, write_results
from allmrec_jax.fileio import digests, save_arrays, write_json
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRec, SASRecConfig
from allmrec_jax.report.readers import read_results, read_run
from allmrec_jax.runs import Run, load_run
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training.metrics import read_lines
from allmrec_jax.training.stage1_export import load_stage1
from allmrec_jax.training.stage1_settings import Stage1Settings
from allmrec_jax.training.stage2_settings import Stage2Settings

LIMIT = 60
"""Seconds after which an input counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        files: one of which is damaged at a time.
        read: reads them and returns what they say, as a hash.
        hashed: whether they carry hashes, so that no damage may be taken as good.
    """

    files: list[Path]
    read: Callable[[], str]
    hashed: bool


def hash_of(*parts: Any) -> str:
    """A hash of arrays, texts and whatever has a faithful ``repr``."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        if hasattr(leaf, "dtype"):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


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
        read = load_dataset(data.path)
        slices = [read.slices[name] for name in sorted(read.slices)]
        cold = read.cold_users
        texts = [read.name, read.titles, read.descriptions, read.users_raw, read.items_raw, read.categories, cold.raw]
        arrays = [read.items, read.offsets, read.timestamps, read.train_count, cold.items, cold.offsets]
        return hash_of(texts, arrays, slices, read.num_users, read.num_items)

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

    def files(folder: Path, *without: str) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)

    def export(path: Path, read: Callable[[], str]) -> Kind:
        return Kind(files(path / "export"), read, True)

    def read_tables() -> str:
        frame = read_users(root / "results")
        return hash_of(frame.hash_rows().to_numpy())

    return {
        "data set": Kind(
            [path for path in files(root / "data", ".allmrec") if path.parent == data.path], read_data, True
        ),
        "mark of a data set": Kind([data.path / ".allmrec"], read_data, False),
        "candidates": Kind(files(data.path / "candidates"), read_candidates, True),
        "export of cf": export(cf.path, lambda: hash_of(_model(load_cf(cf.path, data)))),
        "export of stage 1": export(stage1.path, lambda: hash_of(_fields(load_stage1(stage1.path)))),
        "export of stage 2": export(
            stage2.path, lambda: hash_of(load_stage2(stage2.path).params, load_stage2(stage2.path).llm)
        ),
        "checkpoint": Kind(files(trained.path / "steps", "hashes.json"), read_checkpoint, True),
        "hashes of a checkpoint": Kind([trained.path / "steps" / "3" / "hashes.json"], read_checkpoint, False),
        "run.json and DONE": Kind(
            [cf.path / "run.json", cf.path / "DONE"],
            lambda: hash_of(load_run(cf.path), read_run(cf.path), _model(load_cf(cf.path, data))),
            False,
        ),
        "best": Kind([trained.path / "best"], lambda: hash_of(trained.best_step()), False),
        "metrics.jsonl": Kind(
            [trained.path / "metrics.jsonl"], lambda: hash_of(read_lines(trained.path / "metrics.jsonl")), False
        ),
        "users.parquet": Kind([root / "results" / "users.parquet"], read_tables, True),
        "results.json": Kind(
            [root / "results" / "results.json"],
            lambda: hash_of(read_results(root / "results"), read_tables()),
            False,
        ),
    }


def _model(model: Any) -> Any:
    return [model.params, repr(model.config), model.identity]


def _fields(read: Any) -> Any:
    return [read.joint, read.text, read.trained, read.params, repr(read.settings)]


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    1 << 70,
    1e308,
    "",
    "../../escaped",
    "\x1b[2J",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": {}},
    [None] * 9,
)
"""Values that a place in JSON may hold in place of its own."""


def damaged(content: bytes, name: str, rng: random.Random) -> bytes:
    """The content of a file, changed in one way."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [_flipped, _cut, _zeroed, _longer, _shorter]
    if rng.random() < 0.02:
        return b""
    if name.endswith((".json", ".allmrec", "DONE", "best")) and rng.random() < 0.7:
        return _restructured(content, rng)
    if name.endswith(".jsonl") and rng.random() < 0.7:
        lines = content.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = _restructured(lines[at], rng) + b"\n"
        return b"".join(lines)
    return rng.choice(ways)(content, rng)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.choice((1, 16, 512))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def _longer(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 8, 64))) + content[at:]


def _shorter(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 8, 64)) :]


def _restructured(content: bytes, rng: random.Random) -> bytes:
    """JSON with another value in one place, without a key, or nested deeper than a parser goes."""
    if rng.random() < 0.05:
        return rng.choice((b"[" * 100_000, b"9" * 5000, b"NaN", b'"text"', b"[]", b"{}", b"\xff\xfe{}"))
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(value)
    if not places:
        return json.dumps(rng.choice(ODD)).encode()
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    return json.dumps(value).encode()


def campaign(root: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Damages ``inputs`` files, of each kind in turn, and counts what became of them."""
    kinds = make(root)
    before = {name: (kind.read(), kind.read()) for name, kind in kinds.items()}
    assert all(first == second for first, second in before.values()), "reading twice must say the same"
    whole = digests(root)
    rng = random.Random(seed)
    counts: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    slowest: dict[str, float] = dict.fromkeys(kinds, 0.0)
    faults: list[str] = []
    for number in range(inputs):
        name = list(kinds)[number % len(kinds)]
        kind = kinds[name]
        path = rng.choice([path for path in kind.files if path.stat().st_size])
        content = path.read_bytes()
        changed = damaged(content, path.name, rng)
        if changed == content:
            counts[name]["unchanged"] += 1
            continue
        path.write_bytes(changed)
        started = time.perf_counter()
        outcome = _outcome(kind, before[name][0])
        slowest[name] = max(slowest[name], time.perf_counter() - started)
        if outcome.startswith(("traceback", "hang")) or (kind.hashed and outcome == "accepted"):
            faults.append(f"input {number}, {name}, {path.relative_to(root)}: {outcome}")
        counts[name][outcome.partition(":")[0]] += 1
        path.write_bytes(content)
    assert digests(root) == whole, "files were lost or changed"
    return {
        "inputs": inputs,
        "seed": seed,
        "kinds": {
            name: {"hashed": kinds[name].hashed, **counts[name], "slowest_seconds": round(slowest[name], 2)}
            for name in kinds
        },
        "faults": faults,
    }


def _outcome(kind: Kind, right: str) -> str:
    def hang(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        return "harmless" if kind.read() == right else "accepted"
    except UserError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 2000 else "traceback: not one line"
    except TimeoutError:
        return "hang"
    except (Exception, pl.exceptions.PanicException) as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), given.inputs, given.seed)
    print(json.dumps(found, indent=2))
    if given.out is not None:
        write_json(given.out, {"command": " ".join(["python", *sys.argv]), **found})
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
