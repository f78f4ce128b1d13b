"""`allmrec plan --stage1` against arrays that are made and programs that are compiled."""

import json
import math
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from jax.sharding import PartitionSpec as P

from allmrec_jax import sharding
from allmrec_jax.cli import allmrec
from allmrec_jax.errors import UserError
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.text_encoder import TextEncoder, TextEncoderConfig, init_params
from allmrec_jax.planning.devices import DEVICES, LATENT_DIM, USER_DIM
from allmrec_jax.planning.stage1 import Stage1Work, exchanges, flops, make_plan, memory, nearest_choices
from allmrec_jax.sharding import MeshShape, use_mesh
from allmrec_jax.training.stage1 import Stage1Model, make_optimizer, make_step
from allmrec_jax.training.stage1_batches import Stage1Batch
from allmrec_jax.training.stage1_settings import PRESETS
from allmrec_jax.training.state import CountedState


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def encoder(hidden: int, heads: int, layers: int, vocabulary: int = 2048, ratio: int = 4) -> TextEncoderConfig:
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ratio * hidden,
    )


def compiled_step(work: Stage1Work) -> Any:
    """The training step, compiled for shapes alone, where items of a batch are all distinct."""

    def shape(dtype: Any, *sizes: int, spec: P = P()) -> Any:  # noqa: B008 - never changed
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.sharding_of(spec, sizes))

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: shape(leaf.dtype, *leaf.shape), tree)

    width, key = work.encoder.hidden_size, jax.random.key(0)
    alignment, module = Alignment(USER_DIM, width, LATENT_DIM), TextEncoder(work.encoder)
    vectors = (jnp.zeros((1, USER_DIM)), jnp.zeros((1, width)))
    params = {
        "alignment": jax.eval_shape(alignment.init, key, *vectors)["params"],
        "encoder": jax.eval_shape(partial(init_params, work.encoder), key),
    }
    optimizer = make_optimizer(PRESETS["paper"], 10)
    with use_mesh(work.mesh if work.mesh.size > 1 else None), sharding.scope():
        ints, floats = (partial(shape, dtype, 1, spec=P(None, sharding.AXES)) for dtype in (jnp.int32, jnp.float32))
        users, texts = work.batch, 2 * work.batch
        batch = Stage1Batch(
            items=floats(texts, USER_DIM),
            ids=ints(texts, work.length),
            lengths=ints(texts),
            texts=None,
            users=floats(users, USER_DIM),
            positives=ints(users),
            negatives=ints(users),
            weights=floats(users),
        )
        state = CountedState(placed(params), placed(jax.eval_shape(optimizer.init, params)), shape(jnp.int32))
        holder: Any = SimpleNamespace(model=module)
        step: Any = make_step(Stage1Model(alignment, holder, PRESETS["paper"]), optimizer, 0)
        return step.lower(state, batch).compile()


def test_weights_and_optimizer_are_exact() -> None:
    """DistilBERT base has 66,362,880 parameters."""
    distilbert = Stage1Work(TextEncoderConfig(), MeshShape())
    autoencoders = 2 * LATENT_DIM * (USER_DIM + 768) + 2 * LATENT_DIM + USER_DIM + 768
    assert distilbert.trained == 66_362_880 + autoencoders
    work = Stage1Work(encoder(64, 4, 3), MeshShape(), batch=2, length=16)
    found, kinds = compiled_step(work).memory_analysis(), memory(work)
    counts_and_batch = 4 * (4 * (USER_DIM + 16 + 1) + 2 * (USER_DIM + 3) + 3)
    assert abs(found.argument_size_in_bytes - kinds["weights"] - kinds["optimizer"] - counts_and_batch) < 64


@pytest.mark.parametrize(
    "work",
    [
        Stage1Work(encoder(384, 6, 1), MeshShape(), batch=6, length=128),
        Stage1Work(encoder(192, 3, 5, ratio=2), MeshShape(), batch=12, length=48),
        Stage1Work(encoder(320, 10, 2, 30000), MeshShape(), batch=1, length=160),
    ],
    ids=["384", "192", "320"],
)
def test_estimates_on_shapes_they_were_not_fitted_on(work: Stage1Work) -> None:
    """Against XLA's own count of the step's temporaries; 15% as for stage 2."""
    found = compiled_step(work).memory_analysis().temp_size_in_bytes
    kinds = memory(work)
    assert abs(kinds["activations"] + kinds["temporaries"] - found) < 0.15 * found


def test_flops_of_a_compiled_step() -> None:
    """What XLA adds is all that is no matrix product."""
    work = Stage1Work(encoder(512, 8, 2), MeshShape(), batch=1, length=256)
    found = compiled_step(work).cost_analysis()["flops"]
    assert 0.95 * found < flops(work) < 1.01 * found


def test_exchanges() -> None:
    """All bytes that the compiled program reduces over the devices; those of no gradient are a batch's vectors."""
    work = Stage1Work(encoder(256, 4, 1), MeshShape(data=2), batch=4, length=16)
    reducing = re.findall(r" = (.*?) all-reduce\(", compiled_step(work).as_text())
    shapes = [shape.split(",") for result in reducing for shape in re.findall(r"f32\[([\d,]*)\]", result)]
    reduced = sum(4 * math.prod(int(size) for size in shape if size) for shape in shapes)
    (gradients,) = exchanges(work)
    assert 0 < reduced - gradients.bytes < 4 * 4 * work.batch * (USER_DIM + LATENT_DIM)  # a ring of two sends it once


def test_what_does_not_fit() -> None:
    work = Stage1Work(TextEncoderConfig(), MeshShape(), batch=512, length=512)
    assert nearest_choices(make_plan(work, DEVICES["a6000"])) == ["--batch 32"]
    with pytest.raises(UserError, match="reads 512 tokens of a text at most; lower --length to 512"):
        make_plan(Stage1Work(TextEncoderConfig(), MeshShape(), length=513), DEVICES["h200"])


def test_command() -> None:
    asked = ["plan", "--stage1", "--device", "h200", "--samples", "1000", "--epochs", "2", "--mesh", "data=2"]
    found = json.loads(CliRunner().invoke(allmrec, [*asked, "--json"], catch_exceptions=False).stdout)
    assert found["steps"] == 2 * 32
    seconds = found["seconds_at_least"]
    assert np.isclose(seconds["compute"], found["flops"] / 2 / 989e12)
    assert np.isclose(seconds["run"], 64 * seconds["step"])
    shown = CliRunner().invoke(allmrec, asked, catch_exceptions=False).stdout
    assert "for 64 steps" in shown and "fits" in shown
    for options, message in {
        ("--stage1", "--infer"): "--train/--infer means nothing with --stage1",
        ("--samples", "3"): "--samples needs --stage1",
    }.items():
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(allmrec, ["plan", *options], catch_exceptions=False)
