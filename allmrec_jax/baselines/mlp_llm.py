"""MLP-LLM, a baseline of the A-LLMRec paper: stage 2 on the CF model's own item vectors, without a stage 1."""

import dataclasses
from pathlib import Path

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.training import stage2, stage2_settings
from allmrec_jax.training.stage2_settings import Stage2Settings

PRESETS = {
    name: dataclasses.replace(preset, item_vectors="cf", text_share=0.0)
    for name, preset in stage2_settings.PRESETS.items()
}
"""Stage 2's, with the CF model's item vectors straight into the projector."""


def train_mlp_llm(
    dataset: Dataset,
    cf_path: Path,
    llm_name: str | Path,
    settings: Stage2Settings,
    seed: int,
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains the projectors on CF vectors; returns the run's directory.

    Args:
        dataset: the one that the CF model was trained on.
        cf_path: a finished run, or a directory of one's own CF arrays.
        llm_name: a directory, a hub name or ``opt-nano``.
        settings: those of stage 2, with ``item_vectors`` ``"cf"``.
        seed: of every random draw.
        out: the folder of all runs.
        resume: continue an interrupted run.
        quiet: show no progress.

    Raises:
        UserError: as :func:`allmrec_jax.training.stage2.train_stage2` raises it.
    """
    return stage2.train_stage2(dataset, cf_path, None, llm_name, settings, seed, out, resume=resume, quiet=quiet)
