"""Stage 2 and inference at the size of a published OPT with random weights: does it fit, does it run, how fast.

Real weights change none of that. Makes the frozen parameters on the device, then times one stage-2 training step
(projectors' gradients through the whole language model), ranking of 20 candidates and generation, on prompts of
ten history titles and 20 candidates of 16 random tokens each. Writes JSON.

    python benchmarks/full_size.py                                      # facebook/opt-6.7b in bfloat16: a 40 GB GPU
    python benchmarks/full_size.py --llm facebook/opt-125m --batch 2    # a CPU
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import SoftTokens, respond
from allmrec_jax.inference.rank import pack_answers
from allmrec_jax.models.opt import OPT, PUBLISHED, OPTConfig, init_params
from allmrec_jax.models.projectors import init_params as init_projectors
from allmrec_jax.prompts import STYLES, Pieces, PromptTables, TitleTable, build_prompts, prompt_text
from allmrec_jax.training.run import versions
from allmrec_jax.training.stage2 import PRESETS, Batch, Frozen, Stage2State, make_optimizer, make_step

USER_DIM, LATENT_DIM, ITEMS, TITLE = 50, 128, 500, 16


class NoTokenizer(PromptTables):
    """Prompt tables whose fixed text is random tokens, one for each word: no tokenizer is at hand."""

    def pieces(self, style: Any, user_slot: bool, item_slots: bool) -> Pieces:
        """As many tokens as the pieces have words."""
        texts = prompt_text(style, user_slot=user_slot, item_slots=item_slots)
        return Pieces(*(np.arange(len(text.split()) or 1, dtype=np.int32) + 100 for text in texts))

    @property
    def end(self) -> np.ndarray:
        """The closing quote and the end of text."""
        return np.array([113, self.eos], np.int32)


def random_params(config: OPTConfig, dtype: jnp.dtype) -> Any:
    """Parameters of the checkpoint's layout, made on the device in ``dtype`` leaf by leaf: never all in float32."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    return jax.tree.unflatten(tree, [draw(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds of the first call, compilation included, and the median of the others."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return {"first": round(seconds[0], 3), "median": round(float(np.median(seconds[1:])), 4)}


@click.command()
@click.option("--llm", type=click.Choice(list(PUBLISHED)), default="facebook/opt-6.7b", show_default=True)
@click.option("--batch", default=4, show_default=True, help="Prompts at once.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--remat/--no-remat", default=False, show_default=True, help="Recompute layers in the backward pass.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default: benchmarks/results/full_size.json")
def main(llm: str, batch: int, repeats: int, dtype: str, remat: bool, out: Path | None) -> None:
    """Time stage 2 and inference at full size with random weights."""
    config = PUBLISHED[llm]
    model = OPT(config, jnp.dtype(dtype), remat)
    params = random_params(config, jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    titles = TitleTable(
        rng.integers(200, config.vocab_size, ITEMS * TITLE).astype(np.int32),
        np.concatenate([[0], np.arange(ITEMS + 1) * TITLE]),
        0,
        0,
    )
    tables = NoTokenizer(None, titles, config.max_position_embeddings)
    histories = rng.integers(1, ITEMS + 1, (batch, 10)).astype(np.int32)
    candidates = np.stack([1 + rng.choice(ITEMS, 20, replace=False) for _ in range(batch)]).astype(np.int32)
    users = rng.normal(size=(batch, USER_DIM)).astype(np.float32)
    latents = jnp.asarray(rng.random((ITEMS + 1, LATENT_DIM)), jnp.float32)
    style = STYLES["neutral"]

    projectors = init_projectors(config.word_embed_proj_dim, USER_DIM, LATENT_DIM, jax.random.key(1))
    optimizer = make_optimizer(PRESETS["paper"], 1000)
    step = make_step(model, optimizer)
    prompts = build_prompts(tables, style, histories, candidates, candidates[:, 0], soft=True)
    state = Stage2State(jax.tree.map(jnp.copy, projectors), optimizer.init(projectors))
    losses = []

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, Frozen(params, latents), Batch(prompts, jnp.asarray(users)))
        losses.append(metrics["loss"])
        return state

    asked = build_prompts(tables, style, histories, candidates, soft=True)
    answers, soft = pack_answers(tables, candidates), SoftTokens(projectors, latents)
    decode = DecodeSettings(max_new_tokens=32)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    result = {
        "llm": llm,
        "parameters": count,
        "dtype": dtype,
        "batch": batch,
        "prompt_tokens": int(prompts.lengths.max()),
        "remat": remat,
        "seconds": {
            "train step": timed(train, repeats),
            "rank": timed(lambda: respond(model, params, soft, asked, users, answers, None), repeats),
            "generate": timed(lambda: respond(model, params, soft, asked, users, None, decode), repeats),
        },
        "loss": [round(float(loss), 4) for loss in losses],
        "memory": {k: v for k, v in (jax.devices()[0].memory_stats() or {}).items() if k in ("peak_bytes_in_use",)},
        "device": jax.devices()[0].device_kind,
        "platform": platform.platform(),
        "versions": versions(),
    }
    seconds = result["seconds"]["train step"]["median"]
    result["train_tflops"] = round(4 * count * int(prompts.lengths.sum()) / seconds / 1e12, 2)
    path = out or Path(__file__).parent / "results" / "full_size.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
