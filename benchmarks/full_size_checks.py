"""What full_size.py checks beside speed: attention, resuming, and `allmrec plan` against what is used."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from full_size_world import LATENT_DIM, TRIAL, USER_DIM, World, random_params

from allmrec_jax.models.llm.attention import causal_attention
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPT, PUBLISHED, OPTConfig
from allmrec_jax.models.projectors import init_params as init_projectors
from allmrec_jax.planning.devices import Device as PlannedDevice
from allmrec_jax.planning.stage2 import ITEMS, Work, make_plan
from allmrec_jax.prompts import PromptBatch
from allmrec_jax.runs import Run
from allmrec_jax.sharding import MeshShape
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger
from allmrec_jax.training.stage2 import Frozen, make_optimizer, make_step
from allmrec_jax.training.stage2_batches import Stage2Batch
from allmrec_jax.training.stage2_settings import PRESETS
from allmrec_jax.training.state import TrainState


def attention(dtype: str) -> dict[str, float]:
    """The device's attention and its gradients against float32 on the same numbers: largest error by the largest value.

    On a GPU in bfloat16 that is cuDNN's, elsewhere the blocks of queries.
    """
    rng = np.random.default_rng(0)
    q, k, v, out = (jnp.asarray(rng.normal(size=(2, 320, 4, 128)), jnp.dtype(dtype)) for _ in range(4))
    fused = jax.default_backend() == "gpu" and dtype == "bfloat16"

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if fused:
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        return causal_attention(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

    def both(attend: Any, *inputs: jax.Array) -> list[np.ndarray]:
        value, pull = jax.vjp(attend, *inputs[:3])
        return [np.asarray(x, np.float32) for x in (value, *pull(inputs[3].astype(value.dtype)))]

    exact = both(plain, *(x.astype(jnp.float32) for x in (q, k, v, out)))
    found = both(jax.jit(ours), q, k, v, out)
    names = ("out", "dq", "dk", "dv")
    errors = {
        name: float(np.abs(one - other).max() / np.abs(other).max())
        for name, one, other in zip(names, found, exact, strict=True)
    }
    return {"fused": fused, **errors}


def resume(world: World, dtype: str) -> dict[str, bool]:
    """Whether four steps and two steps with two more from a checkpoint end alike, bit for bit; a small model.

    A GPU needs deterministic kernels for it, which full_size.py asks XLA for.
    """
    config = TRIAL
    small = World(config, len(world.histories))
    model = OPT(config, jnp.dtype(dtype))
    frozen = Frozen(random_params(config, jnp.dtype(dtype)), jnp.asarray(small.latents))
    optimizer = make_optimizer(PRESETS["paper"], 4)
    step = make_step(model, optimizer)

    def batch_at(index: int) -> Stage2Batch:
        rows = np.arange(2 * index, 2 * index + 2) % len(small.histories)
        return Stage2Batch(small.prompts(rows, answers=True), jnp.asarray(small.users[rows]))

    def train(out: Path, steps: int) -> Any:
        params = init_projectors(config.word_embed_proj_dim, USER_DIM, LATENT_DIM, jax.random.key(1))
        state = TrainState(params, optimizer.init(params))
        run = Run.open(out, "data", "stage2", PRESETS["paper"], 0, "hash", {}, resume=True)
        with MetricsLogger(run.path, steps, quiet=True) as log:
            loop = LoopSettings(steps, log_every=1, save_every=2)
            last, _ = train_loop(
                run, state, lambda state, batch: step(state, frozen, batch), batch_at, loop, resume=True, log=log
            )
        return jax.device_get(last)

    with tempfile.TemporaryDirectory() as directory:
        unbroken = train(Path(directory) / "unbroken", 4)
        train(Path(directory) / "broken", 2)
        resumed = train(Path(directory) / "broken", 4)
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (unbroken, resumed)), strict=True)]
    return {"bit_for_bit": all(same)}


def plans(config: OPTConfig, dtype: str) -> list[dict[str, Any]]:
    """Bytes by kind, planned and as XLA lays them out for this device, for three shapes; and FLOPs."""
    shapes = [(config, 2, 128), (config, 4, 64), (config, 2, 256)]
    if config != TRIAL:
        small, middle = PUBLISHED["facebook/opt-125m"], PUBLISHED["facebook/opt-1.3b"]
        shapes = [(small, 8, 512), (middle, 4, 1024), (config, 4, 704)]
    return [_plan(cfg, batch, length, dtype) for cfg, batch, length in shapes]


def _plan(config: OPTConfig, batch: int, length: int, dtype: str) -> dict[str, Any]:
    fused = jax.default_backend() == "gpu"
    here = PlannedDevice(1024, 1, 1, 1, fused=fused)
    work = Work(config, MeshShape(), batch, length, train=True, dtype=dtype)
    planned = make_plan(work, here)
    optimizer = make_optimizer(PRESETS["paper"], 10)
    projectors = partial(init_projectors, config.word_embed_proj_dim, USER_DIM, LATENT_DIM)
    state = jax.eval_shape(lambda key: (p := projectors(key), optimizer.init(p)), jax.random.key(0))
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes)

    def of(kind: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)

    ints, floats = partial(of, jnp.int32), partial(of, jnp.float32)
    prompts = PromptBatch(
        *(ints(batch, length),) * 3,
        ints(batch, ITEMS),
        *(ints(batch),) * 2,
        ints(batch, work.answer),
        floats(batch, work.answer),
        ints(batch),
    )
    step: Any = make_step(OPT(config, jnp.dtype(dtype)), optimizer)
    given = Frozen(params, floats(501, LATENT_DIM)), Stage2Batch(prompts, floats(batch, USER_DIM))
    found = step.lower(TrainState(*state), *given).compile().memory_analysis()
    kinds = planned.bytes
    estimate = kinds["activations"] + kinds["temporaries"]
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return {
        "hidden": config.hidden_size,
        "batch": batch,
        "length": length,
        "weights": {"planned": kinds["weights"], "found": weights},
        "activations and temporaries": {
            "planned": estimate,
            "found": found.temp_size_in_bytes,
            "planned_over_found": round(estimate / found.temp_size_in_bytes, 3),
        },
    }
