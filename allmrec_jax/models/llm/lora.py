"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank terms beside a frozen model's projections, as functions of arrays.

An adapter is a dictionary ``{projection: {"a": [L, I, R], "b": [L, R, O]}}``, its layers stacked as the model's. The
projection of x becomes ``x W + (alpha / rank) · dropout(x) A B``. In training the term is computed beside the frozen
weight (:func:`variables`), so that no gradient of a frozen matrix is ever formed; afterwards it is added to the weight
(:func:`merge`), and the language model is an ordinary one again.

Shapes: L layers, I inputs and O outputs of a projection, R rank.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import LMConfig

Adapter = dict[str, dict[str, Float[Array, "L ..."]]]


def init_adapter(config: LMConfig, rank: int, key: jax.Array, targets: Sequence[str] | None = None) -> Adapter:
    """A fresh adapter, float32: A uniform within ±1/√I and B zero as in PEFT, so that nothing changes at first.

    Args:
        config: of the language model.
        rank: R.
        key: of the random draw.
        targets: the projections; by default those that TALLRec adapts in this family.
    """
    family, layers = family_of(config), config.num_hidden_layers
    shapes = family.projections(config)
    targets = family.tallrec if targets is None else targets
    adapter: Adapter = {}
    for name, part in zip(targets, jax.random.split(key, len(targets)), strict=True):
        inputs, outputs = shapes[name]
        bound = inputs**-0.5
        adapter[name] = {
            "a": jax.random.uniform(part, (layers, inputs, rank), jnp.float32, -bound, bound),
            "b": jnp.zeros((layers, rank, outputs), jnp.float32),
        }
    return adapter


def variables(params: Any, adapter: Adapter, scale: float) -> dict[str, Any]:
    """What a language model is applied to: its frozen weights and the adapter beside them.

    Args:
        params: of the language model.
        adapter: the low-rank terms; gradients are taken with respect to these.
        scale: alpha / rank.
    """
    scaled = {name: {"a": low["a"], "b": scale * low["b"]} for name, low in adapter.items()}
    return {"params": params, "lora": {"layers": scaled}}


def merge(params: Any, adapter: Adapter, scale: float) -> dict[str, Any]:
    """The language model's parameters with the terms added to the weights; all other arrays are the same objects."""
    layers = dict(params["layers"])
    for name, low in adapter.items():
        kernel = layers[name]["kernel"]
        product = jnp.einsum("ldr,lro->ldo", low["a"], low["b"], precision=jax.lax.Precision.HIGHEST)
        summed = jnp.asarray(kernel, jnp.float32) + scale * product
        layers[name] = {**layers[name], "kernel": summed.astype(kernel.dtype)}
    return {**params, "layers": layers}
