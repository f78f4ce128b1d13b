"""An epoch of each CF model at the size of Video Games against the same model in vectorised PyTorch, in one run.

Generates 64,000 users with 600,000 interactions over 34,000 items. Both sides train with one negative a position,
batches of 128 users, Adam, at equal length and padding (50 columns; ``buckets 1``), torch with as many threads as cores
and its data in tensors beforehand. The product's own setting, three length buckets, is timed beside it. Seconds to
compile are reported apart. PyTorch's negatives are uniform without a look at what a user has met, which costs less than
ours. With a clone of the official repository its own SASRec is timed too, fed by its own sampler in a process beside.
Writes JSON.

    python benchmarks/cf_epoch.py --official ../A-LLMRec
    python benchmarks/cf_epoch.py --users 2000 --interactions 18000 --items 1000    # a trial
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
import torch
from torch.nn import functional

from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.models.cf.architecture import CFSettings
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.parity.official_clone import import_clone
from allmrec_jax.rng import jax_key
from allmrec_jax.runs import versions
from allmrec_jax.training.cf import (
    load_train_data,
    make_optimizer,
    steps_per_epoch,
    train_epoch,
)
from allmrec_jax.training.state import TrainState

DIM, LENGTH, BATCH = 50, 50, 128
OFFICIAL = {"pre_train.sasrec.model": ("SASRec",), "pre_train.sasrec.utils": ("WarpSampler",)}


class Sequential(torch.nn.Module):
    """Hidden states dotted with item embeddings."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(items + 1, DIM, padding_idx=0)

    def loss(self, users: torch.Tensor, tokens: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """One-negative binary cross-entropy of each item but the first."""
        inputs, positives = tokens[:, :-1], tokens[:, 1:]
        hidden, mask = self(inputs), inputs != 0
        likes = (hidden * self.items(positives)).sum(-1)[mask]
        dislikes = (hidden * self.items(negatives[:, 1:])).sum(-1)[mask]
        return functional.softplus(-likes).mean() + functional.softplus(dislikes).mean()


class SASRec(Sequential):
    """Two blocks, one head, dropout 0.5."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__(items)
        self.positions = torch.nn.Embedding(LENGTH, DIM)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(DIM, eps=1e-8) for _ in range(5))
        self.attentions = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(DIM, 1, 0.5, batch_first=True) for _ in range(2)
        )
        self.dense = torch.nn.ModuleList(torch.nn.Linear(DIM, DIM) for _ in range(4))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        mask = (items != 0)[..., None]
        later = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
        x = self.drop(self.items(items) * DIM**0.5 + self.positions.weight) * mask
        for block in range(2):
            query = self.norms[2 * block](x)
            attended, _ = self.attentions[block](query, x, x, attn_mask=later, need_weights=False)
            x = self.norms[2 * block + 1](query + attended)
            h = self.drop(torch.relu(self.dense[2 * block](x)))
            x = (x + self.drop(self.dense[2 * block + 1](h))) * mask
        return self.norms[4](x)


class GRU4Rec(Sequential):
    """One GRU of 128, dropout 0.3 on the embeddings."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__(items)
        self.gru = torch.nn.GRU(DIM, 128, bias=False, batch_first=True)
        self.dense = torch.nn.Linear(128, DIM)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        return self.dense(self.gru(functional.dropout(self.items(items), 0.3))[0])


class NextItNet(Sequential):
    """Ten residual blocks of two dilated convolutions."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__(items)
        dilations = [1, 2, 4, 8] * 5
        self.convs = torch.nn.ModuleList(torch.nn.Conv1d(DIM, DIM, 3, dilation=d) for d in dilations)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(DIM, eps=1e-8) for _ in dilations)
        self.dense = torch.nn.Linear(DIM, DIM)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        mask = (items != 0)[..., None]
        x = self.items(items)
        for first in range(0, len(self.convs), 2):
            h = x
            for conv, norm in zip(self.convs[first : first + 2], self.norms[first : first + 2], strict=True):
                padded = functional.pad(h.transpose(1, 2), (2 * conv.dilation[0], 0))
                h = torch.relu(norm(conv(padded).transpose(1, 2))) * mask
            x = x + h
        return self.dense(x)


class NCF(torch.nn.Module):
    """NeuMF, MLP 128 and 64, dropout 0.1."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.users, self.items = torch.nn.Embedding(users, 2 * DIM), torch.nn.Embedding(items + 1, 2 * DIM)
        self.dense = torch.nn.ModuleList([torch.nn.Linear(2 * DIM, 128), torch.nn.Linear(128, 64)])
        self.score = torch.nn.Linear(DIM + 64, 1)

    def logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of pairs."""
        h = torch.cat([users[..., DIM:], items[..., DIM:]], -1)
        for layer in self.dense:
            h = torch.relu(layer(functional.dropout(h, 0.1)))
        return self.score(torch.cat([users[..., :DIM] * items[..., :DIM], h], -1))[..., 0]

    def loss(self, users: torch.Tensor, tokens: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """One-negative binary cross-entropy of every item."""
        vectors, mask = self.users(users)[:, None].expand(-1, tokens.shape[1], -1), tokens != 0
        likes = self.logits(vectors, self.items(tokens))[mask]
        dislikes = self.logits(vectors, self.items(negatives))[mask]
        return functional.softplus(-likes).mean() + functional.softplus(dislikes).mean()


TORCH: dict[str, Any] = {"sasrec": SASRec, "nextitnet": NextItNet, "gru4rec": GRU4Rec, "ncf": NCF}


def generate(path: Path, users: int, interactions: int, items: int) -> Dataset:
    """Users of five items and more, lengths geometric as in review data, items by a power law."""
    rng = np.random.default_rng(0)
    lengths = 5 + rng.geometric(1 / max(interactions / users - 4, 1), users) - 1
    weights = 1 / np.arange(1, items + 1) ** 0.8
    drawn = rng.choice(items, int(lengths.sum()), p=weights / weights.sum()) + 1
    return write_dataset(
        path,
        name="generated",
        items=drawn,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"item {item}" for item in range(items)],
        descriptions=[""] * items,
    )


def time_jax(dataset: Dataset, settings: CFSettings, repeats: int) -> dict[str, float]:
    """Seconds to compile, and of an epoch."""
    model = settings.module(dataset.num_users, dataset.num_items)
    params = model.init_params(jax_key(0, "cf-init"))
    state, data = TrainState(params, make_optimizer(settings).init(params)), load_train_data(dataset, settings)
    steps = steps_per_epoch(data, settings, dataset.num_users)
    started = time.perf_counter()
    epoch = train_epoch.lower(model, settings, steps, state, data, jax_key(0, "cf")).compile()
    compile_seconds, seconds = time.perf_counter() - started, []
    for number in range(repeats):
        started = time.perf_counter()
        state, metrics = epoch(state, data, jax_key(0, "cf", number))
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - started)
    cells = sum(bucket.tokens[:, 1:].size for bucket in data.buckets)
    return {
        "compile_seconds": round(compile_seconds, 2),
        "epoch_seconds": round(float(np.median(seconds)), 2),
        "steps": steps,
        "cells": cells,
        "loss": round(loss, 4),
    }


def time_torch(dataset: Dataset, settings: CFSettings, repeats: int) -> dict[str, float]:
    """Seconds of an epoch: users in a new order, each once, negatives drawn at once for each batch."""
    torch.manual_seed(0)
    module = TORCH[settings.model](dataset.num_users, dataset.num_items)
    optimizer = torch.optim.Adam(module.parameters(), settings.learning_rate, betas=(0.9, settings.beta2))
    bucket = load_train_data(dataset, settings).buckets[0]
    tokens, users = (torch.tensor(np.asarray(array), dtype=torch.long) for array in (bucket.tokens, bucket.users))
    seconds = []
    for _ in range(repeats):
        started, losses = time.perf_counter(), []
        for rows in torch.randperm(len(tokens)).split(BATCH):
            chosen = tokens[rows]
            loss = module.loss(users[rows], chosen, torch.randint(1, dataset.num_items + 1, chosen.shape))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return {"epoch_seconds": round(float(np.median(seconds)), 2), "loss": round(float(np.mean(losses)), 4)}


def time_official(dataset: Dataset, settings: CFSettings, repeats: int, clone: Path) -> dict[str, float]:
    """Seconds of an epoch of the clone's SASRec: the loop of its ``pre_train/sasrec/main.py``, without its printing."""
    found = import_clone(clone, OFFICIAL)
    arguments = argparse.Namespace(
        device="cpu", hidden_units=DIM, maxlen=LENGTH, num_blocks=2, num_heads=1, dropout_rate=0.5
    )
    model = found["pre_train.sasrec.model"].SASRec(dataset.num_users, dataset.num_items, arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter.data)
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate, betas=(0.9, settings.beta2))
    criterion = torch.nn.BCEWithLogitsLoss()
    training = {user + 1: dataset.train_sequence(user).tolist() for user in range(dataset.num_users)}
    multiprocessing.set_start_method("fork", force=True)
    # Three processes sample ahead there; one keeps up, and more only take the model's cores.
    sampler = found["pre_train.sasrec.utils"].WarpSampler(
        training, dataset.num_users, dataset.num_items, batch_size=BATCH, maxlen=LENGTH, n_workers=1
    )
    seconds: list[float] = []
    losses: list[float] = []
    try:
        for _ in range(repeats):
            started, losses = time.perf_counter(), []
            for _ in range(dataset.num_users // BATCH):
                user, sequence, positive, negative = map(np.array, sampler.next_batch())
                likes, dislikes = model(user, sequence, positive, negative)
                optimizer.zero_grad()
                real = np.where(positive != 0)
                loss = criterion(likes[real], torch.ones(len(real[0])))
                loss = loss + criterion(dislikes[real], torch.zeros(len(real[0])))
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            seconds.append(time.perf_counter() - started)
    finally:
        sampler.close()
    return {"epoch_seconds": round(float(np.median(seconds)), 2), "loss": round(float(np.mean(losses)), 4)}


@click.command()
@click.option("--users", default=64_000, show_default=True)
@click.option("--interactions", default=600_000, show_default=True)
@click.option("--items", default=34_000, show_default=True)
@click.option("--model", "models", multiple=True, type=click.Choice(list(TORCH)), help="May be repeated.  [all]")
@click.option("--repeats", default=2, show_default=True, help="Epochs timed; the median counts.")
@click.option("--official", type=click.Path(path_type=Path), help="A clone of the official repository, for its SASRec.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default: benchmarks/results/cf_epoch.json")
def main(
    users: int,
    interactions: int,
    items: int,
    models: tuple[str, ...],
    repeats: int,
    official: Path | None,
    out: Path | None,
) -> None:
    """Time an epoch of each CF model in JAX and in PyTorch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = generate(Path(folder), users, interactions, items)
        for name in models or TORCH:
            own = dataclasses.replace(CF_PRESETS[name]["paper"], max_length=LENGTH)
            equal = dataclasses.replace(own, buckets=1)
            peers = {"torch": time_torch(dataset, equal, repeats)}
            if official and name == "sasrec":  # before JAX has threads, for its sampler forks
                peers["official"] = time_official(dataset, equal, repeats, official)
            ours = {"jax": time_jax(dataset, equal, repeats), "jax, three buckets": time_jax(dataset, own, repeats)}
            for side in ours.values():
                side |= {
                    f"of_{peer}": round(side["epoch_seconds"] / max(told["epoch_seconds"], 1e-9), 3)
                    for peer, told in peers.items()
                }
            rows[name] = peers | ours
            print(name, json.dumps(rows[name]), flush=True)
        result = {
            "users": users,
            "interactions": int(dataset.lengths.sum()),
            "items": items,
            "batch": BATCH,
            "length": LENGTH,
            "models": rows,
            "torch_threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "versions": {**versions(), "torch": torch.__version__},
        }
    path = out or Path(__file__).parent / "results" / "cf_epoch.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
