"""The official code's files through ``allmrec convert``, in and out again, and into the official code's own loaders."""

import argparse
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from allmrec_jax.parity import cases
from allmrec_jax.parity.directories import write_opt, write_sentence_encoder
from allmrec_jax.parity.reference import Outputs, kind
from allmrec_jax.parity.torch_parts import encoder_prefix, parameters

EPOCHS = 10, 5
"""Of the stages, in the files' names: those that the official code looks for."""


def through_ours(source: Path, work: Path) -> Path:
    """The official files below ``source`` turned into our data set and runs, and these into official files; their root.

    With the functions that ``allmrec convert`` calls.
    """
    from allmrec_jax.official import exporting, importing
    from allmrec_jax.official.layout import Layout

    before, after = Layout(source, cases.DATA_NAME, *EPOCHS), Layout(work / "out", cases.DATA_NAME, *EPOCHS)
    encoder, llm, runs = work / "encoder", work / "llm", work / "runs"
    encoder.mkdir()
    llm.mkdir()
    write_sentence_encoder(encoder)
    write_opt(llm, cases.OPT, cases.OPT["vocab_size"])
    dataset = importing.import_data(before, work / "data")
    cf = importing.import_cf(before, dataset, runs)
    stage1 = importing.import_stage1(before, dataset, cf, str(encoder), runs)
    stage2 = importing.import_stage2(before, dataset, cf, stage1, str(llm), runs)
    exporting.export_data(dataset, after)
    exporting.export_cf(dataset, cf, after)
    exporting.export_stage1(dataset, stage1, cf, after)
    exporting.export_stage2(dataset, stage2, after)
    return after.root


def save_stages(
    stages: list[Any], arguments: Callable[..., argparse.Namespace], at: AbstractContextManager[None]
) -> None:
    """The models' checkpoints by their own ``save_model``."""
    with at:
        for stage, model in enumerate(stages, 1):
            model.save_model(arguments(stage), *EPOCHS[:stage])


def loaded(model: Any, arguments: argparse.Namespace, utils: ModuleType) -> Outputs:
    """What the official code has after loading its files from the working directory, by its own loaders.

    It never loads ``sbert.pt`` and ``mlp2.pt`` back; these go through ``load_state_dict`` as the others do. Ours holds
    the names of sentence-transformers up to 5, which it was written for.
    """
    from allmrec_jax.official.layout import ENCODER_PREFIXES

    model.load_model(arguments, *EPOCHS)
    prefix = encoder_prefix(model.sbert)
    for part, module in (("sbert", model.sbert), ("mlp2", model.mlp2)):
        file = f"./models/saved_models/{cases.DATA_NAME}_sasrec_{EPOCHS[0]}_{part}.pt"
        state = torch.load(file, map_location="cpu")
        module.load_state_dict({key.replace(ENCODER_PREFIXES[0], prefix): value for key, value in state.items()})
    training, valid, test, users, items = utils.data_partition(
        cases.DATA_NAME, path=f"./data/amazon/{cases.DATA_NAME}.txt"
    )
    sequences = [training[user] + valid[user] + test[user] for user in range(1, users + 1)]
    model.requires_grad_(True)
    found = {
        **parameters(model.recsys.model, "recsys."),
        **{
            name.replace(f"sbert.{prefix}", "sbert."): value
            for name, value in parameters(model.sbert, "sbert.").items()
        },
        **parameters(model.mlp, "mlp."),
        **parameters(model.mlp2, "mlp2."),
        **parameters(model.log_emb_proj, "log_emb_proj."),
        **parameters(model.item_emb_proj, "item_emb_proj."),
        **data_arrays(sequences, items, model.text_name_dict["title"], model.text_name_dict["description"]),
    }
    return kind("exact", found)


def expected() -> Outputs:
    """What they should have: the case's own weights, histories and texts."""
    linears = {
        **cases.autoencoder_shapes("mlp", cases.DIM),
        **cases.autoencoder_shapes("mlp2", cases.TEXT_ENCODER["dim"]),
        **cases.projector_shapes("log_emb_proj", cases.DIM),
        **cases.projector_shapes("item_emb_proj", cases.LATENT),
    }
    found = {
        **{f"recsys.{name}": value for name, value in cases.weights(cases.sasrec_shapes()).items()},
        **{f"sbert.{name}": value for name, value in cases.weights(cases.distilbert_shapes()).items()},
        **cases.weights(linears),
        **data_arrays(cases.histories(), cases.ITEMS, *cases.texts()),
    }
    return kind("exact", found)


def data_arrays(
    sequences: list[list[int]], items: int, titles: dict[int, str], descriptions: dict[int, str]
) -> Outputs:
    """Interactions and texts as numbers."""
    found = {"histories": np.concatenate(sequences), "lengths": np.asarray([len(items) for items in sequences])}
    found["items"] = np.asarray(items)
    for name, values in (("titles", titles), ("descriptions", descriptions)):
        found[name] = np.frombuffer(pickle.dumps(sorted(values.items()), protocol=5), np.uint8)
    return found
