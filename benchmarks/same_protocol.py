"""Train the official SASRec and ours on the same data by the same protocol, and compare Hit@1, NDCG@10 and speed.

Same: the data set and its split, the batch size and how users are drawn, Adam, the validation users and their
candidates, early stopping on NDCG@10, the test users and their 20 candidates, the float32 arithmetic on the CPU. Each
system's own: its model, initialisation, sampler and step, in a process of its own; the official ones are imported from
a clone. Five seeds each, in turn. Writes what was measured as JSON.

    python benchmarks/same_protocol.py --official ../A-LLMRec --data data/amazon-scientific   # hours on 2 cores
    python benchmarks/same_protocol.py --official … --data … --seeds 1 --epochs 2 --max-users 500   # a small one

Exit code 1 where the 95% interval of the difference in Hit@1 (over users, averaged over seeds) leaves ±0.02.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np

LIMIT = 0.02
DIM, BLOCKS, HEADS, LENGTH, DROPOUT = 50, 2, 1, 50, 0.5
BATCH, RATE, BETA2 = 128, 1e-3, 0.98
EVALUATE_EVERY, PATIENCE = 5, 4
ROWS = 256


class Asked(NamedTuple):
    """Users to rank candidates for; the target is the first candidate."""

    histories: np.ndarray
    """[U, T], left-padded with 0."""
    candidates: np.ndarray
    """[U, K]."""


class Task(NamedTuple):
    """What both systems get; arrays only, so that it travels to another process.

    ``sequences`` are the training items of each user, ``users`` how many users the data set has.
    """

    data: str
    sequences: list[list[int]]
    items: int
    valid: Asked
    test: Asked
    epochs: int


class System(Protocol):
    """One system in training."""

    def epoch(self) -> None:
        """Trains ⌊U/B⌋ batches."""
        ...

    def state(self) -> Any:
        """The parameters, to come back to."""
        ...

    def load(self, state: Any) -> None:
        """Comes back to them."""
        ...

    def scores(self, asked: Asked) -> np.ndarray:
        """[U, K], without dropout."""
        ...


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of the first candidate, 1 is best; ties count against it."""
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(axis=1)


def ndcg10(rank: np.ndarray) -> np.ndarray:
    """NDCG@10 of each user."""
    return np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0.0)


def train(system: System, task: Task) -> dict[str, Any]:
    """The protocol: early stopping on the validation users' NDCG@10, then the test users' ranks."""
    best, best_epoch, best_state, stale, seconds = -1.0, 0, system.state(), 0, []
    for epoch in range(1, task.epochs + 1):
        started = time.perf_counter(), time.process_time()
        system.epoch()
        seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        if epoch % EVALUATE_EVERY and epoch != task.epochs:
            continue
        value = float(ndcg10(ranks(system.scores(task.valid))).mean())
        if value > best:
            best, best_epoch, best_state, stale = value, epoch, system.state(), 0
        elif (stale := stale + 1) >= PATIENCE:
            break
    system.load(best_state)
    rank = ranks(system.scores(task.test))
    # The first epoch compiles.
    wall, cpu = np.median(np.asarray(seconds[1:] or seconds), axis=0)
    return {
        "epochs": len(seconds),
        "best_epoch": best_epoch,
        "valid_ndcg@10": best,
        "ranks": rank,
        "seconds_per_epoch": float(wall),
        "cpu_seconds_per_epoch": float(cpu),
    }


