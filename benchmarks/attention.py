"""OPT's attention without a fused kernel against `jax.nn.dot_product_attention`, forward and with gradients.

The shapes are opt-nano's and opt-125m's at prompts of real length. Both sides are compared before they are timed, and
their calls take turns.

    python benchmarks/attention.py
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.models.llm.attention import causal_attention
from allmrec_jax.runs import versions

SHAPES = {
    "opt-nano, 32 prompts of 320 tokens": (32, 320, 4, 64),
    "opt-nano, 16 prompts of 704 tokens": (16, 704, 4, 64),
    "opt-125m, 2 prompts of 650 tokens": (2, 650, 12, 64),
}


def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """As `models/llm/attention.py` calls it: [B, T, H, Dh] in and out."""
    return causal_attention(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)


def stock(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's own."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


def with_gradients(attention: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Gradients of a scalar with respect to queries, keys and values."""
    return jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v) ** 2), argnums=(0, 1, 2))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/attention.json"))
@click.option("--repeats", default=9, show_default=True)
def main(out: Path, repeats: int) -> None:
    """Times both and writes the medians as JSON."""
    found: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        inputs = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
        np.testing.assert_allclose(ours(*inputs), stock(*inputs), atol=1e-5)  # float32 sums in another order
        for kind, wrap in {"forward": lambda f: f, "with gradients": with_gradients}.items():
            calls = {"ours": jax.jit(wrap(ours)), "stock": jax.jit(wrap(stock))}
            seconds: dict[str, list[float]] = {side: [] for side in calls}
            for repeat in range(repeats + 1):
                for side, call in calls.items():
                    start = time.perf_counter()
                    jax.block_until_ready(call(*inputs))
                    if repeat:  # the first call compiles
                        seconds[side].append(time.perf_counter() - start)
            medians = {side: float(np.median(times)) for side, times in seconds.items()}
            ratio = round(medians["stock"] / medians["ours"], 2)
            found.setdefault(name, {})[kind] = {
                **{s: round(m, 5) for s, m in medians.items()},
                "stock_over_ours": ratio,
            }
            print(f"{name}, {kind}: {medians['ours']:.4f} s, stock {medians['stock']:.4f} s, ratio {ratio}")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    out.write_text(json.dumps({"attention": found, "versions": versions(), **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
