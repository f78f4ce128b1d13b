"""What the package does with a language model, done with one of every architecture that it knows."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_llm
import tiny_families
import tiny_llm
from tiny_families import MODEL_TYPES

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.attention import init_cache
from allmrec_jax.models.llm.families import FAMILIES, family_of, init_params
from allmrec_jax.models.llm.family import LanguageModel
from allmrec_jax.models.llm.int8 import quantize_params
from allmrec_jax.models.llm.lora import init_adapter, merge, variables
from allmrec_jax.models.llm.room import weight_bytes
from allmrec_jax.models.projectors import embed_prompts
from allmrec_jax.planning.stage2 import Work, kv_bytes
from allmrec_jax.pretrained.llm import load_checkpoint, save_checkpoint
from allmrec_jax.pretrained.peft import LoRA, load_adapter, save_adapter
from allmrec_jax.sharding import MeshShape, use_mesh
from allmrec_jax.training.stage2 import Frozen, answer_loss

TOLERANCE: Any = {"rtol": 1e-4, "atol": 1e-5}
"""Of float32 sums in another order, over three layers."""

MESH = MeshShape(fsdp=2, tensor=4)
"""It does not divide the two key-value heads of those that share them, and gathers what it stores in two parts."""

every = pytest.mark.parametrize("name", MODEL_TYPES)

one_of_each = pytest.mark.parametrize(
    "name", sorted({FAMILIES[name].load().module: name for name in reversed(MODEL_TYPES)}.values())
)
"""Of each module: what its variants differ in is tested by their parity with transformers."""


def rules(model: LanguageModel, mesh: MeshShape) -> sharding.Rules:
    return family_of(model.config).rules_on(model.config, mesh)


@partial(jax.jit, static_argnums=0)
def logits(model: LanguageModel, given: Any, ids: np.ndarray) -> jax.Array:
    embeds = model.apply(given, ids, method="embed")
    hidden, _ = model.apply(given, embeds, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
    return model.apply(given, hidden, method="logits")


def some_ids() -> np.ndarray:
    return np.random.default_rng(3).integers(3, 400, (2, 40)).astype(np.int32)


@every
def test_layout_and_rules_name_every_parameter(name: str) -> None:
    cfg = tiny_families.config(name)
    shapes = jax.eval_shape(partial(init_params, cfg), jax.random.key(0))
    leaves = {sharding.path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    family = family_of(cfg)
    assert {"/".join(leaf.path): leaf.stacked_shape(cfg) for leaf in family.layout(cfg)} == leaves
    for mesh in (MeshShape(), MESH):
        sharding.specs(family.rules_on(cfg, mesh), shapes)
        sharding.specs(family.rules_on(cfg, mesh), jax.eval_shape(quantize_params, shapes))
    assert set(family.tallrec) <= set(family.adapts) <= set(family.projections(cfg))


@one_of_each
def test_weights_and_cache_on_a_mesh_are_those_planned(name: str) -> None:
    model, params = tiny_families.llm(name)
    cfg = model.config
    for int8 in (False, True):
        with use_mesh(MESH):
            made = quantize_params(jax.tree.map(jnp.asarray, params)) if int8 else params
            placed = sharding.place(made, rules(model, MESH))
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        assert weight_bytes(cfg, MESH, 4, int8=int8) == held
    split = 1 if cfg.num_key_value_heads % MESH.tensor else MESH.tensor
    key = placed["layers"][family_of(cfg).key_values[0]]["kernel"]
    assert key.shape[-1] // key.sharding.shard_shape(key.shape)[-1] == split
    work = Work(cfg, MESH, batch=6, length=40, dtype="float32")
    assert kv_bytes(work, 40) == sum(leaf.size * 4 for leaf in jax.eval_shape(lambda: init_cache(cfg, 3, 40))) // split


@every
@pytest.mark.parametrize(("int8", "mesh"), [(False, None), (True, MESH)])
def test_files_are_read_as_they_were_written(name: str, int8: bool, mesh: MeshShape | None, tmp_path: Path) -> None:
    model, params = tiny_families.llm(name)
    save_checkpoint(tmp_path / "llm", model.config, params, tiny_llm.tokenizer())
    wanted = quantize_params(jax.tree.map(jnp.asarray, params)) if int8 else params
    with use_mesh(mesh):
        config, found = load_checkpoint(tmp_path / "llm", int8=int8)
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


@cache
def answered(name: str, mesh: MeshShape | None, *, remat: bool = False) -> tuple[np.ndarray, list[str], Any]:
    """Scores of three users' candidates, generated texts, and loss and gradients of a batch."""
    model, params = tiny_families.llm(name)
    soft = sharded_llm.soft()
    with use_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        placed = sharding.place(params, rules(model, mesh or MeshShape()))
        system = sharded_llm.recommender(model, placed, sharding.place(soft), batch_size=3)
        ((_, found),) = system.respond(*sharded_llm.questions(3))
        assert found.scores is not None and found.texts is not None
        model = model.clone(remat=remat)
        loss = jax.jit(jax.value_and_grad(lambda p, frozen, batch: answer_loss(model, p, frozen, batch)[0]))
        frozen = Frozen(placed, sharding.place(soft.latents))
        batch = sharding.place_batch(sharded_llm.batch(4))
        gradients = jax.device_get(sharding.on_mesh(loss)(sharding.place(soft.params), frozen, batch))
    return found.scores, found.texts, gradients


