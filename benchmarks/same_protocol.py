"""Train the official code and ours on the same data by the same protocol, and compare what comes out and the speed.

Two halves, each with several seeds and both systems in turn, on the CPU in float32:

- ``cf``: SASRec. The clone's model, sampler and loop against our training step with users drawn in the same way.
- ``stage1``: alignment with ``sbert-nano`` as the sentence encoder, on top of the official SASRec of the same seed,
  which both freeze. The clone's ``A_llmrec_model`` on its own batches against our step with preset ``official``.

Same: the data set (the clone reads it as ``allmrec convert to-official`` writes it) and its split, batch size, Adam,
the most epochs, the validation users and candidates, the rule that chooses the epoch and when to stop, the test users
and their 20 candidates. Each system's own: model, initialisation, sampler, step and the vectors that it scores with.

In place of nq-distilbert-base-v1 the clone gets ``sbert-nano``, and its own class makes the text autoencoder anew at
that width; nothing else is stood in.

One call trains on one data set and enters it in ``--out``, beside those that are there, with the mean over them all:

    python benchmarks/same_protocol.py --official ../A-LLMRec --data data/ml-latest-small
    python benchmarks/same_protocol.py --official … --data raw/Nano_Movies.json.gz --cf-epochs 16 --stage1-epochs 1

The two systems run side by side, with one computing thread each: what else the machine does slows both. The official
sampler has a process of its own, as in its training program. Finished runs stay in ``--work``; a second call goes on
where the first one stopped. Exit code 1 where the 95% interval over seeds of a difference in Hit@1 leaves ±0.02.
"""

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np

LIMIT = 0.02
"""How far apart in Hit@1 the two may lie."""

POOLED = ("hit@1", "ndcg@10", "own text hit@1")
"""Measures whose mean over data sets means something; losses are of another size on each."""

DIM, BLOCKS, HEADS, LENGTH, DROPOUT = 50, 2, 1, 20, 0.5
CF_BATCH, CF_RATE, STAGE1_BATCH, STAGE1_RATE, BETA2 = 128, 1e-3, 32, 1e-3, 0.98
"""The official code's, but for two options of it: histories of 20 items in place of 50, which is all that 99% of the
users have, and stage 1's rate, ten times as high, for a small encoder and few epochs.
"""

ENCODER, TEXT_TOKENS, VALIDATED = "sbert-nano", 32, 2000
ROWS = 256
HALVES = ("cf", "stage1")
SYSTEMS = ("official", "ours")
FILES = ("pre_train/sasrec/model.py", "pre_train/sasrec/utils.py", "models/a_llmrec_model.py")
"""Of the clone, that are trained with."""


class Asked(NamedTuple):
    """Users to rank candidates for; the target is the first candidate."""

    histories: np.ndarray
    """[U, T], left-padded with 0."""
    candidates: np.ndarray
    """[U, K]."""


class Rule(NamedTuple):
    """How long a half trains: the epoch best on validation is kept."""

    epochs: int
    evaluate_every: int
    patience: int
    """Validations without improvement before it stops."""
    measure: str
    """Of a validation, that chooses the epoch."""
    maximize: bool


class Task(NamedTuple):
    """What both systems get."""

    data: Path
    name: str
    valid: Asked
    test: Asked
    rules: dict[str, Rule]
    """By half."""
    work: Path

    def home(self, seed: int) -> Path:
        """The directory that the official code runs in: its data files, and its SASRec of this seed."""
        return self.work / f"official_{seed}"


class Tables(NamedTuple):
    """What a stage-1 model makes of every item, without dropout; rows are items, 0 is padding."""

    items: np.ndarray
    """[N+1, D]: the CF model's vectors …"""
    latents: np.ndarray
    """[N+1, L]: … their latents …"""
    item_outputs: np.ndarray
    """[N+1, D]: … and reconstructions."""
    texts: np.ndarray
    """[N+1, W]: sentence vectors …"""
    text_latents: np.ndarray
    text_outputs: np.ndarray


