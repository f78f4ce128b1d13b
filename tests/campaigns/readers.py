"""Which modules of the product read files, and which kinds of the campaign of damage stand for each.

A module that calls something of :data:`CALLS` reads; one that is named neither here nor in :data:`ELSEWHERE` has files
that nobody damages, and a test says so. What goes through :mod:`allmrec_jax.fileio` alone (arrays, Parquet files) is
damaged as the kinds of that module.
"""

import ast
from pathlib import Path

CALLS = frozenset(
    "loads read_text read_bytes read_json read_parquet scan_parquet read_parquet_schema read_csv safe_load load_file "
    "safe_open from_file from_pretrained genops".split()
)
"""Functions and methods that read a file or take one's content apart, by their last name."""

MODULES_THAT_LOAD = frozenset(("np", "numpy", "torch", "pickle", "ocp"))
"""Whose ``load`` reads a file."""

READERS: dict[str, tuple[str, ...]] = {
    "api.config": ("settings in YAML", "settings of a run"),
    "api.recommending": ("lists of users",),
    "data.candidates": ("candidates",),
    "data.dataset": ("data set",),
    "data.readers.json_lines": ("raw amazon-2018", "raw amazon-2014", "raw amazon-2023", "raw tsv and JSON lines"),
    "data.readers.parquet": ("raw Parquet",),
    "data.readers.sequences": ("raw sequence JSON",),
    "data.readers.streams": (
        "raw csv",
        "raw RecBole",
        "raw MovieLens 100K",
        "raw MovieLens 1M",
        "raw MovieLens CSV",
        "raw SASRec's text",
    ),
    "data.readers.tables": ("raw Parquet",),
    "embedded.synthetic": ("oracle.npz",),
    "evaluation.results": ("results.json", "users.parquet"),
    "evaluation.systems": ("oracle.npz",),
    "experiments.answers": ("kept answers", "what is known of kept answers"),
    "experiments.demo": ("results.json",),
    "fileio": ("export of stage 1", "export of stage 2", "kept answers", "arrays of users"),
    "models.cf.protocol": ("export of cf", "export of NCF", "export of RECFORMER"),
    "official.importing": ("official checkpoints",),
    "official.reading": ("official texts and interactions", "official checkpoints"),
    "outputs": ("mark of a data set",),
    "parquet": ("data set", "users.parquet", "kept answers", "lists of users"),
    "pretrained.llm": ("OPT",),
    "pretrained.schemas": ("OPT", "PEFT adapter", "sentence encoder", "Longformer"),
    "pretrained.sentence_encoder": ("sentence encoder", "sentence encoder in .bin with vocab.txt"),
    "pretrained.tokenizer": ("tokenizer.json", "vocab.json and merges.txt"),
    "pretrained.weights": ("OPT", "OPT in shards", "OPT in .bin"),
    "records": ("run.json and DONE", "best", "cost.json", "runs that are listed"),
    "report.readers": ("report of results and a run", "tables.json"),
    "runs": ("checkpoint", "hashes of a checkpoint"),
    "trained.recommend": ("new items",),
    "training.metrics": ("metrics.jsonl",),
}
"""Kinds by module, each of which damages files that the module reads."""

ELSEWHERE = {
    "parity.cases": "packaged",
    "parity.conversion": "the clone's own files, which parity writes itself",
    "parity.golden": "packaged",
    "parity.official": "sources of the clone, which are hashed",
    "parity.official_defaults": "sources of the clone",
    "pretrained.gguf": "no kind of the campaign yet; damaged files of it are in tests/pretrained/test_gguf.py",
    "report.paper": "packaged",
    "report.provenance": "packaged",
    "report.site": "packaged, and signs of a page that would be replaced",
}
"""Modules whose files no kind damages, and why."""


def modules_that_read(package: Path) -> set[str]:
    """The modules below a package's folder that call one of :data:`CALLS`, by their names in it."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (_reads(node.func) or _opens(node)):
                found.add(".".join(path.relative_to(package).with_suffix("").parts))
    return found


def _opens(call: ast.Call) -> bool:
    """Whether a call opens a file to read its bytes."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    return name == "open" and any(isinstance(given, ast.Constant) and given.value == "rb" for given in call.args)


def _reads(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in CALLS
    if not isinstance(function, ast.Attribute):
        return False
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    return function.attr in CALLS or (function.attr == "load" and owner in MODULES_THAT_LOAD)
