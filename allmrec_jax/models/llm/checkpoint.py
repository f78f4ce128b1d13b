"""Where each parameter of :class:`allmrec_jax.models.llm.opt.OPT` stands in a checkpoint in the Hugging Face format."""

from collections.abc import Iterator
from typing import NamedTuple

from allmrec_jax.models.llm.opt import POSITION_OFFSET, OPTConfig

PREFIXES = ("model.decoder.", "decoder.")
"""Before the keys, where ``OPTForCausalLM`` or ``OPTModel`` saved them."""

HEAD = "lm_head.weight"
"""The output layer: the word embeddings stored a second time, or not at all."""


class Leaf(NamedTuple):
    """One parameter of the Flax module and where it stands in the checkpoint.

    Attributes:
        path: in the tree of parameters.
        key: in the checkpoint, with ``{layer}`` where the parameter is stacked over layers.
        shape: in the checkpoint, of one layer.
        transposed: PyTorch's Linear holds [out, in], Flax's Dense [in, out].
    """

    path: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    transposed: bool = False

    def keys(self, config: OPTConfig) -> Iterator[tuple[int | None, str]]:
        """The checkpoint's keys of the parameter, without prefix, and the layer of each."""
        if self.path[0] != "layers":
            yield None, self.key
            return
        for layer in range(config.num_hidden_layers):
            yield layer, self.key.format(layer=layer)

    def stacked_shape(self, config: OPTConfig) -> tuple[int, ...]:
        """The shape of the Flax parameter, layers stacked."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return (config.num_hidden_layers, *shape) if self.path[0] == "layers" else shape


def plain(key: str) -> str:
    """A key without its prefix."""
    return next((key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)), key)


def layout(config: OPTConfig) -> list[Leaf]:
    """Every parameter of a model of this configuration."""
    hidden, ffn, embed = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    leaves = [
        Leaf(("embed_tokens", "embedding"), "embed_tokens.weight", (config.vocab_size, embed)),
        Leaf(
            ("embed_positions", "embedding"),
            "embed_positions.weight",
            (config.max_position_embeddings + POSITION_OFFSET, hidden),
        ),
    ]
    for name, module, inputs, outputs in (
        ("q_proj", "self_attn.q_proj", hidden, hidden),
        ("k_proj", "self_attn.k_proj", hidden, hidden),
        ("v_proj", "self_attn.v_proj", hidden, hidden),
        ("out_proj", "self_attn.out_proj", hidden, hidden),
        ("fc1", "fc1", hidden, ffn),
        ("fc2", "fc2", ffn, hidden),
    ):
        key = f"layers.{{layer}}.{module}"
        leaves.append(Leaf(("layers", name, "kernel"), f"{key}.weight", (outputs, inputs), transposed=True))
        leaves.append(Leaf(("layers", name, "bias"), f"{key}.bias", (outputs,)))
    norms: list[tuple[tuple[str, ...], str]] = [
        (("layers", name), f"layers.{{layer}}.{name}") for name in ("self_attn_layer_norm", "final_layer_norm")
    ]
    if config.do_layer_norm_before:
        norms.append((("final_layer_norm",), "final_layer_norm"))
    for path, key in norms:
        leaves.append(Leaf((*path, "scale"), f"{key}.weight", (hidden,)))
        leaves.append(Leaf((*path, "bias"), f"{key}.bias", (hidden,)))
    if config.projects:
        leaves.append(Leaf(("project_in", "kernel"), "project_in.weight", (hidden, embed), transposed=True))
        leaves.append(Leaf(("project_out", "kernel"), "project_out.weight", (embed, hidden), transposed=True))
    return leaves