class System(Protocol):
    """One system in training."""

    name: str

    def epoch(self) -> None:
        """Trains one."""
        ...

    def state(self) -> Any:
        """The parameters, to come back to."""
        ...

    def load(self, state: Any) -> None:
        """Comes back to them."""
        ...

    def measures(self) -> dict[str, float]:
        """On the validation users."""
        ...


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of the first candidate, 1 is best; ties count against it."""
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(axis=1)


def ndcg10(rank: np.ndarray) -> np.ndarray:
    """NDCG@10 of each user."""
    return np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0.0)


def rank_measures(rank: np.ndarray) -> dict[str, float]:
    """Hit@1 and NDCG@10 of all users."""
    return {"hit@1": float((rank == 1).mean()), "ndcg@10": float(ndcg10(rank).mean())}


def train(system: System, rule: Rule) -> dict[str, Any]:
    """Trains by the rule and comes back to the best epoch."""
    best, best_epoch, best_state, stale, seconds, validations = -np.inf, 0, system.state(), 0, [], []
    sign = 1 if rule.maximize else -1
    for epoch in range(1, rule.epochs + 1):
        started = time.perf_counter(), time.process_time()
        system.epoch()
        seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        if epoch % rule.evaluate_every and epoch != rule.epochs:
            continue
        validations.append({"epoch": epoch} | system.measures())
        value = validations[-1][rule.measure]
        print(f"  {system.name}, epoch {epoch}: {seconds[-1][0]:.1f} s, {rule.measure} {value:.4f}", flush=True)
        if sign * value > best:
            best, best_epoch, best_state, stale = sign * value, epoch, system.state(), 0
        elif (stale := stale + 1) >= rule.patience:
            break
    system.load(best_state)
    # The first epoch compiles.
    wall, cpu = np.median(np.asarray(seconds[1:] or seconds), axis=0)
    return {
        "epochs": len(seconds),
        "best_epoch": best_epoch,
        "validations": validations,
        "first_epoch_seconds": seconds[0][0],
        "seconds_per_epoch": float(wall),
        "cpu_seconds_per_epoch": float(cpu),
    }


# SASRec


def cf_ours(task: Task, seed: int, clone: Path) -> dict[str, Any]:
    """Our training step, with users drawn as the official code does; the other settings are preset ``paper``."""
    import jax

    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.models.cf.registry import CF_PRESETS
    from allmrec_jax.models.cf.sasrec import SASRecCF
    from allmrec_jax.rng import jax_key
    from allmrec_jax.settings import resolve
    from allmrec_jax.training import cf
    from allmrec_jax.training.state import TrainState

    dataset = load_dataset(task.data)
    settings = resolve(CF_PRESETS["sasrec"], "paper", {"sampling": "with-replacement", "max_length": LENGTH})
    model, data = settings.module(dataset.num_users, dataset.num_items), cf.load_train_data(dataset, settings)
    steps = cf.steps_per_epoch(data, settings, dataset.num_users)

    class Ours:
        name = "ours"

        def __init__(self) -> None:
            params = model.init_params(jax_key(seed, "cf-init"))
            self.trained = TrainState(params, cf.make_optimizer(settings).init(params))
            self.number = 0

        def epoch(self) -> None:
            key = jax_key(seed, "cf", self.number)
            self.trained, metrics = cf.train_epoch(model, settings, steps, self.trained, data, key)
            jax.block_until_ready((self.trained, metrics))
            self.number += 1

        def state(self) -> Any:
            return jax.device_get(self.trained.params)

        def load(self, state: Any) -> None:
            self.trained = self.trained._replace(params=state)

        def measures(self) -> dict[str, float]:
            return rank_measures(ranks(self.scores(task.valid)))

        def scores(self, asked: Asked) -> np.ndarray:
            found = SASRecCF(model.config, self.trained.params)
            return in_batches(lambda *rows: np.asarray(found.score(None, *rows)), *asked)

    system = Ours()
    return train(system, task.rules["cf"]) | {"ranks": ranks(system.scores(task.test))}


def cf_official(task: Task, seed: int, clone: Path) -> dict[str, Any]:
    """The clone's ``SASRec`` and sampler, with the loop of its training program; leaves its checkpoint in its home."""
    import torch

    from allmrec_jax.parity.official_clone import import_clone

    wanted = {"pre_train.sasrec.model": ("SASRec",), "pre_train.sasrec.utils": ("WarpSampler", "data_partition")}
    found = import_clone(clone, wanted)
    with at(task.home(seed)):
        training, _, _, users, items = found["pre_train.sasrec.utils"].data_partition(
            task.name, path=f"./data/amazon/{task.name}.txt"
        )
    check_split(task, training)
    torch.manual_seed(seed)
    np.random.seed(seed)  # its sampler is seeded from this generator

    arguments = argparse.Namespace(
        hidden_units=DIM, num_blocks=BLOCKS, num_heads=HEADS, maxlen=LENGTH, dropout_rate=DROPOUT, device="cpu"
    )
    model = found["pre_train.sasrec.model"].SASRec(users, items, arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter.data)
    optimizer = torch.optim.Adam(model.parameters(), lr=CF_RATE, betas=(0.9, BETA2))
    criterion = torch.nn.BCEWithLogitsLoss()
    # It samples ahead in three processes by default; one keeps up, and the machine has two cores.
    multiprocessing.set_start_method("fork", force=True)
    sampler = found["pre_train.sasrec.utils"].WarpSampler(
        training, users, items, batch_size=CF_BATCH, maxlen=LENGTH, n_workers=1
    )

    class Official:
        name = "official"

        def epoch(self) -> None:
            model.train()
            for _ in range(users // CF_BATCH):
                user, sequence, positive, negative = map(np.array, sampler.next_batch())
                logits = model(user, sequence, positive, negative)
                optimizer.zero_grad()
                real = np.where(positive != 0)
                ones, zeros = torch.ones(len(real[0])), torch.zeros(len(real[0]))
                loss = criterion(logits[0][real], ones) + criterion(logits[1][real], zeros)
                loss.backward()
                optimizer.step()

        def state(self) -> Any:
            return {key: value.clone() for key, value in model.state_dict().items()}

        def load(self, state: Any) -> None:
            model.load_state_dict(state)

        def measures(self) -> dict[str, float]:
            return rank_measures(ranks(self.scores(task.valid)))

        def scores(self, asked: Asked) -> np.ndarray:
            model.eval()

            def score(histories: np.ndarray, candidates: np.ndarray) -> np.ndarray:
                with torch.no_grad():
                    hidden = model.log2feats(histories)[:, -1]
                    vectors = model.item_emb(torch.from_numpy(candidates).long())
                return torch.einsum("bd,bkd->bk", hidden, vectors).numpy()

            return in_batches(score, *asked)

    system = Official()
    try:
        told = train(system, task.rules["cf"])
    finally:
        sampler.close()
    file = task.home(seed) / "pre_train" / "sasrec" / task.name / "SASRec.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save([model.kwargs, model.state_dict()], file)
    return told | {"ranks": ranks(system.scores(task.test))}


def check_split(task: Task, training: dict[int, list[int]]) -> None:
    """That the official code trains on the items that we train on."""
    from allmrec_jax.data.dataset import load_dataset

    dataset = load_dataset(task.data)
    ours = {user + 1: dataset.train_sequence(user).tolist() for user in range(dataset.num_users)}
    if training != ours:
        raise RuntimeError("the two splits differ")


# Stage 1


def stage1_losses(tables: Tables, users: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> dict[str, float]:
    """The four losses in the official form and their weighted sum, for users with an item each and another one."""

    def errors(a: np.ndarray, b: np.ndarray) -> float:
        square = np.square(a.astype(np.float64) - b).mean(axis=-1)
        return float((square[positives] + square[negatives]).mean())

    likes, dislikes = ((users * tables.item_outputs[rows]).mean(axis=-1) for rows in (positives, negatives))
    found = {
        "rec": float(np.logaddexp(0, -likes).mean() + np.logaddexp(0, dislikes).mean()),
        "match": errors(tables.latents, tables.text_latents),
        "item_recon": errors(tables.item_outputs, tables.items),
        "text_recon": errors(tables.text_outputs, tables.texts),
    }
    return found | {"total": found["rec"] + found["match"] + 0.5 * found["item_recon"] + 0.2 * found["text_recon"]}


def stage1_test(tables: Tables, users: np.ndarray, asked: Asked) -> dict[str, Any]:
    """Ranks of the target by the recommendation score and, among the same items' texts, of its own text."""
    scores = np.einsum("ud,ukd->uk", users, tables.item_outputs[asked.candidates])
    target = tables.latents[asked.candidates[:, 0]]
    distances = np.square(tables.text_latents[asked.candidates] - target[:, None]).mean(axis=-1)
    losses = stage1_losses(tables, users, asked.candidates[:, 0], asked.candidates[:, 1])
    return {"ranks": ranks(scores), "text_ranks": ranks(-distances), "losses": losses}


def stage1_measures(tested: dict[str, Any]) -> dict[str, float]:
    """All figures of a test or a validation."""
    own_text = float((np.asarray(tested["text_ranks"]) == 1).mean())
    return rank_measures(np.asarray(tested["ranks"])) | {"own text hit@1": own_text} | tested["losses"]


def stage1_ours(task: Task, seed: int, clone: Path) -> dict[str, Any]:
    """Our step and sampler with preset ``official``."""
    import jax
    import jax.numpy as jnp

    from allmrec_jax.data.dataset import item_texts, load_dataset
    from allmrec_jax.models.alignment import Alignment
    from allmrec_jax.models.cf.sasrec import SASRecCF, SASRecConfig
    from allmrec_jax.models.text_encoder import encode_table, tokenize_texts
    from allmrec_jax.official import parameters as official
    from allmrec_jax.official.layout import Layout
    from allmrec_jax.official.reading import read_sasrec
    from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder
    from allmrec_jax.rng import jax_key
    from allmrec_jax.settings import resolve
    from allmrec_jax.training import stage1, stage1_batches, stage1_settings
    from allmrec_jax.training.state import CountedState

    dataset, rule = load_dataset(task.data), task.rules["stage1"]
    changes = {
        "epochs": rule.epochs,
        "learning_rate": STAGE1_RATE,
        "encoder_learning_rate": STAGE1_RATE,
        "text_max_tokens": TEXT_TOKENS,
    }
    settings = resolve(stage1_settings.PRESETS, "official", changes)
    (file,) = Layout(task.home(seed), task.name).cf_folder.glob("*.pth")
    _, items, args, weights = read_sasrec(file)
    config = SASRecConfig(items, DIM, BLOCKS, HEADS, LENGTH, float(args.dropout_rate))
    cf = SASRecCF(config, jax.tree.map(jnp.asarray, official.sasrec_params(weights, BLOCKS)), "the official one")

    encoder = load_sentence_encoder(ENCODER)
    tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
    catalogue = stage1_batches.Catalogue(cf.item_vectors(), tokens, None)
    sampler = stage1_batches.Stage1Sampler(dataset, cf, catalogue, settings, seed)
    model = stage1.Stage1Model(Alignment(cf.dim, encoder.dim, settings.latent_dim), encoder, settings)
    optimizer = stage1.make_optimizer(settings, rule.epochs * sampler.steps_per_epoch)
    step = stage1.make_step(model, optimizer, seed)
    users = {cut: vectors_of(cf.user_vectors, asked) for cut, asked in (("valid", task.valid), ("test", task.test))}

    class Ours:
        name = "ours"

        def __init__(self) -> None:
            shapes = (np.zeros((1, cf.dim), np.float32), np.zeros((1, encoder.dim), np.float32))
            params = {"alignment": model.alignment.init(jax_key(seed, "stage1/init"), *shapes)["params"]}
            params["encoder"] = jax.tree.map(jnp.asarray, encoder.params)
            self.trained = CountedState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

        def epoch(self) -> None:
            first = int(self.trained.step)
            for index in range(first, first + sampler.steps_per_epoch):
                self.trained, _ = step(self.trained, sampler(index))
            jax.block_until_ready(self.trained)

        def state(self) -> Any:
            return jax.device_get(self.trained.params)

        def load(self, state: Any) -> None:
            self.trained = self.trained._replace(params=state)

        def tables(self) -> Tables:
            params = self.trained.params
            texts = encode_table(encoder.model, params["encoder"], tokens)
            found = model.alignment.apply({"params": params["alignment"]}, catalogue.items, texts)
            e, outputs, q, text_outputs = (np.asarray(found[name]) for name in ("e", "items", "q", "texts"))
            return Tables(catalogue.items, e, outputs, texts, q, text_outputs)

        def measures(self) -> dict[str, float]:
            return stage1_measures(stage1_test(self.tables(), users["valid"], task.valid))

    system = Ours()
    return train(system, rule) | stage1_test(system.tables(), users["test"], task.test)


def stage1_official(task: Task, seed: int, clone: Path) -> dict[str, Any]:
    """The clone's ``A_llmrec_model`` on the batches of its ``SeqDataset``, with the loop of its training program."""
    from unittest import mock

    import torch
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

    from allmrec_jax.assets import ASSETS
    from allmrec_jax.parity.official_clone import import_clone

    wanted = {
        "models.a_llmrec_model": ("A_llmrec_model", "two_layer_mlp"),
        "pre_train.sasrec.utils": ("data_partition", "SeqDataset"),
    }
    found = import_clone(clone, wanted)
    module, utils = found["models.a_llmrec_model"], found["pre_train.sasrec.utils"]
    torch.manual_seed(seed)
    np.random.seed(seed)  # the generator that it draws negatives from

    encoder = SentenceTransformer(str(ASSETS / ENCODER), device="cpu")
    encoder.max_seq_length = TEXT_TOKENS
    arguments = argparse.Namespace(
        rec_pre_trained_data=task.name,
        recsys="sasrec",
        device="cpu",
        maxlen=LENGTH,
        pretrain_stage1=True,
        pretrain_stage2=False,
        inference=False,
    )
    with (
        at(task.home(seed)),
        mock.patch.object(module, "SentenceTransformer", lambda name: encoder),
        torch.serialization.safe_globals([argparse.Namespace]),
    ):
        model = module.A_llmrec_model(arguments)
        training, _, _, users, items = utils.data_partition(task.name, path=f"./data/amazon/{task.name}.txt")
    model.mlp2 = module.two_layer_mlp(encoder[0].auto_model.config.dim)
    check_split(task, training)
    check_texts(task, model)
    loader = DataLoader(utils.SeqDataset(training, users, items, LENGTH), batch_size=STAGE1_BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=STAGE1_RATE, betas=(0.9, BETA2))
    table = model.recsys.model.item_emb.weight

    def user_vectors(_: Any, histories: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.recsys.model.log2feats(histories)[:, -1].numpy()

    model.eval()
    vectors = {cut: vectors_of(user_vectors, asked) for cut, asked in (("valid", task.valid), ("test", task.test))}

    class Official:
        name = "official"

        def epoch(self) -> None:
            model.train()
            for number, batch in enumerate(loader):
                arrays = [array.numpy() for array in batch]
                with contextlib.redirect_stdout(io.StringIO()):
                    model(arrays, optimizer=optimizer, batch_iter=[0, 0, number, 0], mode="phase1")

        def state(self) -> Any:
            return {key: value.clone() for key, value in model.state_dict().items()}

        def load(self, state: Any) -> None:
            model.load_state_dict(state)

        def tables(self) -> Tables:
            model.eval()
            rows = np.arange(items + 1)
            with torch.no_grad():
                parts = [self.encode(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
                texts = torch.cat(parts)
                return Tables(*(x.numpy() for x in (table, *model.mlp(table), texts, *model.mlp2(texts))))

        def encode(self, rows: np.ndarray) -> torch.Tensor:
            tokens = model.sbert.tokenize(model.find_item_text(rows))
            return model.sbert({name: tokens[name] for name in ("input_ids", "attention_mask")})["sentence_embedding"]

        def measures(self) -> dict[str, float]:
            return stage1_measures(stage1_test(self.tables(), vectors["valid"], task.valid))

    system = Official()
    return train(system, task.rules["stage1"]) | stage1_test(system.tables(), vectors["test"], task.test)


def check_texts(task: Task, model: Any) -> None:
    """That the official code encodes the texts that we encode."""
    from allmrec_jax.data.dataset import item_texts, load_dataset

    ours = item_texts(load_dataset(task.data), "official")
    if model.find_item_text(range(1, len(ours))) != ours[1:]:
        raise RuntimeError("the two systems' texts of items differ")


def vectors_of(user_vectors: Callable[..., Any], asked: Asked) -> np.ndarray:
    """User vectors of all histories, [U, D]."""
    return in_batches(lambda histories: np.asarray(user_vectors(None, histories)), asked.histories)


# Both


RUN: dict[tuple[str, str], Callable[[Task, int, Path], dict[str, Any]]] = {
    ("cf", "official"): cf_official,
    ("cf", "ours"): cf_ours,
    ("stage1", "official"): stage1_official,
    ("stage1", "ours"): stage1_ours,
}
"""By half and system."""


@contextlib.contextmanager
def at(path: Path) -> Iterator[None]:
    """In that directory: the official code opens its files from where it is run."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def in_batches(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Of all rows, some at a time; the last batch is filled up."""
    found = []
    for start in range(0, len(arrays[0]), ROWS):
        rows = np.arange(start, min(start + ROWS, len(arrays[0])))
        filled = np.resize(rows, ROWS)
        found.append(function(*(array[filled] for array in arrays))[: len(rows)])
    return np.concatenate(found)


def prepare_task(source: Path, work: Path, rules: dict[str, Rule], seeds: int) -> Task:
    """The data set, prepared with preset ``paper``, who is asked, and the files that the official code starts from."""
    from allmrec_jax.data.candidates import load_candidates
    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.data.prepare import prepare
    from allmrec_jax.models.cf.registry import CF_PRESETS
    from allmrec_jax.official.exporting import export_data
    from allmrec_jax.official.layout import Layout
    from allmrec_jax.settings import resolve
    from allmrec_jax.training.cf_validation import load_validation

    path = work / "data"
    dataset = load_dataset(path) if (path / "manifest.json").is_file() else prepare(source, path)
    settings = resolve(CF_PRESETS["sasrec"], "paper", {"max_length": LENGTH, "validation_users": VALIDATED})
    batches = load_validation(dataset, settings.validation, 0)
    real = [np.asarray(batch.weight) > 0 for batch in batches]
    users, candidates = (
        np.concatenate([np.asarray(getattr(batch, name))[kept] for batch, kept in zip(batches, real, strict=True)])
        for name in ("users", "candidates")
    )
    histories, _ = dataset.history(users, "valid", LENGTH)
    asked = load_candidates(dataset, "overall", "test", 0)
    tested, _ = dataset.history(asked.users, "test", LENGTH)
    others = asked.candidates[asked.candidates != asked.target[:, None]].reshape(len(asked.users), -1)
    valid = Asked(histories, candidates)
    test = Asked(tested, np.concatenate([asked.target[:, None], others], axis=1))
    task = Task(path.absolute(), dataset.name, valid, test, rules, work.absolute())
    for seed in range(seeds):
        export_data(dataset, Layout(task.home(seed), task.name))
    return task


def one_thread(cache: Path) -> None:
    """Before either library is imported: waiting threads of one would take the other's core.

    Args:
        cache: where compiled programs are kept, for the next seed.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "NPROC": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}


def run_both(
    half: str, task: Task, seed: int, clone: Path, workers: dict[str, ProcessPoolExecutor]
) -> dict[str, dict[str, Any]]:
    """Both systems' records, from their files if they are there; else each trained by its worker, at the same time."""
    from allmrec_jax.fileio import write_text

    files = {system: task.work / f"{half}-{system}-{seed}.json" for system in SYSTEMS}
    missing = [system for system, file in files.items() if not file.is_file()]
    if missing:
        print(f"{half}, seed {seed}: {', '.join(missing)}; load {os.getloadavg()[0]:.1f}", flush=True)
    made = {workers[system].submit(RUN[half, system], task, seed, clone): system for system in missing}
    for future in as_completed(made):
        values = future.result().items()
        found = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values}
        write_text(files[made[future]], json.dumps(found | {"load": os.getloadavg()[0]}))
    return {system: json.loads(file.read_text()) for system, file in files.items()}


def tested(half: str, run: dict[str, Any]) -> dict[str, float]:
    """All figures of a finished run on the test users."""
    return rank_measures(np.asarray(run["ranks"])) if half == "cf" else stage1_measures(run)


def difference(pairs: list[np.ndarray]) -> list[float]:
    """A mean difference with its 95% interval over seeds.

    Args:
        pairs: of each data set the differences by seed. Data sets count alike; with one this is the paired t-interval,
            with more Welch's, whose degrees of freedom go by each data set's own spread.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    mean = float(np.mean([values.mean() for values in pairs]))
    errors = np.asarray([values.var(ddof=1) / len(values) for values in pairs]) / len(pairs) ** 2
    freedom = errors.sum() ** 2 / (errors**2 / [len(values) - 1 for values in pairs]).sum() if errors.any() else 1.0
    half = float(t.ppf(0.975, freedom) * np.sqrt(errors.sum()))
    return [mean, mean - half, mean + half]


def compared(figures: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Of each measure both means, the values by seed and, with two seeds or more, the difference ours − official."""
    found: dict[str, Any] = {}
    for measure in figures["ours"][0]:
        seeds = {system: np.asarray([run[measure] for run in figures[system]]) for system in SYSTEMS}
        found[measure] = {system: float(values.mean()) for system, values in seeds.items()}
        found[measure]["by seed"] = {system: values.tolist() for system, values in seeds.items()}
        if len(seeds["ours"]) > 1:
            found[measure]["difference"] = difference([seeds["ours"] - seeds["official"]])
    return found


def half_summary(half: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What both reach on test users, where they are at the first validation, and what an epoch costs."""
    found: dict[str, Any] = {
        "test": compared({system: [tested(half, run) for run in runs[system]] for system in SYSTEMS}),
        "first validation": compared({system: [run["validations"][0] for run in runs[system]] for system in SYSTEMS}),
    }
    for name, ratio in (("seconds_per_epoch", "speed_ratio"), ("cpu_seconds_per_epoch", "cpu_ratio")):
        found[name] = {system: float(np.median([run[name] for run in runs[system]])) for system in SYSTEMS}
        found[ratio] = found[name]["official"] / found[name]["ours"]
    return found


def pooled(sets: dict[str, Any]) -> dict[str, Any]:
    """The mean over data sets of the differences, by half, moment and measure."""
    found: dict[str, Any] = {}
    for half in HALVES:
        for moment in ("test", "first validation"):
            halves = [one[half] for one in sets.values() if half in one]
            parts = [one["summary"][moment] for one in halves if one["seeds"] > 1]
            for measure in POOLED if parts else ():
                if measure in parts[0]:
                    seeds = [{name: np.asarray(part[measure]["by seed"][name]) for name in SYSTEMS} for part in parts]
                    value = difference([values["ours"] - values["official"] for values in seeds])
                    found.setdefault(half, {}).setdefault(moment, {})[measure] = value
    return found


def within_limit(results: dict[str, Any]) -> bool:
    """Whether each interval of a difference in Hit@1 on test users, of a data set or of all, lies inside ±LIMIT."""
    spans = [half["test"]["hit@1"] for half in results["pooled"].values()]
    for one in results["sets"].values():
        measures = [one[half]["summary"]["test"]["hit@1"] for half in HALVES if half in one]
        spans += [measure["difference"] for measure in measures if "difference" in measure]
    return all(low >= -LIMIT and high <= LIMIT for _, low, high in spans)


def report(task: Task, runs: dict[str, dict[str, list[dict[str, Any]]]], clone: Path) -> dict[str, Any]:
    """Of one data set everything as JSON, without single users; a half that was not trained is left out."""
    dropped = ("ranks", "text_ranks", "losses")
    halves = {
        half: {
            "summary": half_summary(half, runs[half]),
            "rule": task.rules[half]._asdict(),
            "seeds": len(runs[half]["ours"]),
            "runs": {
                system: [{key: value for key, value in run.items() if key not in dropped} for run in found]
                for system, found in runs[half].items()
            },
        }
        for half in HALVES
        if runs[half]["ours"]
    }
    dataset = {"name": task.name, "validated": len(task.valid.histories), "tested": len(task.test.histories)}
    return halves | {
        "data": dataset,
        "settings": {"limit": LIMIT, "encoder": ENCODER, "text_tokens": TEXT_TOKENS, "history": LENGTH}
        | {"cf": {"batch": CF_BATCH, "rate": CF_RATE}, "stage1": {"batch": STAGE1_BATCH, "rate": STAGE1_RATE}},
        "official": {file: hashlib.sha256((clone / file).read_bytes()).hexdigest() for file in FILES},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "nice": os.nice(0)},
        "versions": {
            name: version(name) for name in ("jax", "flax", "optax", "torch", "sentence-transformers", "numpy")
        },
    }


@click.command(help=__doc__)
@click.option("--official", "clone", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="As `allmrec prepare` reads it."
)
@click.option("--seeds", default=10, show_default=True)
@click.option("--stage1-seeds", type=int, help="Fewer of them for stage 1; 0 is none.")
@click.option("--cf-epochs", default=40, show_default=True, help="At most.")
@click.option("--stage1-epochs", default=3, show_default=True, help="At most.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/same_protocol"), show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/same_protocol.json"), show_default=True
)
def main(
    clone: Path,
    data: Path,
    seeds: int,
    stage1_seeds: int | None,
    cf_epochs: int,
    stage1_epochs: int,
    work: Path,
    out: Path,
) -> None:
    """Trains both on one data set and enters it in the comparison."""
    from allmrec_jax.fileio import write_text

    rules = {
        "cf": Rule(cf_epochs, max(1, cf_epochs // 5), 4, "ndcg@10", maximize=True),
        "stage1": Rule(stage1_epochs, max(1, stage1_epochs // 2), 2, "total", maximize=False),
    }
    protocol, known = json.dumps([str(data), rules]), work / "protocol.json"
    if known.is_file() and known.read_text() != protocol:
        raise click.UsageError(f"{work} holds runs of another protocol; name another --work")
    write_text(known, protocol)
    task, clone = prepare_task(data, work, rules, seeds), clone.absolute()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {half: {system: [] for system in SYSTEMS} for half in HALVES}
    context, prepared = multiprocessing.get_context("spawn"), (one_thread, (work / "compiled",))
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, context, *prepared)) for name in SYSTEMS}
        for half in HALVES:
            for seed in range(seeds if half == "cf" or stage1_seeds is None else stage1_seeds):
                for system, run in run_both(half, task, seed, clone, workers).items():
                    runs[half][system].append(run)
    sets = json.loads(out.read_text())["sets"] if out.is_file() else {}
    options = f"--data {data.name} --seeds {seeds} --cf-epochs {cf_epochs} --stage1-epochs {stage1_epochs}"
    options += f" --stage1-seeds {stage1_seeds}" if stage1_seeds is not None else ""
    command = {"command": f"python benchmarks/same_protocol.py --official A-LLMRec {options}"}
    sets[task.name] = command | report(task, runs, clone)
    results = {"sets": sets, "pooled": pooled(sets)}
    write_text(out, json.dumps(results, indent=1) + "\n")
    found = sets[task.name]
    print(json.dumps({half: found[half]["summary"]["test"] for half in HALVES if half in found}, indent=1))
    sys.exit(0 if within_limit(results) else 1)


if __name__ == "__main__":
    main()
