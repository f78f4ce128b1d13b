"""A tokenizer and a language model small enough for tests, made on the spot."""

from functools import cache
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPT, OPTConfig
from allmrec_jax.prompts import STYLES, prompt_text

TITLES = (
    "",
    "Red Fox",
    "Red Foxes",
    "Blue Whale of the Deep",
    "It",
    "It Follows",
    "Saddle & Spur",
    "Moon",
    "Ghost Ship",
)


@cache
def tokenizer() -> Any:
    """Byte-level BPE of a few hundred tokens with OPT's special tokens: ``<pad>`` is 1, ``</s>`` 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [piece for style in STYLES.values() for piece in prompt_text(style)] * 3 + list(TITLES)
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "<pad>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )


def config(**changes: Any) -> OPTConfig:
    """OPT with widths that differ from each other, so that a shape tells which weight it is."""
    sizes = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 40,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 16,
    }
    return OPTConfig(**{**sizes, **changes})


def model(**changes: Any) -> tuple[OPT, Any]:
    """A random OPT and its parameters, scaled up so that its choices are far from ties."""
    cfg = config(**changes)
    params = jax.tree.map(lambda x: 3.0 * x, init_params(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    return OPT(cfg), jax.tree.map(np.add, params, noise)