@one_of_each
def test_a_mesh_and_remat_give_what_one_device_gives(name: str) -> None:
    (scores, texts, (loss, gradient)), wanted = answered(name, MESH, remat=True), answered(name, None)
    np.testing.assert_allclose(scores, wanted[0], **TOLERANCE)
    assert texts == wanted[1]
    np.testing.assert_allclose(loss, wanted[2][0], rtol=1e-5)
    for found, one in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted[2][1]), strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@every
def test_ranking_and_generation_are_those_of_whole_passes(name: str) -> None:
    """Without a cache: each candidate's answer alone behind its prompt, and each new token behind all before."""
    model, params = tiny_families.llm(name)
    soft, given, (histories, candidates, users) = sharded_llm.soft(), {"params": params}, sharded_llm.questions(3)
    system = sharded_llm.recommender(model, params, soft, batch_size=3)
    scores, texts, _ = answered(name, None)
    prompts = system.prompts(histories[:1], candidates[:1])
    embeds = embed_prompts(model, params, soft.params, prompts, jnp.asarray(users[:1]), soft.latents)
    start = int(prompts.target_start[0])

    @jax.jit
    def after(tokens: jax.Array) -> jax.Array:
        words = model.apply(given, tokens[None], method="embed")
        x = jnp.concatenate([embeds[:, :start], words], axis=1)
        hidden, _ = model.apply(given, x, jnp.arange(x.shape[1])[None])
        return jax.nn.log_softmax(model.apply(given, hidden[0, start - 1 :], method="logits"))

    room = 16  # of the longest answer; what is read behind a token does not reach it
    for column, item in enumerate(candidates[0]):
        answer = system.tables.answer(item)
        each = np.asarray(after(jnp.asarray(np.pad(answer, (0, room - len(answer))))))
        found = np.take_along_axis(each[: len(answer)], answer[:, None], axis=1).sum()
        np.testing.assert_allclose(scores[0, column], found, **TOLERANCE)

    tokens: list[int] = []
    while len(tokens) < system.decode.max_new_tokens and (not tokens or tokens[-1] != 2):
        padded = jnp.asarray(tokens + [0] * (room - len(tokens)), jnp.int32)
        tokens.append(int(after(padded)[len(tokens)].argmax()))
    assert tiny_llm.tokenizer().decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False) == texts[0]


@one_of_each
def test_int8_computes_with_the_rounded_kernels(name: str) -> None:
    model, params = tiny_families.llm(name)
    stored = quantize_params(jax.tree.map(jnp.asarray, params))
    rounded = dict(stored["layers"])
    for key, leaves in rounded.items():
        if "kernel" in leaves:
            kernel = leaves["kernel"].astype(jnp.float32) * leaves["kernel_scale"][:, None]
            rounded[key] = {part: kernel if part == "kernel" else leaves[part] for part in params["layers"][key]}
    found = logits(model, {"params": stored}, some_ids())
    wanted = logits(model, {"params": {**stored, "layers": rounded}}, some_ids())
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)  # the scale is applied behind the sum
    assert np.abs(found - logits(model, {"params": params}, some_ids())).max() > 1e-3


def adapter_of(model: LanguageModel, targets: tuple[str, ...]) -> Any:
    fresh = init_adapter(model.config, 3, jax.random.key(1), targets)
    return jax.tree.map(lambda x: np.asarray(x) + 0.05, fresh)


@one_of_each
def test_adapters_beside_and_merged_are_one(name: str, tmp_path: Path) -> None:
    """Every projection that may be adapted, square or not; and through PEFT's files."""
    model, params = tiny_families.llm(name)
    family = family_of(model.config)
    adapter, plain = adapter_of(model, family.adapts), logits(model, {"params": params}, some_ids())
    beside = logits(model, variables(params, adapter, 2.0), some_ids())
    merged = logits(model, {"params": merge(params, adapter, 2.0)}, some_ids())
    np.testing.assert_allclose(beside, merged, rtol=1e-3, atol=1e-3)  # three times as large as the weights' own
    assert np.abs(beside - plain).max() > 0.1
    each = jax.jit(jax.grad(lambda low: jnp.sum(logits(model, variables(params, low, 2.0), some_ids()) ** 2)))(adapter)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(each)), "every projection takes part"
    save_adapter(tmp_path / "adapter", model.config, LoRA(adapter, 6.0), dropout=0.0, base_model="m")
    found = load_adapter(tmp_path / "adapter", model.config)
    assert found.scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.adapter), adapter)


@pytest.mark.parametrize(("one", "other"), [("opt", "llama"), ("llama", "opt")])
def test_an_adapter_of_another_family_is_refused(one: str, other: str, tmp_path: Path) -> None:
    model = tiny_families.llm(one)[0]
    save_adapter(tmp_path / "a", model.config, LoRA(adapter_of(model, ("q_proj",)), 6.0), dropout=0.0, base_model="m")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: weight .* is missing"):
        load_adapter(tmp_path / "a", tiny_families.config(other))


def test_soft_tokens_have_the_width_of_words() -> None:
    for name in MODEL_TYPES:
        model, params = tiny_families.llm(name)
        words = model.apply({"params": params}, some_ids(), method="embed")
        assert words.shape[-1] == model.config.embed_dim == sharded_llm.HIDDEN
