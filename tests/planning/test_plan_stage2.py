"""`allmrec plan` against arrays that are made and programs that are compiled."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_llm
import tiny_families
from click.testing import CliRunner

from allmrec_jax import sharding
from allmrec_jax.cli import allmrec
from allmrec_jax.errors import UserError
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import SoftTokens, respond
from allmrec_jax.inference.rank import Answers
from allmrec_jax.models.llm.attention import init_cache
from allmrec_jax.models.llm.families import family_of, init_params
from allmrec_jax.models.llm.family import LMConfig
from allmrec_jax.models.llm.int8 import quantize_params
from allmrec_jax.models.llm.opt import OPT, OPT_RULES, PUBLISHED, OPTConfig
from allmrec_jax.models.llm.room import GIB, weight_bytes
from allmrec_jax.models.projectors import init_params as init_projectors
from allmrec_jax.planning.devices import DEVICES, LATENT_DIM, USER_DIM
from allmrec_jax.planning.preflight import choose_mesh
from allmrec_jax.planning.stage2 import (
    ITEMS,
    Work,
    exchanges,
    flops,
    kv_bytes,
    make_plan,
    memory,
    nearest_choices,
    nearest_fit,
)
from allmrec_jax.prompts import PromptBatch
from allmrec_jax.sharding import MeshShape, use_mesh
from allmrec_jax.training.stage2 import Frozen, make_optimizer, make_step
from allmrec_jax.training.stage2_batches import Stage2Batch
from allmrec_jax.training.stage2_settings import PRESETS
from allmrec_jax.training.state import TrainState


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def config(hidden: int, heads: int, layers: int, vocabulary: int = 2048) -> OPTConfig:
    return OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        word_embed_proj_dim=hidden,
    )


def gated(hidden: int, heads: int, shared: int, layers: int) -> LMConfig:
    """A model whose units are gated and whose query heads share key-value heads."""
    sizes = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "head_dim": hidden // heads}
    changes = {"num_attention_heads": heads, "num_key_value_heads": shared, "num_hidden_layers": layers}
    return tiny_families.config("llama", **sizes, **changes, vocab_size=4096, tie_word_embeddings=True)


def ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def prompts_of(work: Work) -> Any:
    """Shapes of the prompts."""
    rows, tokens, answer = work.rows, (work.rows, work.length), (work.rows, work.answer)
    return PromptBatch(
        *(ints(*tokens),) * 3, ints(rows, ITEMS), *(ints(rows),) * 2, ints(*answer), floats(*answer), ints(rows)
    )


def projectors_of(work: Work) -> Any:
    """Shapes of the projectors."""
    make = partial(init_projectors, work.llm.embed_dim, USER_DIM, LATENT_DIM)
    return jax.eval_shape(make, jax.random.key(0))


def params_of(work: Work) -> Any:
    """Shapes of the language model."""
    return jax.eval_shape(partial(init_params, work.llm), jax.random.key(0))


def step_inputs(work: Work) -> tuple[TrainState, Frozen, Stage2Batch]:
    """Shapes of what the training step is given."""
    projectors = projectors_of(work)
    moments = jax.eval_shape(make_optimizer(PRESETS["paper"], 10).init, projectors)
    batch: Any = Stage2Batch(prompts_of(work), floats(work.rows, USER_DIM))
    return TrainState(projectors, moments), Frozen(params_of(work), floats(501, LATENT_DIM)), batch


def compiled_step(work: Work) -> Any:
    """The training step, compiled for shapes alone."""
    model = family_of(work.llm).module(work.llm, jnp.float32, work.remat)
    step: Any = make_step(model, make_optimizer(PRESETS["paper"], 10))
    return step.lower(*step_inputs(work)).compile()


def compiled_answer(work: Work) -> Any:
    """Ranking and generation, compiled for shapes alone: on a mesh, for without one a CPU takes the layers apart."""
    answers: Any = Answers(*(ints(work.rows, work.candidates),) * 2, *(ints(work.rows, work.columns),) * 4)
    soft = SoftTokens(projectors_of(work), floats(501, LATENT_DIM))
    users, decode = floats(work.rows, USER_DIM), DecodeSettings(max_new_tokens=work.new_tokens)
    ask: Any = respond
    with use_mesh(work.mesh), sharding.scope():
        model = OPT(work.llm, jnp.float32)
        return ask.lower(model, params_of(work), soft, prompts_of(work), users, answers, decode).compile()


def test_weights_are_exact() -> None:
    model, params = sharded_llm.llm()
    for mesh in (MeshShape(), MeshShape(data=2, tensor=4), MeshShape(fsdp=2, tensor=4), MeshShape(fsdp=8)):
        with use_mesh(mesh):
            placed = sharding.place(params, OPT_RULES)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        assert weight_bytes(model.config, mesh, 4) == held
        with use_mesh(mesh):
            placed = sharding.place(quantize_params(jax.tree.map(jnp.asarray, params)), OPT_RULES)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        assert weight_bytes(model.config, mesh, 4, int8=True) == held


def test_cache_and_optimizer_are_exact() -> None:
    work = Work(config(64, 4, 3), MeshShape(data=2, tensor=2), batch=6, length=40, dtype="float32")
    cache = jax.eval_shape(lambda: init_cache(work.llm, 6, 40))
    assert kv_bytes(work, 40) == sum(leaf.size * 4 for leaf in cache) // 4  # batch and heads are split
    params = init_projectors(64, USER_DIM, LATENT_DIM, jax.random.key(0))
    moments = make_optimizer(PRESETS["paper"], 10).init(params)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((params, moments)) if leaf.ndim)
    assert memory(work)["optimizer"] == held


@pytest.mark.parametrize(
    "work",
    [
        Work(config(384, 6, 5, 4096), MeshShape(), batch=3, length=320, dtype="float32", fused=False),
        Work(config(320, 10, 3), MeshShape(), batch=1, length=640, dtype="float32", fused=False),
        Work(config(448, 7, 6), MeshShape(), batch=4, length=192, dtype="float32", fused=False, remat=True),
        Work(gated(384, 6, 2, 5), MeshShape(), batch=3, length=320, dtype="float32", fused=False),
    ],
    ids=["384", "320", "448-remat", "gated units, shared keys"],
)
def test_estimates_on_shapes_they_were_not_fitted_on(work: Work) -> None:
    """Against XLA's own count of the step's temporaries; 15% is what issue 4 asks for."""
    found = compiled_step(work).memory_analysis().temp_size_in_bytes
    kinds = memory(work)
    assert abs(kinds["activations"] + kinds["temporaries"] - found) < 0.15 * found


def answering(llm: OPTConfig, **sizes: int) -> Work:
    return Work(llm, MeshShape(), dtype="float32", fused=False, train=False, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "work",
    [
        answering(config(384, 6, 2), batch=2, length=1024, candidates=2, new_tokens=8),
        answering(config(128, 2, 20), batch=2, length=896, candidates=2, new_tokens=16),
        answering(config(384, 6, 5, 4096), batch=3, length=320),
        answering(config(192, 6, 3, 48000), batch=3, length=128, candidates=12),
        answering(config(448, 7, 6), batch=4, length=128, candidates=4, new_tokens=224),
        answering(config(192, 3, 12, 24000), batch=1, length=256, new_tokens=96),
    ],
    ids=["reading", "copying", "ranking", "scoring", "generating", "one-row"],
)
def test_estimates_of_answers_on_shapes_they_were_not_fitted_on(work: Work) -> None:
    """Against XLA's own count, each where another part of the program takes most; 15% as for the training step."""
    found = compiled_answer(work).memory_analysis().temp_size_in_bytes
    kinds = memory(work)
    assert abs(kinds["kv_cache"] + kinds["temporaries"] - found) < 0.15 * found


