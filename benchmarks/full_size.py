"""OPT-6.7B with random weights on a GPU: training, ranking and generation, against the GPU's own ceiling and PyTorch.

Real weights change none of that. Prompts have ten titles of history and 20 candidates, titles as long as Amazon
Scientific's (in GPT-2's tokens, which are OPT's). Every side reads the same 64 prompts and counts their real tokens;
each runs in a process of its own, which has the GPU to itself, after a first round that compiles. Writes JSON:

    python benchmarks/full_size.py                          # all of it; a GPU with 40 GB or more
    python benchmarks/full_size.py --only ours --only checks
    python benchmarks/full_size.py --trial                  # a tiny model: every part runs on a CPU

Sides: ``ours``; ``official``, PyTorch and transformers in bfloat16 at batch 2 with logits everywhere and eager
attention, as the official code does but for its int8; ``equal``, the same at our best batch; ``best``, PyTorch with
SDPA, torch.compile, logits at the answers only, prompts sorted by length, a shared-prefix cache for ranking, and the
best of the batches tried. ``checks`` compares fused attention with plain, a resumed training with an unbroken one bit
for bit, and `allmrec plan` with what XLA lays out for the device.
"""

import dataclasses
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from full_size_world import LATENT_DIM, TRIAL, USER_DIM, World, random_params

from allmrec_jax.models.llm.opt import PUBLISHED, OPTConfig

SIDES = ("ours", "official", "equal", "best", "checks")


def parameter_count(config: OPTConfig) -> int:
    """N, tables included."""
    from allmrec_jax.models.llm.room import weight_bytes
    from allmrec_jax.sharding import MeshShape

    return weight_bytes(config, MeshShape(), 1)


def measured(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds of a first call, compilation included, and the median of the others; what runs out of memory says so."""
    try:
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    except Exception as error:  # of either library, each has its own
        message = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return {"failed": f"{type(error).__name__}: {message}"}  # type: ignore[dict-item]
    return {"first": round(seconds[0], 3), "seconds": round(float(np.median(seconds[1:])), 4)}


def rates(found: dict[str, Any], users: int, tokens: int) -> dict[str, Any]:
    """The same with users and real tokens per second."""
    if "seconds" in found:
        found["users_per_second"] = round(users / found["seconds"], 3)
        found["tokens_per_second"] = round(tokens / found["seconds"], 1)
    return found


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a side is asked.

    Attributes:
        world: the prompts.
        dtype: ``bfloat16`` or ``float32``.
        sizes: batches to try.
        repeats: rounds timed.
        new_tokens: to generate; random weights never end earlier.
        fixed: the batch of the sides ``official`` and ``equal``.
    """

    world: World
    dtype: str
    sizes: tuple[int, ...]
    repeats: int
    new_tokens: int
    fixed: int


def run_ours(trial: Trial) -> dict[str, Any]:
    """Training, ranking and generation at each batch, and the last two with int8 kernels at the largest."""
    import jax
    import jax.numpy as jnp

    from allmrec_jax.inference.decode import DecodeSettings
    from allmrec_jax.inference.llm import SoftTokens, respond
    from allmrec_jax.inference.rank import pack_answers
    from allmrec_jax.models.llm.int8 import quantize_params
    from allmrec_jax.models.llm.opt import OPT
    from allmrec_jax.models.projectors import init_params as init_projectors
    from allmrec_jax.training.stage2 import Frozen, make_optimizer, make_step
    from allmrec_jax.training.stage2_batches import Stage2Batch
    from allmrec_jax.training.stage2_settings import PRESETS
    from allmrec_jax.training.state import TrainState

    world, dtype = trial.world, jnp.dtype(trial.dtype)
    model, latents = OPT(world.config, dtype), jnp.asarray(world.latents)
    params = jax.block_until_ready(random_params(world.config, dtype))
    projectors = init_projectors(world.config.word_embed_proj_dim, USER_DIM, LATENT_DIM, jax.random.key(1))
    optimizer = make_optimizer(PRESETS["paper"], 1000)
    step, soft = make_step(model, optimizer), SoftTokens(projectors, latents)
    decode = DecodeSettings(max_new_tokens=trial.new_tokens)
    state = TrainState(jax.tree.map(jnp.copy, projectors), optimizer.init(projectors))

    def train(size: int) -> None:
        nonlocal state
        metrics = None
        for rows in world.batches(size, ordered=True):
            batch = Stage2Batch(world.prompts(rows, answers=True), jnp.asarray(world.users[rows]))
            state, metrics = step(state, Frozen(params, latents), batch)
        assert metrics is not None and np.isfinite(float(metrics["loss"]))

    def answer(size: int, weights: Any, *, rank: bool) -> None:
        found = []
        for rows in world.batches(size, ordered=True):
            given = (pack_answers(world.tables, world.candidates[rows]), None) if rank else (None, decode)
            prompts = world.prompts(rows, answers=False)
            found.append(respond(model, weights, soft, prompts, world.users[rows], *given)[0 if rank else 1])
        jax.block_until_ready(found)

    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "train": {}, "rank": {}, "generate": {}}
    for size in trial.sizes:
        count = world.count(size, ordered=True)
        result["train"][size] = rates(measured(functools.partial(train, size), trial.repeats), *count)
        for kind in ("rank", "generate"):
            work = functools.partial(answer, size, params, rank=kind == "rank")
            result[kind][size] = rates(measured(work, trial.repeats), *count)
        result.setdefault("peak_gib", {})[size] = peak_gib(jax.devices()[0].memory_stats())
    params = jax.jit(quantize_params, donate_argnums=0)(params)
    size = trial.sizes[-1]
    result["int8"] = {
        kind: rates(
            measured(functools.partial(answer, size, params, rank=kind == "rank"), trial.repeats),
            *world.count(size, ordered=True),
        )
        for kind in ("rank", "generate")
    }
    result["matmul_tflops"] = matmul_tflops(8192 if jax.default_backend() == "gpu" else 512, dtype)
    return result


