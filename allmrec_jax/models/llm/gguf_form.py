"""How a family's models stand in a GGUF file, the single-file format of llama.cpp."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

NAMES = MappingProxyType(
    {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "blk.{layer}.attn_norm": "layers.{layer}.input_layernorm",
        "blk.{layer}.attn_q": "layers.{layer}.self_attn.q_proj",
        "blk.{layer}.attn_k": "layers.{layer}.self_attn.k_proj",
        "blk.{layer}.attn_v": "layers.{layer}.self_attn.v_proj",
        "blk.{layer}.attn_output": "layers.{layer}.self_attn.o_proj",
        "blk.{layer}.attn_q_norm": "layers.{layer}.self_attn.q_norm",
        "blk.{layer}.attn_k_norm": "layers.{layer}.self_attn.k_norm",
        "blk.{layer}.ffn_norm": "layers.{layer}.post_attention_layernorm",
        "blk.{layer}.ffn_gate": "layers.{layer}.mlp.gate_proj",
        "blk.{layer}.ffn_up": "layers.{layer}.mlp.up_proj",
        "blk.{layer}.ffn_down": "layers.{layer}.mlp.down_proj",
        "output": "lm_head",
    }
)
"""Tensors of decoders like Llama, without ``.weight`` or ``.bias``, and the modules of their checkpoints."""

_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}


@dataclasses.dataclass(frozen=True)
class GGUFForm:
    """How the models of a family stand in a GGUF file.

    Attributes:
        architecture: the file's ``general.architecture``.
        names: the checkpoint's module of each tensor's, with ``{layer}``.
        norm_offset: what the norms' scales are stored above the checkpoint's.
        interleaved: modules whose rows the file holds with the two numbers of a rotated pair side by side.
        derived: gives more of a ``config.json`` from what the file's metadata gave of it.
    """

    architecture: str
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: NAMES)
    norm_offset: float = 0.0
    interleaved: tuple[str, ...] = ()
    derived: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The object of a ``config.json`` from the file's metadata, whose keys are without the architecture's name."""
        config = {key: values[name] for name, key in _KEYS.items() if name in values}
        if width := values.get("attention.key_length", values.get("rope.dimension_count")):
            config["head_dim"] = width
        kind = values.get("rope.scaling.type", "none")
        if kind != "none":
            scaling = {"rope_type": kind, "factor": values.get("rope.scaling.factor")}
            config["rope_scaling"] = scaling
            if length := values.get("rope.scaling.original_context_length"):
                scaling["original_max_position_embeddings"] = length
        return {**config, **self.derived(config)}