def run_ours(task: Task, seed: int) -> dict[str, Any]:
    """Our training step, sampling as the official code does; the rest of the settings are preset ``paper``."""
    import jax

    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.models.cf.sasrec import SASRecCF
    from allmrec_jax.rng import jax_key
    from allmrec_jax.settings import resolve
    from allmrec_jax.training import cf

    dataset = load_dataset(task.data)
    settings = resolve(cf.PRESETS["sasrec"], "paper", {"sampling": "with-replacement"})
    model, data = settings.module(dataset.num_users, dataset.num_items), cf.load_train_data(dataset, settings)
    steps = cf.steps_per_epoch(data, settings, dataset.num_users)

    class Ours:
        def __init__(self) -> None:
            params = cf.ARCHITECTURES[type(model)].init_params(model.config, jax_key(seed, "cf-init"))
            self.trained = cf.CFState(params, cf.make_optimizer(settings).init(params))
            self.number = 0

        def epoch(self) -> None:
            key = jax_key(seed, "cf", self.number)
            self.trained, metrics = cf.train_epoch(model, settings, steps, self.trained, data, key)
            jax.block_until_ready(metrics)
            self.number += 1

        def state(self) -> Any:
            return jax.device_get(self.trained.params)

        def load(self, state: Any) -> None:
            self.trained = self.trained._replace(params=state)

        def scores(self, asked: Asked) -> np.ndarray:
            found = SASRecCF(model.config, self.trained.params)
            return in_batches(lambda *rows: np.asarray(found.score(None, *rows)), asked)

    return train(Ours(), task)


