"""Longformer's windowed attention against attention over all tokens, from 512 to 4,096 tokens.

Times the forward pass of one attention of RECFORMER's shape (window 64, 12 heads of 64) both ways and counts the
compiler's floating-point operations. Windowed cost grows with the length, dense cost with its square. Writes JSON.

    python benchmarks/recformer_attention.py
"""

import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.models.longformer import window_attention
from allmrec_jax.runs import versions


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of every token to every token."""
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v)


def measure(call: Callable[..., Any], arguments: tuple, repeats: int) -> dict[str, float]:
    """Operations, seconds to compile, and the median seconds of a call."""
    started = time.perf_counter()
    compiled = jax.jit(call).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    analysis = compiled.cost_analysis() or {}
    return {
        "gflop": round(analysis["flops"] / 1e9, 4),
        "compile_seconds": round(compile_seconds, 2),
        "seconds": round(float(np.median(seconds[1:])), 5),
    }


@click.command()
@click.option("--lengths", default="512,1024,2048,4096", show_default=True)
@click.option("--window", default=64, show_default=True, help="Both sides together.")
@click.option("--heads", default=12, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/recformer_attention.json")
def main(lengths: str, window: int, heads: int, batch: int, repeats: int, out: Path | None) -> None:
    """Time windowed and dense attention at several lengths."""
    rows: list[dict[str, Any]] = []
    for length in map(int, lengths.split(",")):
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.normal(size=(batch, length, heads, 64)), jnp.float32) for _ in range(3))
        arguments = (q, k, v, jnp.ones((batch, length), bool))
        windowed = measure(partial(window_attention, half=window // 2), arguments, repeats)
        rows.append({"tokens": length, "windowed": windowed, "dense": measure(dense_attention, arguments, repeats)})
        print(json.dumps(rows[-1]), flush=True)
    first, last = rows[0], rows[-1]
    growth = {
        name: {measured: round(last[name][measured] / first[name][measured], 2) for measured in ("gflop", "seconds")}
        for name in ("windowed", "dense")
    }
    result = {
        "window": window,
        "heads": heads,
        "batch": batch,
        "rows": rows,
        "growth": {"tokens": last["tokens"] / first["tokens"], **growth},
        "load_average": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "versions": versions(),
    }
    path = out or Path(__file__).parent / "results" / "recformer_attention.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["growth"]))


if __name__ == "__main__":
    main()
