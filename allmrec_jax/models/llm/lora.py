"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank terms beside frozen projections of OPT, as functions of arrays.

An adapter is a dictionary ``{projection: {"a": [L, D, R], "b": [L, R, D]}}`` whose layers are stacked as OPT's are. The
projection of x becomes ``x W + (alpha / rank) · dropout(x) A B``. In training the term is computed beside the frozen
weight (:func:`variables`), so that no gradient of a frozen matrix is ever formed; afterwards it is added to the weight
(:func:`merge`), and the language model is an ordinary one again.

Shapes: L layers, D hidden size, R rank.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allmrec_jax.models.llm.opt import OPTConfig

Adapter = dict[str, dict[str, Float[Array, "L ..."]]]

TARGETS = ("q_proj", "v_proj")
"""The projections that TALLRec adapts."""


def init_adapter(config: OPTConfig, rank: int, key: jax.Array, targets: Sequence[str] = TARGETS) -> Adapter:
    """A fresh adapter, float32: A uniform within ±1/√D and B zero as in PEFT, so that nothing changes at first."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    bound = hidden**-0.5
    return {
        name: {
            "a": jax.random.uniform(part, (layers, hidden, rank), jnp.float32, -bound, bound),
            "b": jnp.zeros((layers, rank, hidden), jnp.float32),
        }
        for name, part in zip(targets, jax.random.split(key, len(targets)), strict=True)
    }


def variables(params: Any, adapter: Adapter, scale: float) -> dict[str, Any]:
    """What :class:`allmrec_jax.models.llm.opt.OPT` is applied to: frozen weights and the adapter beside them.

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