def run_official(task: Task, seed: int, clone: Path) -> dict[str, Any]:
    """The clone's ``SASRec`` and sampler, with the loop of its training program."""
    import torch

    from allmrec_jax.parity.official import import_clone

    found = import_clone(clone, {"pre_train.sasrec.model": ("SASRec",), "pre_train.sasrec.utils": ("sample_function",)})
    sample, users = found["pre_train.sasrec.utils"].sample_function, len(task.sequences)
    torch.manual_seed(seed)

    arguments = argparse.Namespace(
        hidden_units=DIM, num_blocks=BLOCKS, num_heads=HEADS, maxlen=LENGTH, dropout_rate=DROPOUT, device="cpu"
    )
    model = found["pre_train.sasrec.model"].SASRec(users, task.items, arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter.data)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, BETA2))
    criterion = torch.nn.BCEWithLogitsLoss()

    # Its sampler runs ahead in processes of its own; so does this one, in a single process.
    context = multiprocessing.get_context("fork")
    batches: Any = context.Queue(maxsize=30)
    by_number = dict(enumerate(task.sequences, 1))
    sampler = context.Process(
        target=sample, args=(by_number, users, task.items, BATCH, LENGTH, batches, seed), daemon=True
    )
    sampler.start()

    class Official:
        def epoch(self) -> None:
            model.train()
            for _ in range(users // BATCH):
                user, sequence, positive, negative = map(np.array, batches.get())
                logits = model(user, sequence, positive, negative)
                real = np.where(positive != 0)
                ones, zeros = torch.ones(len(real[0])), torch.zeros(len(real[0]))
                loss = criterion(logits[0][real], ones) + criterion(logits[1][real], zeros)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def state(self) -> Any:
            return {key: value.clone() for key, value in model.state_dict().items()}

        def load(self, state: Any) -> None:
            model.load_state_dict(state)

        def scores(self, asked: Asked) -> np.ndarray:
            model.eval()

            def score(histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
                with torch.no_grad():
                    hidden = model.log2feats(histories)[:, -1]
                    vectors = model.item_emb(torch.from_numpy(candidates).long())
                return torch.einsum("bd,bkd->bk", hidden, vectors).numpy()

            return in_batches(score, asked)

    try:
        return train(Official(), task)
    finally:
        sampler.terminate()
        sampler.join()


def in_batches(score: Callable[[np.ndarray, np.ndarray], np.ndarray], asked: Asked) -> np.ndarray:
    """Scores of all users, some at a time; the last batch is filled up."""
    found = []
    for start in range(0, len(asked.histories), ROWS):
        rows = np.arange(start, min(start + ROWS, len(asked.histories)))
        filled = np.resize(rows, ROWS)
        found.append(score(asked.histories[filled], asked.candidates[filled])[: len(rows)])
    return np.concatenate(found)


def prepare_task(source: Path, folder: Path, epochs: int, max_users: int | None) -> Task:
    """The data set, prepared with preset ``paper``, as arrays."""
    from allmrec_jax.data.candidates import load_candidates
    from allmrec_jax.data.prepare import prepare
    from allmrec_jax.settings import resolve
    from allmrec_jax.training import cf

    dataset = prepare(source, folder / "data")
    settings = resolve(cf.PRESETS["sasrec"], "paper")
    batches = cf.load_validation(dataset, settings, 0)
    real = [np.asarray(batch.weight) > 0 for batch in batches]
    users, candidates = (
        np.concatenate([np.asarray(getattr(batch, name))[kept] for batch, kept in zip(batches, real, strict=True)])
        for name in ("users", "candidates")
    )
    histories, _ = dataset.history(users, "valid", LENGTH)
    asked = load_candidates(dataset, "overall", "test", 0, max_users)
    tested, _ = dataset.history(asked.users, "test", LENGTH)
    others = asked.candidates[asked.candidates != asked.target[:, None]].reshape(len(asked.users), -1)
    return Task(
        str(dataset.path),
        [dataset.train_sequence(user).tolist() for user in range(dataset.num_users)],
        dataset.num_items,
        Asked(histories[:max_users], candidates[:max_users]),
        Asked(tested, np.concatenate([asked.target[:, None], others], axis=1)),
        epochs,
    )


def in_own_process(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Its result, from a fresh process: neither library finds the other's threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and the difference of the two with its interval over users."""
    from allmrec_jax.evaluation.intervals import paired_bootstrap

    hits = {name: np.mean([run["ranks"] == 1 for run in found], axis=0) for name, found in runs.items()}
    gains = {name: np.mean([ndcg10(run["ranks"]) for run in found], axis=0) for name, found in runs.items()}
    epoch = {name: float(np.median([run["seconds_per_epoch"] for run in found])) for name, found in runs.items()}
    cpu = {name: float(np.median([run["cpu_seconds_per_epoch"] for run in found])) for name, found in runs.items()}
    difference = [float(value) for value in paired_bootstrap(hits["ours"], hits["official"])]
    return {
        "hit@1": {name: float(value.mean()) for name, value in hits.items()},
        "ndcg@10": {name: float(value.mean()) for name, value in gains.items()},
        "hit@1 ours - official (95%)": difference,
        "ndcg@10 ours - official (95%)": [float(v) for v in paired_bootstrap(gains["ours"], gains["official"])],
        "seconds_per_epoch": epoch,
        "cpu_seconds_per_epoch": cpu,
        "speed_ratio": epoch["official"] / epoch["ours"],
        "cpu_ratio": cpu["official"] / cpu["ours"],
        "within_limit": bool(difference[1] >= -LIMIT and difference[2] <= LIMIT),
    }


@click.command()
@click.option("--official", "clone", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seeds", default=5)
@click.option("--epochs", default=200)
@click.option("--max-users", type=int, help="Of validation and test each.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/same_protocol.json"))
def main(clone: Path, data: Path, seeds: int, epochs: int, max_users: int | None, out: Path) -> None:
    """Trains both and writes the comparison."""
    runs: dict[str, list[dict[str, Any]]] = {"official": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        task = prepare_task(data, Path(folder), epochs, max_users)
        for seed in range(seeds):
            for name, function, more in (("official", run_official, (clone,)), ("ours", run_ours, ())):
                runs[name].append(in_own_process(function, task, seed, *more))
                shown = {key: value for key, value in runs[name][-1].items() if key != "ranks"}
                print(name, seed, shown, flush=True)
    result = summary(runs)
    for found in runs.values():
        for run in found:
            rank = run.pop("ranks")
            run |= {"hit@1": float((rank == 1).mean()), "ndcg@10": float(ndcg10(rank).mean())}
    body = {
        "summary": result,
        "runs": runs,
        "data": {"name": data.name, "users": len(task.sequences), "items": task.items, "tested": len(task.test[0])},
        "settings": {"seeds": seeds, "epochs": epochs, "evaluate_every": EVALUATE_EVERY, "patience": PATIENCE},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "nice": os.nice(0),
        },
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "torch", "numpy")},
    }
    out.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["within_limit"] else 1)


if __name__ == "__main__":
    main()
