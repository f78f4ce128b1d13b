"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), SmolLM2 (arXiv 2502.02737), which is a Llama, and Mistral (arXiv
2310.06825), which is a Llama with a sliding window.
"""

import dataclasses
from typing import Any, ClassVar

from allmrec_jax.models.limits import Size
from allmrec_jax.models.llm.decoder import (
    ATTENTION,
    BUFFERS,
    PREFIXES,
    PROJECTIONS,
    RULES,
    Decoder,
    DecoderConfig,
    layout,
)
from allmrec_jax.models.llm.family import Family
from allmrec_jax.models.llm.gguf_form import GGUFForm
from allmrec_jax.models.llm.rotary import Rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """A Llama; the defaults are Llama 2 7B's."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that add a bias."""
        return tuple(name for name in PROJECTIONS if (self.attention_bias if name in ATTENTION else self.mlp_bias))


@dataclasses.dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """A Mistral; without a ``sliding_window`` it is a Llama."""

    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"

    intermediate_size: Size = 14336
    num_key_value_heads: Size = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = None

    @property
    def attended(self) -> int | None:
        """How many tokens a token attends, itself among them."""
        return self.sliding_window


def _llama(hidden: int, units: int, layers: int, heads: int, key_values: int, **other: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        **other,
    )


def _llama2(hidden: int, units: int, layers: int, heads: int, key_values: int) -> LlamaConfig:
    return _llama(hidden, units, layers, heads, key_values, max_position_embeddings=4096)


def _llama3(
    hidden: int, units: int, layers: int, heads: int, *, factor: float = 0.0, tie_word_embeddings: bool = False
) -> LlamaConfig:
    rope = Rope(rope_theta=500000.0)
    if factor:
        rope = dataclasses.replace(rope, rope_type="llama3", factor=factor, original_max_position_embeddings=8192)
    return _llama(
        hidden,
        units,
        layers,
        heads,
        8,
        vocab_size=128256,
        max_position_embeddings=131072 if factor else 8192,
        tie_word_embeddings=tie_word_embeddings,
        rope=rope,
        pad_token_id=128001,
        bos_token_id=128000,
        eos_token_id=128001,
    )


def _smollm2(hidden: int, units: int, layers: int, heads: int, key_values: int, theta: float) -> LlamaConfig:
    return _llama(
        hidden,
        units,
        layers,
        heads,
        key_values,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope=Rope(rope_theta=theta),
        bos_token_id=0,
        eos_token_id=0,
    )


PUBLISHED: dict[str, LlamaConfig] = {
    "meta-llama/Llama-2-7b-hf": _llama2(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama2(5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": _llama2(8192, 28672, 80, 64, 8),
    "meta-llama/Meta-Llama-3-8B": _llama3(4096, 14336, 32, 32),
    "meta-llama/Llama-3.1-8B": _llama3(4096, 14336, 32, 32, factor=8.0),
    "meta-llama/Llama-3.1-70B": _llama3(8192, 28672, 80, 64, factor=8.0),
    "meta-llama/Llama-3.2-1B": dataclasses.replace(
        _llama3(2048, 8192, 16, 32, factor=32.0, tie_word_embeddings=True), head_dim=64
    ),
    "meta-llama/Llama-3.2-3B": _llama3(3072, 8192, 28, 24, factor=32.0, tie_word_embeddings=True),
    "HuggingFaceTB/SmolLM2-135M": _smollm2(576, 1536, 30, 9, 3, 100000.0),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(960, 2560, 32, 15, 5, 100000.0),
    "HuggingFaceTB/SmolLM2-1.7B": _smollm2(2048, 8192, 24, 32, 32, 130000.0),
}
"""Published sizes, by hub name."""

PUBLISHED_MISTRAL: dict[str, MistralConfig] = {
    "mistralai/Mistral-7B-v0.1": MistralConfig(
        rms_norm_eps=1e-5, max_position_embeddings=32768, pad_token_id=2, sliding_window=4096
    ),
    "mistralai/Mistral-7B-v0.3": MistralConfig(
        vocab_size=32768, rms_norm_eps=1e-5, max_position_embeddings=32768, pad_token_id=2, rope=Rope(rope_theta=1e6)
    ),
}
"""Published sizes of Mistral, by hub name."""

LLAMA = Family(
    title="Llama",
    model_types=("llama",),
    config=LlamaConfig,
    module=Decoder,
    layout=layout,
    prefixes=PREFIXES,
    rules=RULES,
    variants={"hidden_act": "silu"},
    adapts=PROJECTIONS,
    published=PUBLISHED,
    buffers=BUFFERS,
    gguf=GGUFForm("llama", interleaved=("q_proj", "k_proj")),
    kept_units=4.5,
)
"""Llama 2 and 3, and every model that says it is a ``llama``."""

MISTRAL = dataclasses.replace(
    LLAMA, title="Mistral", model_types=("mistral",), config=MistralConfig, published=PUBLISHED_MISTRAL, gguf=None
)
"""Mistral."""
