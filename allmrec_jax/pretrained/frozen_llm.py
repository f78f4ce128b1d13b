"""A frozen language model as trainings and recommenders take it: its module, its parameters, a catalogue's titles in
its tokens."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import LanguageModel, LMConfig
from allmrec_jax.pretrained.llm import load_checkpoint, load_tokenizer
from allmrec_jax.prompts import PromptTables, chat_of, title_table

LLMWeights = Literal["dtype", "int8"]
"""How the frozen language model's kernels are stored."""


def load_llm(
    name_or_path: str | Path, dtype: str, weights: LLMWeights = "dtype", *, remat: bool = False
) -> tuple[LanguageModel, Any]:
    """A frozen language model and its parameters, in ``dtype`` both; its kernels perhaps in int8."""
    config, params = load_checkpoint(name_or_path, jnp.dtype(dtype), int8=weights == "int8")
    return family_of(config).module(config, jnp.dtype(dtype), remat), params


def prompt_tables(
    name_or_path: str | Path, cfg: LMConfig, titles: list[str], title_max_tokens: int, *, chat: bool = False
) -> PromptTables:
    """Prompt tables of a language model and a catalogue's titles ([N+1], the first one padding's).

    Raises:
        UserError: ``chat`` asks for a chat template, and the tokenizer has none.
    """
    tokenizer = load_tokenizer(name_or_path)
    bos_first = family_of(cfg).bos == "first"
    return PromptTables(
        tokenizer,
        title_table(tokenizer, titles, title_max_tokens),
        cfg.max_position_embeddings,
        _first_token(tokenizer) if bos_first else cfg.bos_token_id,
        cfg.eos_token_id,
        cfg.pad_token_id,
        bos_first,
        chat_of(tokenizer, name_or_path) if chat else None,
    )


def _first_token(tokenizer: Any) -> int | None:
    """The special token that the tokenizer begins every text with, as the model was trained; ``None`` without one."""
    first = tokenizer("a").input_ids[:1]
    return first[0] if set(first) & set(tokenizer.all_special_ids) else None
