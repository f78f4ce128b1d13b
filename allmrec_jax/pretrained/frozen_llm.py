"""A frozen language model as trainings and recommenders take it: its module, its parameters, a catalogue's titles in
its tokens."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import LanguageModel, LMConfig
from allmrec_jax.pretrained.llm import load_checkpoint, load_tokenizer
from allmrec_jax.prompts import PromptTables, title_table

LLMWeights = Literal["dtype", "int8"]
"""How the frozen language model's kernels are stored."""


def load_llm(
    name_or_path: str | Path, dtype: str, weights: LLMWeights = "dtype", *, remat: bool = False
) -> tuple[LanguageModel, Any]:
    """A frozen language model and its parameters, in ``dtype`` both; its kernels perhaps in int8."""
    config, params = load_checkpoint(name_or_path, jnp.dtype(dtype), int8=weights == "int8")
    return family_of(config).module(config, jnp.dtype(dtype), remat), params


def prompt_tables(name_or_path: str | Path, cfg: LMConfig, titles: list[str], title_max_tokens: int) -> PromptTables:
    """Prompt tables of a language model and a catalogue's titles ([N+1], the first one padding's)."""
    tokenizer = load_tokenizer(name_or_path)
    return PromptTables(
        tokenizer,
        title_table(tokenizer, titles, title_max_tokens),
        cfg.max_position_embeddings,
        cfg.bos_token_id,
        cfg.eos_token_id,
        cfg.pad_token_id,
    )
