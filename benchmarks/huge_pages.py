"""A stage-2 gradient on the CPU with large blocks in huge pages, as the command line asks glibc for, and without.

Processes of the two kinds take turns. Each reads prompts through the frozen opt-nano, computes the gradient of
their embeddings, and counts its page faults and the kernel's share of its time. Writes JSON.

    python benchmarks/huge_pages.py
    python benchmarks/huge_pages.py --prompts 2 --tokens 64 --out tiny.json    # a trial
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from allmrec_jax.cli import HUGE_PAGES


def measure(prompts: int, tokens: int, repeats: int) -> dict[str, float]:
    """Medians of this process's calls."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from allmrec_jax.pretrained.frozen_llm import load_llm

    llm, params = load_llm("opt-nano", "float32", "dtype", remat=False)
    width = llm.config.word_embed_proj_dim
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(prompts, tokens, width)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(tokens), (prompts, tokens))

    @jax.jit
    def gradient(embeds: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(llm.apply({"params": params}, x, positions)[0][:, -1] ** 2))(embeds)

    jax.block_until_ready(gradient(embeds))
    rows = []
    for _ in range(repeats):
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        jax.block_until_ready(gradient(embeds))
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        rows.append(
            [
                seconds,
                after.ru_utime - before.ru_utime,
                after.ru_stime - before.ru_stime,
                after.ru_minflt - before.ru_minflt,
            ]
        )
    names = ("seconds", "user_seconds", "kernel_seconds", "page_faults")
    return dict(zip(names, np.median(rows, axis=0).round(3).tolist(), strict=True))


@click.command()
@click.option("--prompts", default=32, show_default=True)
@click.option("--tokens", default=512, show_default=True, help="Of a prompt.")
@click.option("--repeats", default=5, show_default=True, help="Calls timed in a process.")
@click.option("--processes", default=3, show_default=True, help="Of each kind.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default: benchmarks/results/huge_pages.json")
@click.option("--child", is_flag=True, hidden=True)
def main(prompts: int, tokens: int, repeats: int, processes: int, out: Path | None, child: bool) -> None:
    """Time both kinds and write what was measured."""
    if child:
        print(json.dumps(measure(prompts, tokens, repeats)))
        return
    from allmrec_jax.runs import versions

    kinds: dict[str, list[Any]] = {"small": [], "huge": []}
    command = [
        sys.executable,
        __file__,
        "--child",
        f"--prompts={prompts}",
        f"--tokens={tokens}",
        f"--repeats={repeats}",
    ]
    for _ in range(processes):
        for kind, found in kinds.items():
            tunables = {"GLIBC_TUNABLES": HUGE_PAGES if kind == "huge" else ""}
            told = subprocess.run(command, env={**os.environ, **tunables}, check=True, capture_output=True, text=True)
            found.append(json.loads(told.stdout))
    medians = {
        kind: {name: sorted(row[name] for row in found)[len(found) // 2] for name in found[0]}
        for kind, found in kinds.items()
    }
    result = {
        "shape": {"llm": "opt-nano", "prompts": prompts, "tokens": tokens},
        "pages": medians,
        "small_over_huge": round(medians["small"]["seconds"] / medians["huge"]["seconds"], 3),
        "processes": kinds,
        "transparent_huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "threads": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }
    path = out or Path(__file__).parent / "results" / "huge_pages.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
