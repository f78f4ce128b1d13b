"""One of two processes that train and evaluate together; run by test_two_processes.py.

python two_processes.py MODEL OUT INDEX PORT STEPS
"""

import json
import logging
import sys
from pathlib import Path

import jax
import optax

jax.config.update("jax_num_cpu_devices", 2)
sys.path.append(str(Path(__file__).parents[1]))

import sharded_llm  # noqa: E402

from allmrec_jax import sharding  # noqa: E402
from allmrec_jax.models.llm.opt import OPT  # noqa: E402
from allmrec_jax.pretrained import weights  # noqa: E402
from allmrec_jax.pretrained.llm import load_checkpoint  # noqa: E402
from allmrec_jax.runs import Run  # noqa: E402
from allmrec_jax.training.loop import LoopSettings, train_loop  # noqa: E402
from allmrec_jax.training.metrics import MetricsLogger  # noqa: E402
from allmrec_jax.training.stage2 import Frozen, make_step  # noqa: E402
from allmrec_jax.training.stage2_batches import pad_batch  # noqa: E402
from allmrec_jax.training.stage2_settings import PRESETS  # noqa: E402
from allmrec_jax.training.state import TrainState  # noqa: E402


def train_and_ask(model_path: Path, out: Path, steps: int) -> None:
    """Trains to ``steps``, saving each, from where the run is; then ranks, generates and writes what came of it."""
    read = 0
    plain = weights._open_safetensors

    def counting(path: Path) -> list[weights.Stored]:
        def counted(stored: weights.Stored) -> weights.Stored:
            def slices(index: tuple[slice, ...]):
                nonlocal read
                array = stored.read(index)
                read += array.size
                return array

            return stored._replace(read=slices)

        return [counted(stored) for stored in plain(path)]

    weights._open_safetensors = counting
    config, params = load_checkpoint(model_path)
    llm, soft = OPT(config), sharded_llm.soft()
    # Adam's default epsilon makes whole steps of the signs of gradients that are nothing but rounding.
    optimizer = optax.adam(1e-3, eps=1.0)
    frozen = Frozen(params, sharding.place(soft.latents))
    step = sharding.on_mesh(make_step(llm, optimizer))
    run = Run.open(out, "data", "stage2", PRESETS["paper"], 0, "hash", {}, resume=True)
    with MetricsLogger(run.path, steps) as log:
        state, _ = train_loop(
            run,
            sharding.place(TrainState(soft.params, optimizer.init(soft.params))),
            lambda state, batch: step(state, frozen, batch),
            lambda index: sharding.place_batch(pad_batch(sharded_llm.batch(3 + index))),
            LoopSettings(steps, log_every=1, save_every=1),
            resume=True,
            log=log,
        )
    asked = sharded_llm.recommender(llm, params, soft._replace(params=state.params, latents=frozen.latents), 3)
    held = sum(
        size
        for leaf in jax.tree.leaves(params)
        for size in {str(shard.index): shard.data.size for shard in leaf.addressable_shards}.values()
    )
    found = {
        "texts": asked.generate(*sharded_llm.questions(4)),
        "scores": asked.rank(*sharded_llm.questions(4)).tolist(),
        "read": read,
        "held": held,
        "saved": run.steps(),
    }
    (out / f"found-{jax.process_index()}.json").write_text(json.dumps(found))
    print(f"done {steps}")
    run.finish({"steps": steps})


if __name__ == "__main__":
    model, out, index, port, steps = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with jax.numpy_dtype_promotion("standard"):
        if index == "alone":
            train_and_ask(Path(model), Path(out), int(steps))
        else:
            with sharding.several_processes(f"localhost:{port},{index}/2"), sharding.use_mesh("fsdp=2,tensor=2"):
                train_and_ask(Path(model), Path(out), int(steps))
