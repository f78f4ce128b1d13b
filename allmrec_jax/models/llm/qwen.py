"""Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115), whose queries, keys and values have biases, and Qwen 3 (arXiv
2505.09388), which norms queries and keys instead.
"""

import dataclasses
from typing import Any, ClassVar

from allmrec_jax.models.limits import Epsilon, Size, Token
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

_ENDOFTEXT = 151643
"""Pads, begins and ends the texts of the base models."""


@dataclasses.dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """A Qwen 2 or 2.5."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    vocab_size: Size = 151936
    intermediate_size: Size = 22016
    max_position_embeddings: Size = 32768
    rms_norm_eps: Epsilon = 1e-6
    pad_token_id: Token = _ENDOFTEXT
    bos_token_id: Token = _ENDOFTEXT
    eos_token_id: Token | list[Token] = _ENDOFTEXT

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that add a bias."""
        return ("q_proj", "k_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """A dense Qwen 3."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    qk_norm: ClassVar[bool] = True
    own_head_dim: ClassVar[int | None] = 128

    attention_bias: bool = False

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that add a bias."""
        return ATTENTION if self.attention_bias else ()


def _size(hidden: int, units: int, layers: int, heads: int, key_values: int, *, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": units,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
        "rope": Rope(rope_theta=1e6),
    }


def _qwen3(*sizes: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(**{**_size(*sizes, tied=tied), "head_dim": 128}, max_position_embeddings=32768)


PUBLISHED: dict[str, Qwen2Config] = {
    "Qwen/Qwen2-0.5B": Qwen2Config(**_size(896, 4864, 24, 14, 2, tied=True), max_position_embeddings=131072),
    "Qwen/Qwen2.5-0.5B": Qwen2Config(**_size(896, 4864, 24, 14, 2, tied=True)),
    "Qwen/Qwen2.5-1.5B": Qwen2Config(**_size(1536, 8960, 28, 12, 2, tied=True), max_position_embeddings=131072),
    "Qwen/Qwen2.5-3B": Qwen2Config(**_size(2048, 11008, 36, 16, 2, tied=True)),
    "Qwen/Qwen2.5-7B": Qwen2Config(
        **{**_size(3584, 18944, 28, 28, 4, tied=False), "vocab_size": 152064}, max_position_embeddings=131072
    ),
}
"""Published sizes of Qwen 2 and 2.5, by hub name."""

PUBLISHED3: dict[str, Qwen3Config] = {
    "Qwen/Qwen3-0.6B-Base": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "Qwen/Qwen3-1.7B-Base": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "Qwen/Qwen3-4B-Base": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "Qwen/Qwen3-8B-Base": _qwen3(4096, 12288, 36, 32, 8, tied=False),
}
"""Published sizes of Qwen 3, by hub name."""

QWEN2 = Family(
    title="Qwen 2",
    model_types=("qwen2",),
    config=Qwen2Config,
    module=Decoder,
    layout=layout,
    prefixes=PREFIXES,
    rules=RULES,
    variants={"hidden_act": "silu", "use_sliding_window": False},
    adapts=PROJECTIONS,
    published=PUBLISHED,
    buffers=BUFFERS,
    gguf=GGUFForm("qwen2"),
    kept_units=4.5,
)
"""Qwen 2 and 2.5."""

QWEN3 = dataclasses.replace(
    QWEN2, title="Qwen 3", model_types=("qwen3",), config=Qwen3Config, published=PUBLISHED3, gguf=GGUFForm("qwen3")
)
"""Qwen 3."""