def test_flops_of_a_compiled_step() -> None:
    """One layer, for XLA counts the body of a scan once; what it adds is all that is no matrix product."""
    work = Work(config(512, 4, 1), MeshShape(), batch=2, length=128, dtype="float32", fused=False)
    found = compiled_step(work).cost_analysis()["flops"]
    assert 0.95 * found < flops(work) < 1.01 * found


def test_exchanges() -> None:
    """As many as test_meshes counts in the compiled program."""
    cfg = PUBLISHED["facebook/opt-125m"]
    (tensor,) = exchanges(Work(cfg, MeshShape(tensor=2), batch=2, length=128))
    assert tensor.number == 4 * 12
    assert tensor.bytes == 4 * 12 * 2 * 128 * 768 * 2  # a ring of two sends as much as the array holds
    gathered, gradients = exchanges(Work(cfg, MeshShape(fsdp=2), batch=2, length=128))
    assert gathered.number == 12 * 12
    assert gathered.bytes == 2 * 12 * (12 * 768**2) * 2 // 2
    assert gradients.number == 1


def test_the_papers_set_ups() -> None:
    """OPT-6.7B has 6.66 billion parameters: 12.4 GiB in bfloat16."""
    cfg, a6000 = PUBLISHED["facebook/opt-6.7b"], DEVICES["a6000"]
    one = make_plan(Work(cfg, MeshShape(), batch=4, length=1024), a6000)
    assert round(one.bytes["weights"] / GIB, 1) == 12.4
    assert one.fits
    four = make_plan(Work(cfg, MeshShape(tensor=4), batch=4, length=1024), a6000)
    assert 3.9 < one.bytes["weights"] / four.bytes["weights"] < 4  # norms and positions are copied
    # 2 FLOPs forward and 2 backward for each of 6.4 billion weights of the layers and 4096 tokens, and attention.
    assert 4 * 6.44e9 * 4096 < one.flops < 1.2 * 4 * 6.44e9 * 4096


