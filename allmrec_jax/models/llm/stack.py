"""What the layers of every language model have in common: they are stacked under a scan, and their projections adapt.

A layer is a Linen module ``block(x, cache, *rest) -> (x, cache)`` with the attributes ``dtype`` and ``lora_dropout``.

Shapes: B batch, T new tokens, D hidden size, O outputs.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allmrec_jax import sharding
from allmrec_jax.models.llm.int8 import SCALE, Dense


def unstacked(tree: Any) -> list[Any]:
    """The layers of stacked weights or caches, each a tree of arrays of its own."""
    return [jax.tree.map(itemgetter(index), tree) for index in range(len(jax.tree.leaves(tree)[0]))]


def scanned(
    block: type[nn.Module], model: Any, rules: sharding.Rules, in_axes: Sequence[Any] = (0, nn.broadcast, nn.broadcast)
) -> Any:
    """The class of ``model``'s layers: ``block`` scanned over its stacked weights.

    Args:
        block: one layer.
        model: the module in whose ``setup`` the layers are made; its ``remat`` and ``dtype`` hold for them.
        rules: where the model's parameters lie on a mesh.
        in_axes: of the layer's arguments behind ``x``: 0 for what is stacked, broadcast for what all layers share.
    """
    block = nn.remat(block, prevent_cse=False) if model.remat else block
    if sharding.gathers() and not model.is_initializing():
        block = _gathering(block, model.dtype, rules)
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=tuple(in_axes),
        length=model.config.num_hidden_layers,
    )


def _gathering(block: type[nn.Module], dtype: jnp.dtype, rules: sharding.Rules) -> Any:
    """The layer, its weights gathered over ``fsdp`` where it runs, and again in the backward pass: never kept."""

    def gather(variables: Any) -> Any:
        layer = jax.tree.map_with_path(cast, variables["params"])
        return {"params": sharding.gathered(layer, rules, "layers/", stacked=True)}

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        # int8 is gathered as it is stored, which is what makes it small.
        stored = x.dtype == jnp.int8 or sharding.path_name(path).endswith(SCALE)
        return x if stored else x.astype(dtype)

    # The constraints that gather are the only ones in a layer; all else is kept as it would be without this.
    return nn.remat(
        nn.map_variables(block, "params", trans_in_fn=gather),
        prevent_cse=False,
        policy=lambda primitive, *_, **__: primitive.name != "sharding_constraint",
    )


def one_by_one(
    block: nn.Module, layers: Sequence[Any], x: Float[Array, "B T D"], caches: Any, *rest: Any, each: Sequence[Any] = ()
) -> tuple[Float[Array, "B T D"], list[Any]]:
    """What the scan computes, by a loop over :func:`unstacked` weights and caches; ``block`` has no parent.

    ``each`` holds what every layer has of its own beside its cache.
    """
    written = []
    for index, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
        x, cache = block.apply({"params": layer}, x, cache, *each[index : index + 1], *rest)
        written.append(cache)
    return x, written


def projected(
    block: Any, name: str, features: int, x: Float[Array, "B T D"], *, use_bias: bool = True
) -> Float[Array, "B T O"]:
    """The projection ``name`` of a layer, called inside it, and the low-rank term beside it where there is one."""
    out = Dense(features, use_bias=use_bias, dtype=block.dtype, name=name)(x)
    if not block.has_variable("lora", name):
        return out
    low = block.get_variable("lora", name)
    x = nn.Dropout(block.lora_dropout, deterministic=not block.has_rng("dropout"))(x)
    return out + ((x.astype(jnp.float32) @ low["a"]) @ low["b"]).astype(block.dtype)
