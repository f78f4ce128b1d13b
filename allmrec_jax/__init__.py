"""A-LLMRec in JAX: collaborative filtering joined with a frozen large language model.

Everything public is here, and imported when it is first used: ``import allmrec_jax as ar`` is instant.

Example:
    >>> import allmrec_jax as ar
    >>> data = ar.prepare("ml-latest-small", out="data/ml")
    >>> cf = ar.train_cf(data, model="sasrec", preset="small")
    >>> stage1 = ar.train_stage1(data, cf, sentence_encoder="sbert-nano")
    >>> system = ar.train_stage2(data, cf, stage1, llm="opt-nano")
    >>> system.recommend(history=["The Matrix (1999)", "Alien (1979)"], count=5)
    >>> ar.evaluate(data, [cf, system, "LLM-Only"], users=500)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allmrec_jax.api.converting import export_official, export_serving, import_official
    from allmrec_jax.api.data import load_data, prepare, synthesize
    from allmrec_jax.api.embedded import train_embedded_model
    from allmrec_jax.api.evaluating import Results, evaluate
    from allmrec_jax.api.experiments import make_demo, make_table, tune
    from allmrec_jax.api.parity import compare_with_pytorch
    from allmrec_jax.api.planning import Plan, plan, plan_stage1
    from allmrec_jax.api.recommending import ALLMRec, Recommendations
    from allmrec_jax.api.reporting import write_report
    from allmrec_jax.api.runs import TrainedRun, compare_runs, find_run, list_runs, remove_run
    from allmrec_jax.api.training import fit, load, train_cf, train_model, train_stage1, train_stage2
    from allmrec_jax.data.dataset import Dataset
    from allmrec_jax.errors import UserError
    from allmrec_jax.trained.recommend import NewItem

    __version__: str

__all__ = [
    "ALLMRec",
    "Dataset",
    "NewItem",
    "Plan",
    "Recommendations",
    "Results",
    "TrainedRun",
    "UserError",
    "__version__",
    "compare_runs",
    "compare_with_pytorch",
    "evaluate",
    "export_official",
    "export_serving",
    "find_run",
    "fit",
    "import_official",
    "list_runs",
    "load",
    "load_data",
    "make_demo",
    "make_table",
    "plan",
    "plan_stage1",
    "prepare",
    "remove_run",
    "synthesize",
    "train_cf",
    "train_embedded_model",
    "train_model",
    "train_stage1",
    "train_stage2",
    "tune",
    "write_report",
]

_PLACES = {
    "api.converting": ("export_official", "export_serving", "import_official"),
    "api.data": ("load_data", "prepare", "synthesize"),
    "api.embedded": ("train_embedded_model",),
    "api.evaluating": ("Results", "evaluate"),
    "api.experiments": ("make_demo", "make_table", "tune"),
    "api.parity": ("compare_with_pytorch",),
    "api.planning": ("Plan", "plan", "plan_stage1"),
    "api.recommending": ("ALLMRec", "Recommendations"),
    "api.reporting": ("write_report",),
    "api.runs": ("TrainedRun", "compare_runs", "find_run", "list_runs", "remove_run"),
    "api.training": ("fit", "load", "train_cf", "train_model", "train_stage1", "train_stage2"),
    "data.dataset": ("Dataset",),
    "errors": ("UserError",),
    "trained.recommend": ("NewItem",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("allmrec-jax")
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"allmrec_jax.{module}"), name)
    raise AttributeError(f"module 'allmrec_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