def peak_gib(stats: dict[str, int] | None) -> float | None:
    """Of the process so far."""
    return round(stats["peak_bytes_in_use"] / 2**30, 2) if stats and "peak_bytes_in_use" in stats else None


def matmul_tflops(size: int, dtype: Any, repeats: int = 20) -> float:
    """The ceiling: one large square product after another."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size), dtype)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: (x @ a) * (1 / size), x))
    found = measured(lambda: jax.block_until_ready(chain(a)), 3)
    return round(2 * size**3 * repeats / found["seconds"] / 1e12, 2)


def run_torch(trial: Trial, side: str) -> dict[str, Any]:
    """PyTorch's sides."""
    import full_size_torch

    best = side == "best"
    found = full_size_torch.Peer(trial.world, trial.dtype, best=best, new_tokens=trial.new_tokens)
    sizes = trial.sizes if best else (trial.fixed,)
    result: dict[str, Any] = {"device": found.device_name, "train": {}, "rank": {}, "generate": {}}
    for size in sizes:
        count = trial.world.count(size, ordered=best)
        for kind, work in (("train", found.train), ("rank", found.rank), ("generate", found.generate)):
            # Reading 20 prompts for each user is slow: a few users tell.
            few = kind == "rank" and not best
            rows = list(trial.world.batches(size, ordered=best))[: max(1, 8 // size) if few else None]
            users, tokens = (size * len(rows), 0) if few else count
            result[kind][size] = rates(
                measured(functools.partial(work, rows), 1 if few else trial.repeats), users, tokens
            )
        result.setdefault("peak_gib", {})[size] = found.peak_gib()
    return result


def run_checks(trial: Trial) -> dict[str, Any]:
    """What must hold on the device, beside its speed."""
    import full_size_checks

    return {
        "attention": full_size_checks.attention(trial.dtype),
        "resume": full_size_checks.resume(trial.world, trial.dtype),
        "plan": full_size_checks.plans(trial.world.config, trial.dtype),
    }


def best_rate(side: dict[str, Any], kind: str, unit: str) -> tuple[float, Any]:
    """The highest rate over batches, and its batch."""
    found = {size: each[unit] for size, each in side[kind].items() if unit in each}
    return max(((rate, size) for size, rate in found.items()), default=(0.0, None))


def summary(sides: dict[str, Any], count: int) -> dict[str, Any]:
    """Shares of the ceiling, and how many times faster than each peer."""
    ours, result = sides.get("ours", {}), dict[str, Any]()
    if "matmul_tflops" not in ours:
        return {}
    for kind, unit, flops in (
        ("train", "tokens_per_second", 4),
        ("rank", "users_per_second", 0),
        ("generate", "users_per_second", 0),
    ):
        rate, size = best_rate(ours, kind, unit)
        result[kind] = {unit: rate, "batch": size}
        if flops:
            result[kind]["share_of_ceiling"] = round(flops * count * rate / 1e12 / ours["matmul_tflops"], 4)
        for peer in ("official", "equal", "best"):
            if peer in sides and (other := best_rate(sides[peer], kind, unit)[0]):
                result[kind][f"times_{peer}"] = round(rate / other, 2)
    return result


@click.command()
@click.option("--llm", type=click.Choice(list(PUBLISHED)), default="facebook/opt-6.7b", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(SIDES), help="A side to run; repeat.  [all]")
@click.option("--batch", "sizes", multiple=True, type=int, default=(2, 4, 8, 16), show_default=True)
@click.option("--users", default=64, show_default=True, help="Prompts.")
@click.option("--repeats", default=3, show_default=True, help="Rounds over all prompts that are timed.")
@click.option("--new-tokens", default=32, show_default=True, help="Generated for each user.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--trial", is_flag=True, help="A tiny model and few prompts.")
@click.option("--child", type=click.Choice(SIDES), hidden=True, help="Run this side here and write it to --out.")
@click.option("--fixed", default=2, hidden=True, help="Batch of the sides official and equal.")
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/full_size.json")
def main(
    llm: str,
    only: tuple[str, ...],
    sizes: tuple[int, ...],
    users: int,
    repeats: int,
    new_tokens: int,
    dtype: str,
    trial: bool,
    child: str | None,
    fixed: int,
    out: Path | None,
) -> None:
    """Time every side, each in a process of its own, and write what was measured."""
    config = TRIAL if trial else PUBLISHED[llm]
    path = out or Path(__file__).parent / "results" / "full_size.json"
    if child:
        asked = Trial(World(config, users), dtype, sizes, repeats, new_tokens, fixed)
        if child in ("ours", "checks"):
            found = {"ours": run_ours, "checks": run_checks}[child](asked)
        else:
            found = run_torch(asked, child)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return
    from allmrec_jax.runs import versions

    sides: dict[str, Any] = {}
    for side in SIDES:
        if only and side not in only:
            continue
        if side == "equal" and "ours" in sides:
            fixed = best_rate(sides["ours"], "train", "tokens_per_second")[1] or fixed
        given = ["--llm", llm, "--users", users, "--repeats", repeats, "--new-tokens", new_tokens, "--dtype", dtype]
        given += ["--fixed", 2 if side == "official" else fixed, *(["--trial"] if trial else [])]
        for size in sizes:
            given += ["--batch", size]
        sides[side] = in_process(side, given)
    result = {
        "llm": "a tiny model" if trial else llm,
        "parameters": parameter_count(config),
        "dtype": dtype,
        "users": users,
        "mean_tokens": round(float(World(config, users).lengths.mean()), 1),
        "new_tokens": new_tokens,
        "summary": summary(sides, parameter_count(config)),
        "sides": sides,
        "platform": platform.platform(),
        "versions": versions(),
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=2))
    print(path)


def in_process(side: str, given: list[Any]) -> Any:
    """One side's findings, from a process that has the device to itself; or what it said when it failed."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "found.json"
        environment = dict(os.environ)
        if side == "checks":
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
        elif side != "ours":
            environment["JAX_PLATFORMS"] = "cpu"  # what is NumPy's for us must not take the GPU's memory
        command = [sys.executable, __file__, "--child", side, "--out", out, *given]
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.splitlines()[-1:], "train": {}, "rank": {}, "generate": {}}
        return json.loads(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
