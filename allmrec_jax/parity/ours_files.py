"""The case on disk, through the product's own readers: a data set, runs before each stage, pretrained models."""

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from allmrec_jax.assets import ASSETS
from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.models.cf import registry
from allmrec_jax.models.text_encoder import SentenceEncoder
from allmrec_jax.official import importing
from allmrec_jax.official import parameters as official
from allmrec_jax.official.layout import Layout
from allmrec_jax.parity import cases
from allmrec_jax.parity.directories import write_official, write_official_stage1, write_opt, write_sentence_encoder
from allmrec_jax.parity.reference import SPEED
from allmrec_jax.pretrained.llm import load_checkpoint
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder
from allmrec_jax.training import stage1_settings, stage2_settings


class Files(NamedTuple):
    """Where everything lies.

    Attributes:
        home: goes with this object.
        dataset: the case's interactions and texts, read from the official code's files.
        cf: a finished run with the case's SASRec.
        stage1: a finished run with the case's autoencoders and sentence encoder.
        encoder: the sentence encoder that stage 1 starts from, with the published dropout.
        llm: OPT with as many rows as its tokenizer has tokens, and that tokenizer.
    """

    home: Any
    dataset: Path
    cf: Path
    stage1: Path
    encoder: Path
    llm: Path

    def load(self) -> Dataset:
        """The data set."""
        return load_dataset(self.dataset)


@functools.cache
def files() -> Files:
    """Written once, by ``allmrec convert from-official``'s own functions where they are ours."""
    home = tempfile.TemporaryDirectory(prefix="allmrec-parity-")
    root = Path(home.name)
    encoder, llm, runs = root / "encoder", root / "llm", root / "runs"
    for directory in (encoder, llm):
        directory.mkdir()
    layout = Layout(root / "official", cases.DATA_NAME)
    write_official(layout.root)
    write_official_stage1(layout.root, layout.stage1_epoch)
    write_sentence_encoder(encoder, dropout=True)
    write_opt(llm, cases.OPT, cases.TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "opt-nano" / name, llm / name)
    dataset = importing.import_data(layout, root / "data")
    cf = importing.import_cf(layout, dataset, runs)
    stage1 = importing.import_stage1(layout, dataset, cf, str(encoder), runs)
    return Files(home, dataset.path, cf, stage1, encoder, llm)


@functools.cache
def encoder(bert: bool = False) -> SentenceEncoder:
    """The case's sentence encoder without dropout, through our loader."""
    with tempfile.TemporaryDirectory() as directory:
        write_sentence_encoder(Path(directory), bert=bert)
        return load_sentence_encoder(directory)


@functools.cache
def opt(shape_350m: bool = False) -> tuple[Any, Any]:
    """OPT with the case's weights, through our loader."""
    with tempfile.TemporaryDirectory() as directory:
        config = cases.OPT_350M if shape_350m else cases.OPT
        write_opt(Path(directory), config, config["vocab_size"] if shape_350m else cases.TOKENS)
        return load_checkpoint(directory)


def forget() -> None:
    """Drops what loaders read, not the files."""
    encoder.cache_clear()
    opt.cache_clear()


# Settings: the presets, at the case's size.


def cf_settings(preset: str, **changes: Any) -> Any:
    """SASRec's."""
    size: dict[str, Any] = {
        "dim": cases.DIM,
        "heads": cases.HEADS,
        "max_length": cases.LENGTH,
        "batch_size": 2 * cases.BATCH,
    }
    return dataclasses.replace(registry.CF_PRESETS["sasrec"][preset], **size, **changes)


def stage1_settings_at(**changes: Any) -> stage1_settings.Stage1Settings:
    """Stage 1's ``official``, its rates raised."""
    preset = stage1_settings.PRESETS["official"]
    rates = {name: SPEED * getattr(preset, name) for name in ("learning_rate", "encoder_learning_rate")}
    return dataclasses.replace(preset, **rates, **changes)


def stage2_settings_at(**changes: Any) -> stage2_settings.Stage2Settings:
    """Stage 2's ``official`` in float32, its rate raised."""
    preset = stage2_settings.PRESETS["official"]
    return dataclasses.replace(preset, learning_rate=SPEED * preset.learning_rate, dtype="float32", **changes)


# Weights that no file holds: the case's, by our conversion.


def state(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> official.State:
    """The case's weights under ``prefix``."""
    return {name.removeprefix(prefix): value for name, value in cases.weights(shapes).items()}


def sasrec_params() -> Any:
    """SASRec's."""
    return jax.tree.map(jnp.asarray, official.sasrec_params(cases.weights(cases.sasrec_shapes()), cases.BLOCKS))


def alignment_params() -> Any:
    """The autoencoders'."""
    items = state(cases.autoencoder_shapes("mlp", cases.DIM), "mlp.")
    texts = state(cases.autoencoder_shapes("mlp2", cases.TEXT_ENCODER["dim"]), "mlp2.")
    return jax.tree.map(jnp.asarray, official.autoencoder_params(items, texts))


def projector_params() -> Any:
    """The projectors'."""
    users = state(cases.projector_shapes("log_emb_proj", cases.DIM), "log_emb_proj.")
    items = state(cases.projector_shapes("item_emb_proj", cases.LATENT), "item_emb_proj.")
    return jax.tree.map(jnp.asarray, official.projector_params(users, items))


def projector_states(params: Any) -> dict[str, Any]:
    """The projectors' under their official names."""
    states = zip(("log_emb_proj", "item_emb_proj"), official.projector_states(params), strict=True)
    return {f"{name}.{key}": value for name, found in states for key, value in found.items()}
