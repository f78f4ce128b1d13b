"""Kernels in int8: the rounding, gradients, low-rank terms, shards, and what is kept for the backward pass."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_llm
import tiny_llm

from allmrec_jax import sharding
from allmrec_jax.models.llm.int8 import LEVELS, product, quantize, quantize_params
from allmrec_jax.models.llm.lora import init_adapter, variables
from allmrec_jax.models.llm.opt import OPT, OPT_RULES
from allmrec_jax.pretrained.llm import load_checkpoint, save_checkpoint
from allmrec_jax.sharding import MeshShape, use_mesh
from allmrec_jax.training.stage2 import Frozen, answer_loss


def restored(params: Any) -> Any:
    """The weights that an int8 model computes with, in float32."""
    layers = {
        name: {"kernel": x["kernel"] * x["kernel_scale"][:, None], "bias": x["bias"]} if "kernel" in x else x
        for name, x in jax.tree.map(lambda x: np.asarray(x, np.float32), params["layers"]).items()
    }
    return {**params, "layers": layers}


def test_rounded_to_the_nearest_of_255_levels() -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 50, 7)).astype(np.float32)
    kernel[1, :, 3] = 0
    found = quantize(jnp.asarray(kernel))
    assert found["kernel"].dtype == jnp.int8
    assert found["kernel_scale"].shape == (2, 7)
    scale = np.asarray(found["kernel_scale"])[:, None]
    back = np.asarray(found["kernel"], np.float32) * scale
    assert np.abs(back - kernel).max() <= scale.max() / 2 * 1.0001  # float32
    assert (np.abs(back - kernel) <= scale / 2 * 1.0001).all()
    assert np.abs(np.asarray(found["kernel"])).max(axis=1).tolist() == [[LEVELS] * 7, [*[LEVELS] * 3, 0, *[LEVELS] * 3]]


def test_product_and_gradient() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 6), (6, 4)))
    stored = quantize(kernel)
    weight = stored["kernel"].astype(jnp.float32) * stored["kernel_scale"][None]

    def loss(x: jax.Array, multiply: Any) -> jax.Array:
        return jnp.sum(jnp.sin(multiply(x)))

    found = jax.value_and_grad(lambda x: loss(x, lambda x: product(x, stored["kernel"], stored["kernel_scale"])))(x)
    wanted = jax.value_and_grad(lambda x: loss(x, lambda x: x @ weight))(x)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # float32, sums of six


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm, params = sharded_llm.llm()
    path = tmp_path_factory.mktemp("llm") / "llm"
    save_checkpoint(path, llm.config, params, tiny_llm.tokenizer())
    return path


@pytest.mark.parametrize("mesh", [None, MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_loaded_layer_by_layer_to_the_rules_shards(saved: Path, mesh: MeshShape | None) -> None:
    wanted = quantize_params(jax.tree.map(jnp.asarray, sharded_llm.llm()[1]))
    with use_mesh(mesh):
        _, found = load_checkpoint(saved, int8=True)
        placed = sharding.place(wanted, OPT_RULES)

    def check(leaf: jax.Array, other: jax.Array) -> None:
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)

    jax.tree.map(check, found, placed)


def loss_and_gradient(params: Any, mesh: MeshShape | None = None) -> Any:
    model, _ = sharded_llm.llm()

    def loss(projectors: Any, frozen: Frozen, batch: Any) -> jax.Array:
        return answer_loss(model, projectors, frozen, batch)[0]

    with use_mesh(mesh):
        soft = sharding.place(sharded_llm.soft())
        frozen = Frozen(sharding.place(params, OPT_RULES), soft.latents)
        batch = sharding.place_batch(sharded_llm.batch(4))
        return jax.device_get(sharding.on_mesh(jax.jit(jax.value_and_grad(loss)))(soft.params, frozen, batch))


def small(params: Any) -> Any:
    """At a third of their size the weights are near those of a fresh model, whose gradients amplify no rounding."""
    return jax.tree.map(lambda x: jnp.asarray(x) / 3, params)


def assert_close(found: Any, wanted: Any) -> None:
    """Float32, sums in another order."""
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_model_on_a_mesh_computes_with_the_rounded_weights() -> None:
    stored = quantize_params(small(sharded_llm.llm()[1]))
    assert_close(loss_and_gradient(stored, MeshShape(data=2, fsdp=2, tensor=2)), loss_and_gradient(restored(stored)))


def test_low_rank_terms_beside_int8() -> None:
    llm, params = sharded_llm.llm()
    stored = quantize_params(small(params))
    adapter = init_adapter(llm.config, 2, jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 90, (2, 9))

    @jax.jit
    def loss(adapter: Any, params: Any) -> jax.Array:
        given = variables(params, adapter, 2.0)
        hidden, _ = llm.apply(given, llm.apply(given, ids, method="embed"), jnp.broadcast_to(jnp.arange(9), (2, 9)))
        return jnp.sum(jnp.square(hidden))

    found, wanted = (jax.value_and_grad(loss)(adapter, each) for each in (stored, restored(stored)))
    assert_close(found, wanted)


def test_no_copy_in_another_type_is_kept_for_the_backward_pass() -> None:
    """Thirty-two layers' kernels in float32 would be four times the weights; one layer's is in use at a time."""
    config = tiny_llm.config(hidden_size=64, ffn_dim=256, word_embed_proj_dim=64, num_hidden_layers=32)
    llm, kernels = OPT(config), 32 * 12 * 64**2
    stored = jax.eval_shape(lambda: quantize_params(tiny_llm.init_params(config, jax.random.key(0))))
    embeds = jax.ShapeDtypeStruct((1, 4, 64), jnp.float32)

    def loss(embeds: jax.Array, params: Any) -> jax.Array:
        return jnp.sum(llm.apply({"params": params}, embeds, jnp.arange(4)[None])[0])

    found = jax.jit(jax.grad(loss)).lower(embeds, stored).compile().memory_analysis()
    assert found is not None
    assert found.temp_size_in_bytes < kernels  # in float32 they are four times as many
