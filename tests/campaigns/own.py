"""What the product writes beside data sets, runs and results, and reads again."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from kinds import Kind, files, hash_of

from allmrec_jax.api.config import read_config
from allmrec_jax.api.reporting import write_report
from allmrec_jax.api.runs import compare_runs, label_run, list_runs, read_run
from allmrec_jax.data.dataset import Dataset, replace_dataset
from allmrec_jax.embedded.synthetic import PRESETS, generate, load_oracle
from allmrec_jax.experiments.answers import read_kept
from allmrec_jax.fileio import sha256, write_json
from allmrec_jax.models.cf.ncf import NCFConfig, NeuMF
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_MODELS
from allmrec_jax.models.longformer import LongformerConfig, draw_params, param_shapes
from allmrec_jax.models.recformer import ItemTokens, RecformerCF, RecformerConfig
from allmrec_jax.records import read_cost
from allmrec_jax.report.readers import read_not_made
from allmrec_jax.runs import Run, save_arrays
from allmrec_jax.training.stage1_settings import Stage1Settings


def beside(root: Path, results: Path) -> Iterator[tuple[str, Kind]]:
    """Kept answers, costs, labels, lists, oracles, further CF models, and a report of it all.

    Args:
        root: where all of it goes.
        results: of an evaluation, which the report shows.
    """
    data = replace_dataset(
        root / "data",
        name="small",
        items=np.arange(1, 13),
        offsets=np.arange(4) * 4,
        timestamps=None,
        titles=[f"Title {item}" for item in range(1, 13)],
        descriptions=[""] * 12,
    )
    for name, kind in (("NCF", _ncf(root, data)), ("RECFORMER", _recformer(root, data))):
        yield f"export of {name}", kind

    kept = root / "answers" / "kept.parquet"
    kept.parent.mkdir()
    pl.DataFrame({"user": [1, 2], "rank": [1, 3], "system": ["SASRec", "SASRec"]}).write_parquet(kept)
    write_json(kept.with_suffix(".json"), {"seconds": 1.5, "sha256": sha256(kept), "seed": 0})

    def answers() -> str:
        frame, _ = read_kept(kept)
        return hash_of(frame.hash_rows().to_numpy())

    yield "kept answers", Kind([kept], answers, True)
    yield "what is known of kept answers", Kind([kept.with_suffix(".json")], lambda: hash_of(read_kept(kept)[1]))

    run = Run.open(root / "checkpoints", data.name, "toy", Stage1Settings(), 0, data.hash, {})
    run.mark_best(3, {"hit@1": 0.5})
    run.finish({})
    write_json(run.path / "cost.json", {"seconds": 3.0, "peak_mib": 200, "units": 5, "model": None})
    (run.path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(9)))
    label_run(read_run(run.path), root / "checkpoints", data=data.path, name="mine")
    yield "cost.json", Kind([run.path / "cost.json"], lambda: hash_of(repr(read_cost(run.path))))

    def listed() -> str:
        runs = list_runs(root / "checkpoints")
        return hash_of(repr(runs.records()), repr(runs), repr(compare_runs(list(runs)).records()))

    shown = [run.path / name for name in ("run.json", "best", "label.json")]
    yield "runs that are listed", Kind(shown, listed)
    settings = root / "run.json"
    shutil.copy(run.path / "run.json", settings)
    settings.write_text(settings.read_text().replace('"toy"', '"stage1"'))
    yield "settings of a run", Kind([settings], lambda: hash_of(repr(read_config(settings, ["stage1"]))))

    tables = root / "tables"
    write_json(tables / "tables.json", {"made": ["table1"], "not_made": {"table2": "no reason"}})
    yield "tables.json", Kind([tables / "tables.json"], lambda: hash_of(read_not_made(tables)))

    generate(root / "raw", 0, PRESETS["tiny"])
    oracle = root / "raw" / "oracle.npz"

    def true() -> str:
        read = load_oracle(oracle)
        return hash_of(*vars(read.catalogue).values(), *vars(read.history).values(), repr(read.settings))

    yield "oracle.npz", Kind([oracle], true)

    copied = root / "results"
    shutil.copytree(results, copied)

    def reported() -> str:
        shutil.rmtree(root / "report", ignore_errors=True)
        write_report([copied, run.path], root / "report", models=False)
        return ""  # pages hold what the readers were asked about already

    chosen = [
        copied / "results.json",
        *(run.path / name for name in ("run.json", "metrics.jsonl", "cost.json", "best")),
    ]
    yield "report of results and a run", Kind(chosen, reported, slow=True)


def _finished(root: Path, data: Dataset, name: str, config: object) -> Run:
    entry = CF_MODELS["sasrec"].load()
    settings = dataclasses.replace(entry.presets["paper"], dim=8, max_length=10)
    run = Run.open(root / "checkpoints" / name, data.name, "cf", settings, 0, data.hash, {})
    write_json(run.export_path("cf.json"), {"model": name, "config": dataclasses.asdict(config)})  # type: ignore[call-overload]
    return run


def _ncf(root: Path, data: Dataset) -> Kind:
    config = NCFConfig(data.num_users, data.num_items, dim=8)
    run = _finished(root, data, "ncf", config)
    params = jax.device_get(NeuMF(config).init_params(jax.random.key(0)))
    save_arrays(run.export_path("params.safetensors"), params)
    run.finish({})
    return Kind(files(run.path / "export"), lambda: hash_of(load_cf(run.path, data).item_vectors()), True)


def _recformer(root: Path, data: Dataset) -> Kind:
    widths: Any = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    lengths: Any = {"max_position_embeddings": 34, "attention_window": 8, "type_vocab_size": 4, "item_positions": 6}
    sizes = LongformerConfig(vocab_size=30, **widths, **lengths)
    config, rows = RecformerConfig(sizes, 2, max_tokens=32), data.num_items + 1
    run = _finished(root, data, "recformer", config)
    params = draw_params(param_shapes(sizes)["encoder"], np.random.default_rng(0))
    tokens = ItemTokens(np.ones((rows, 3), np.int32), np.zeros((rows, 3), np.int32), np.full(rows, 3, np.int32))
    table = np.random.default_rng(1).normal(size=(rows, 12)).astype(np.float32)
    RecformerCF(config, params, table, tokens).save(run.path / "export")
    run.finish({})
    return Kind(files(run.path / "export"), lambda: hash_of(load_cf(run.path, data).item_vectors()), True)
