"""Whether a training step of the official code and one of ours have the same expectation.

At the same parameters each system draws its own users, negatives and dropout, again and again. Where both sample and
drop alike, the mean loss and the mean gradient agree up to the noise of the draws; a mask with another rate, negatives
from another range or dropout in another place do not. It is a sharper eye than whole trainings, whose ends differ by
their initial parameters (``same_protocol.py``), and takes minutes:

    python benchmarks/same_expectation.py --official ../A-LLMRec --data data/amazon-scientific

- ``start``: the spread and the largest value of each of SASRec's initial parameters, over several initialisations.
- ``cf``: SASRec at official initial parameters, item vectors ten times as large so that scores are not near zero. The
  clone's model and sampler against our buckets, draws and loss, preset ``paper`` with users drawn with replacement.
- ``stage1``: preset ``official`` on that SASRec with ``sbert-nano``, the first batch of the epoch again and again.

``z²`` is the mean over the parameters of the squared difference of the two means over its variance: 1 where both agree.
Beside it that of the official code's first half of draws against its second, for the noise of the measure.
"""

import argparse
import contextlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

os.environ |= {"OMP_NUM_THREADS": "1", "NPROC": "1", "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}

import click
import jax
import jax.numpy as jnp
import numpy as np
import torch

from allmrec_jax.assets import ASSETS
from allmrec_jax.data.dataset import Dataset, item_texts, load_dataset
from allmrec_jax.data.prepare import prepare
from allmrec_jax.fileio import write_text
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRecCF, SASRecConfig
from allmrec_jax.models.text_encoder import tokenize_texts
from allmrec_jax.official import parameters
from allmrec_jax.official.exporting import export_data
from allmrec_jax.official.layout import Layout
from allmrec_jax.parity.official import import_clone
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder
from allmrec_jax.rng import jax_key
from allmrec_jax.settings import resolve
from allmrec_jax.training import cf, stage1, stage1_batches, stage1_settings

DIM, BLOCKS, HEADS, LENGTH, DROPOUT = 50, 2, 1, 20, 0.5
CF_BATCH, STAGE1_BATCH, TEXT_TOKENS, SCALE, STARTS = 128, 32, 32, 10.0, 30
ENCODER = {
    "word_embeddings/embedding": ("embeddings.word_embeddings.weight", False),
    "layer_0/up/kernel": ("transformer.layer.0.ffn.lin1.weight", True),
    "layer_1/down/kernel": ("transformer.layer.1.ffn.lin2.weight", True),
}
"""Of the sentence encoder, the parameters that are compared: ours, the official name, and whether it is transposed."""

Gradients = dict[str, np.ndarray]
Draw = tuple[dict[str, float], Gradients]
"""Losses and gradients of one step, named alike in both systems."""


class Moments:
    """Mean and variance of draws, in two halves."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.sums: list[Gradients] = [{}, {}]
        self.squares: list[Gradients] = [{}, {}]
        self.count = [0, 0]

    def add(self, draw: Draw) -> None:
        """One more draw, to either half in turn."""
        half = sum(self.count) % 2
        self.count[half] += 1
        for name, value in draw[0].items():
            self.losses.setdefault(name, []).append(value)
        for name, gradient in draw[1].items():
            drawn = gradient.astype(np.float64)
            self.sums[half][name] = drawn + self.sums[half].get(name, 0.0)
            self.squares[half][name] = drawn**2 + self.squares[half].get(name, 0.0)

    def of(self, name: str, halves: tuple[int, ...] = (0, 1)) -> tuple[np.ndarray, np.ndarray]:
        """The mean gradient of a parameter and the variance of that mean."""
        count = sum(self.count[half] for half in halves)
        mean = np.sum([self.sums[half][name] for half in halves], axis=0) / count
        spread = np.sum([self.squares[half][name] for half in halves], axis=0) / count - mean**2
        return mean, spread / (count - 1)


def z_squared(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean squared difference of two means in units of its variance, over the elements that vary at all."""
    variance = one[1] + other[1]
    real = variance > 0
    return float(np.mean((one[0] - other[0])[real] ** 2 / variance[real]))


def compared(official: Moments, ours: Moments) -> dict[str, Any]:
    """Losses with their standard errors, and how far the mean gradients lie apart."""
    losses = {}
    for name in official.losses:
        values = [np.asarray(system.losses[name]) for system in (official, ours)]
        errors = [value.std(ddof=1) / np.sqrt(len(value)) for value in values]
        gap = float(values[1].mean() - values[0].mean())
        losses[name] = {
            "official": [float(values[0].mean()), float(errors[0])],
            "ours": [float(values[1].mean()), float(errors[1])],
            "z": gap / float(np.hypot(*errors)),
        }
    gradients = {}
    for name in official.sums[0]:
        gradients[name] = {
            "z²": z_squared(official.of(name), ours.of(name)),
            "z² of the official halves": z_squared(official.of(name, (0,)), official.of(name, (1,))),
        }
    return {"draws": sum(ours.count), "losses": losses, "gradients": gradients}


def flat(tree: Any) -> Gradients:
    """A tree of arrays by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


def official_sasrec(kind: Any, dataset: Dataset) -> Any:
    """The clone's model, of class ``kind``, with its training program's initial parameters."""
    options = dict(hidden_units=DIM, num_blocks=BLOCKS, num_heads=HEADS, maxlen=LENGTH, dropout_rate=DROPOUT)
    arguments = argparse.Namespace(**options, device="cpu")
    model = kind(dataset.num_users, dataset.num_items, arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter.data)
    return model


def our_parameters(model: Any) -> Any:
    """The same for our model."""
    state = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    return jax.tree.map(jnp.asarray, parameters.sasrec_params(state, BLOCKS))


def start_both(kind: Any, dataset: Dataset, draws: int) -> tuple[Moments, Moments]:
    """Statistics of so many initialisations each; parameters that begin as constants must be equal."""
    init = jax.jit(cf_settings().module(dataset.num_users, dataset.num_items).init_params)
    systems: tuple[Callable[[int], Any], Callable[[int], Any]] = (
        lambda _: our_parameters(official_sasrec(kind, dataset)),
        lambda number: init(jax_key(number, "cf-init")),
    )
    found = Moments(), Moments()
    for system, moments in zip(systems, found, strict=True):
        for number in range(draws):
            arrays = flat(jax.device_get(system(number)))
            drawn = {name: array for name, array in arrays.items() if array.std() > 0}
            spreads = {f"{name}: spread": float(array.std()) for name, array in drawn.items()}
            largest = {f"{name}: largest": float(np.abs(array).max()) for name, array in drawn.items()}
            moments.add((spreads | largest, {}))
    return found


class Enough(Exception):
    """Raised in the official sampler, which never ends by itself."""


class Batches:
    """In place of the queue of the official sampler's process: hands each batch to ``use``, so many of them."""

    def __init__(self, use: Callable[..., None], number: int) -> None:
        self.use, self.left = use, number

    def put(self, batch: Iterator[Any]) -> None:
        """The sampler's next batch."""
        self.use(*(np.array(part) for part in batch))
        self.left -= 1
        if not self.left:
            raise Enough


def cf_official(clone: Path, dataset: Dataset, model: Any, draws: int) -> Moments:
    """Steps of the clone's model on batches of its sampler."""
    wanted = {"pre_train.sasrec.utils": ("sample_function",)}
    sample = import_clone(clone, wanted)["pre_train.sasrec.utils"].sample_function
    training = {user + 1: dataset.train_sequence(user).tolist() for user in range(dataset.num_users)}
    criterion, moments = torch.nn.BCEWithLogitsLoss(), Moments()
    model.train()

    def step(users: np.ndarray, sequence: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> None:
        likes, dislikes = model(users, sequence, positive, negative)
        real = np.where(positive != 0)
        ones = torch.ones(len(real[0]))
        parts = criterion(likes[real], ones), criterion(dislikes[real], torch.zeros_like(ones))
        model.zero_grad()
        (parts[0] + parts[1]).backward()
        state = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
        moments.add(({"loss": sum(part.item() for part in parts)}, flat(parameters.sasrec_params(state, BLOCKS))))

    with contextlib.suppress(Enough):
        sample(training, dataset.num_users, dataset.num_items, CF_BATCH, LENGTH, Batches(step, draws), 1)
    return moments


def cf_settings() -> Any:
    """Preset ``paper`` with users drawn as the official code draws them."""
    return resolve(CF_PRESETS["sasrec"], "paper", {"sampling": "with-replacement", "max_length": LENGTH})


def cf_ours(dataset: Dataset, model: Any, draws: int) -> Moments:
    """Our steps, by the parts of :func:`allmrec_jax.training.cf.train_epoch`."""
    settings = cf_settings()
    network, data = settings.module(dataset.num_users, dataset.num_items), cf.load_train_data(dataset, settings)
    total, moments = sum(len(bucket.tokens) for bucket in data.buckets), Moments()

    @jax.jit
    def step(params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        def mean_loss(params: Any) -> jax.Array:
            parts = []
            for index, bucket in enumerate(data.buckets):
                row_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
                rows = cf.batch_rows(row_key, len(bucket.tokens), total, 1, settings)[0]
                part = cf.Bucket(*(array[rows] for array in bucket))
                parts.append(cf.bucket_loss(network, settings.loss, params, part, data.free_below, loss_key))
            losses, counts = (jnp.stack(values) for values in zip(*parts, strict=True))
            return losses.sum() / counts.sum()

        return jax.value_and_grad(mean_loss)(params)

    params = our_parameters(model)
    for number in range(draws):
        loss, gradient = jax.device_get(step(params, jax_key(0, "same-expectation", number)))
        moments.add(({"loss": float(loss)}, flat(gradient)))
    return moments


def stage1_both(clone: Path, dataset: Dataset, sasrec: Any, draws: int) -> tuple[Moments, Moments]:
    """Steps of the clone's ``A_llmrec_model`` and ours on the first batch, from the clone's initial parameters."""
    from sentence_transformers import SentenceTransformer

    wanted = {
        "models.a_llmrec_model": ("A_llmrec_model", "two_layer_mlp"),
        "pre_train.sasrec.utils": ("data_partition", "SeqDataset"),
    }
    found = import_clone(clone, wanted)
    module, utils = found["models.a_llmrec_model"], found["pre_train.sasrec.utils"]
    encoder = SentenceTransformer(str(ASSETS / "sbert-nano"), device="cpu")
    encoder.max_seq_length = TEXT_TOKENS
    arguments = argparse.Namespace(
        rec_pre_trained_data=dataset.name, recsys="sasrec", device="cpu", maxlen=LENGTH,
        pretrain_stage1=True, pretrain_stage2=False, inference=False,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        export_data(dataset, Layout(Path(folder), dataset.name))
        file = Path(folder) / "pre_train" / "sasrec" / dataset.name / "SASRec.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([sasrec.kwargs, sasrec.state_dict()], file)
        with (
            contextlib.chdir(folder),
            mock.patch.object(module, "SentenceTransformer", lambda name: encoder),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            model = module.A_llmrec_model(arguments)
            training, _, _, users, items = utils.data_partition(dataset.name, path=f"./data/amazon/{dataset.name}.txt")
    model.mlp2 = module.two_layer_mlp(encoder[0].auto_model.config.dim)
    model.train()
    samples = utils.SeqDataset(training, users, items, LENGTH)
    official, told = Moments(), io.StringIO()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    states = [
        {name: value.detach().numpy().copy() for name, value in part.state_dict().items()}
        for part in (model.mlp, model.mlp2)
    ]
    start = parameters.autoencoder_params(*states)
    texts = dict(encoder[0].auto_model.named_parameters())
    for _ in range(draws):
        rows = [np.stack(column) for column in zip(*(samples[user] for user in range(STAGE1_BATCH)), strict=True)]
        told.seek(0)
        told.truncate()
        with contextlib.redirect_stdout(told):
            model(rows, optimizer=optimizer, batch_iter=[0, 0, 0, 0], mode="phase1")
        values = [float(part.split(":")[1]) for part in told.getvalue().split("iteration")[1].split("/")[2:]]
        losses = dict(zip(("rec", "match", "item_recon", "text_recon"), values, strict=True))
        gradients = [{name: p.grad.numpy() for name, p in part.named_parameters()} for part in (model.mlp, model.mlp2)]
        found = flat(parameters.autoencoder_params(*gradients))
        for name, (theirs, transposed) in ENCODER.items():
            gradient = texts[theirs].grad.numpy()
            found[name] = gradient.T if transposed else gradient
        official.add((losses, found))

    settings = resolve(
        stage1_settings.PRESETS, "official", {"text_max_tokens": TEXT_TOKENS, "batch_size": STAGE1_BATCH}
    )
    ours_cf = SASRecCF(SASRecConfig(items, DIM, BLOCKS, HEADS, LENGTH, DROPOUT), our_parameters(sasrec), "official")
    ours_encoder = load_sentence_encoder("sbert-nano")
    tokens = tokenize_texts(ours_encoder, item_texts(dataset, settings.text_style), TEXT_TOKENS)
    catalogue = stage1_batches.Catalogue(ours_cf.item_vectors(), tokens, None)
    sampler = stage1_batches.Stage1Sampler(dataset, ours_cf, catalogue, settings, 0)
    step_model = stage1.Stage1Model(Alignment(DIM, ours_encoder.dim, settings.latent_dim), ours_encoder, settings)
    params = jax.tree.map(jnp.asarray, {"alignment": start, "encoder": dict(ours_encoder.params)})
    step = jax.jit(jax.value_and_grad(step_model.losses, has_aux=True))
    ours = Moments()
    for number in range(draws):
        part = jax.tree.map(lambda x: x[0], sampler(number * sampler.steps_per_epoch))
        (_, losses), gradient = jax.device_get(step(params, part, jax_key(0, "same-expectation", number)))
        kept = {name: float(losses[name]) for name in ("rec", "match", "item_recon", "text_recon")}
        encoded = flat(gradient["encoder"])
        ours.add((kept, flat(gradient["alignment"]) | {name: encoded[name] for name in ENCODER}))
    return official, ours


@click.command(help=__doc__)
@click.option("--official", "clone", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="As `allmrec prepare` reads it."
)
@click.option("--draws", default=200, show_default=True)
@click.option("--stage1-draws", default=100, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/same_expectation.json"),
    show_default=True,
)
def main(clone: Path, data: Path, draws: int, stage1_draws: int, out: Path) -> None:
    """Compares both on one data set and enters each part in ``--out`` as soon as it is done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    with TemporaryDirectory() as folder:
        prepared = (data / "manifest.json").is_file()
        dataset = load_dataset(data) if prepared else prepare(data, Path(folder) / "data")
        clone = clone.absolute()
        kind = import_clone(clone, {"pre_train.sasrec.model": ("SASRec",)})["pre_train.sasrec.model"].SASRec
        compare: dict[str, Callable[[], tuple[Moments, Moments]]] = {
            "start": lambda: start_both(kind, dataset, STARTS),
            "cf": lambda: (cf_official(clone, dataset, sasrec, draws), cf_ours(dataset, sasrec, draws)),
            "stage1": lambda: stage1_both(clone, dataset, sasrec, stage1_draws),
        }
        sasrec = official_sasrec(kind, dataset)
        sasrec.item_emb.weight.data *= SCALE
        sets = json.loads(out.read_text())["sets"] if out.is_file() else {}
        sets[dataset.name] = {
            "command": f"python benchmarks/same_expectation.py --official A-LLMRec --data {data.name} --draws {draws} "
            f"--stage1-draws {stage1_draws}",
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "versions": {name: version(name) for name in ("jax", "flax", "torch", "sentence-transformers", "numpy")},
        }
        for part, both in compare.items():
            sets[dataset.name][part] = compared(*both())
            print(part, json.dumps(sets[dataset.name][part], indent=1, ensure_ascii=False), flush=True)
            write_text(out, json.dumps({"sets": sets}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