def test_nearest_that_fits() -> None:
    plan = make_plan(Work(PUBLISHED["facebook/opt-66b"], MeshShape(), batch=1, length=1024), DEVICES["h100"])
    assert not plan.fits
    other = nearest_fit(plan)
    assert other is not None and other.fits and other.work.mesh == MeshShape(tensor=2)

    # 72 heads split eight ways but not sixteen; half the bytes fit on the same devices.
    plan = make_plan(Work(PUBLISHED["facebook/opt-66b"], MeshShape(tensor=8), batch=1, length=1024), DEVICES["tpu-v5e"])
    assert nearest_choices(plan) == ["--mesh fsdp=2,tensor=8 --remat", "--remat --llm-weights int8"]


def test_int8_is_gathered_as_stored() -> None:
    work = Work(PUBLISHED["facebook/opt-125m"], MeshShape(fsdp=2), batch=2, length=128, train=False)
    (plain,), (stored,) = exchanges(work), exchanges(dataclasses.replace(work, int8=True))
    assert stored.bytes == plain.bytes // 2


def test_what_does_not_work_is_refused() -> None:
    cfg = PUBLISHED["facebook/opt-125m"]
    with pytest.raises(UserError, match="the 12 attention heads of this model; nearest: --mesh data=2,tensor=4"):
        make_plan(Work(cfg, MeshShape(tensor=8)), DEVICES["h100"])
    with pytest.raises(UserError, match="3000 tokens are more than the model's 2048 positions; lower --length by 952"):
        make_plan(Work(cfg, MeshShape(), length=3000), DEVICES["h100"])


def test_chosen_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mesh(None) == MeshShape(data=8)
    assert choose_mesh("facebook/opt-6.7b") == MeshShape(data=8)  # a CPU does not say what it has
    monkeypatch.setattr("allmrec_jax.planning.preflight.device_memory", lambda: 24 * GIB)
    assert choose_mesh("facebook/opt-6.7b") == MeshShape(data=8)
    assert choose_mesh("facebook/opt-30b") == MeshShape(data=2, tensor=4)
    with pytest.raises(UserError, match=r"facebook/opt-66b has 122\.\d GiB of weights; 8 devices of 16 GiB"):
        monkeypatch.setattr("allmrec_jax.planning.preflight.device_memory", lambda: 16 * GIB)
        choose_mesh("facebook/opt-66b")


def test_command() -> None:
    asked = ["plan", "--llm", "facebook/opt-6.7b", "--mesh", "tensor=4", "--device", "a6000", "--json"]
    found = json.loads(CliRunner().invoke(allmrec, asked, catch_exceptions=False).stdout)
    assert found["fits"] and found["nearest"] == []
    assert found["bytes_per_device"]["total"] == sum(
        count for kind, count in found["bytes_per_device"].items() if kind != "total"
    )
    assert np.isclose(found["seconds_at_least"]["compute"], found["flops"] / 4 / 154.8e12)
    shown = CliRunner().invoke(allmrec, [*asked[:-1], "--infer"], catch_exceptions=False).stdout
    assert "kv_cache" in shown and "fits" in shown
    with pytest.raises(UserError, match="unknown; known: a6000, rtx4090"):
        CliRunner().invoke(allmrec, ["plan", "--device", "v100"], catch_exceptions=False)
