"""A data set and finished runs as the official code's files."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.data.dataset import NO_TITLE, Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_arrays, write_text
from allmrec_jax.models.cf.protocol import load_cf, read_card
from allmrec_jax.official import parameters as official
from allmrec_jax.official.layout import ENCODER_PREFIXES, LATENT, OFFICIAL, Layout
from allmrec_jax.pretrained.text_encoder_weights import state_of
from allmrec_jax.runs import find_upstream, require_upstream
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training import stage1_export


def export_data(dataset: Dataset, layout: Layout) -> list[Path]:
    """Interactions and texts as the official code reads them."""
    lines = [f"{user + 1} {item}\n" for user in range(dataset.num_users) for item in dataset.sequence(user).tolist()]
    write_text(OFFICIAL.claim_file(layout.root, layout.sequences), "".join(lines))
    titles = {item: title for item, title in enumerate(dataset.titles) if item and title != NO_TITLE}
    descriptions = {item: text for item, text in enumerate(dataset.descriptions) if item and text}
    with atomic_path(OFFICIAL.claim_file(layout.root, layout.texts)) as sibling:
        sibling.write_bytes(pickle.dumps({"title": titles, "description": descriptions}))
    return [layout.sequences, layout.texts]


def export_cf(dataset: Dataset, path: Path, layout: Layout) -> Path:
    """A ``train cf`` run of SASRec as the official code's checkpoint.

    Raises:
        UserError: the run is of another model or data set, or another checkpoint lies where it goes.
    """
    _, about = find_upstream(path.parent, "cf", dataset.name, dataset.hash, given=path)
    model, config = read_card(path / "export" / "cf.json")
    if model != "sasrec":
        raise UserError(f"{path}: the official code knows SASRec only, not {model}")
    settings = about["settings"]
    args = argparse.Namespace(
        dataset=layout.name,
        batch_size=settings["batch_size"],
        lr=settings["learning_rate"],
        maxlen=config["max_length"],
        hidden_units=config["dim"],
        num_blocks=config["blocks"],
        num_epochs=settings["epochs"],
        num_heads=config["heads"],
        dropout_rate=config["dropout"],
        l2_emb=0.0,
        device="cpu",
        inference_only=False,
        state_dict_path=None,
    )
    name = "SASRec.epoch={num_epochs}.lr={lr}.layer={num_blocks}.head={num_heads}.hidden={hidden_units}.maxlen={maxlen}"
    file = layout.cf_folder / f"{name.format(**vars(args))}.pth"
    if others := [other for other in layout.cf_folder.glob("*.pth") if other != file]:
        raise UserError(
            f"{others[0]} is there already, and the official code takes one *.pth in a folder; move it away"
        )
    state = official.sasrec_state(load_arrays(path / "export" / "params.safetensors"))
    about_model = {"user_num": dataset.num_users, "item_num": dataset.num_items, "args": args}
    _save_torch(OFFICIAL.claim_file(layout.root, file), [about_model, _tensors(state)])
    return file


def export_stage1(dataset: Dataset, path: Path, cf_path: Path, layout: Layout) -> list[Path]:
    """A ``train stage1`` run as ``sbert.pt``, ``mlp.pt`` and ``mlp2.pt``.

    Raises:
        UserError: the run was not built on that CF run, or its latents have another width than the official 128.
    """
    _, about = find_upstream(path.parent, "stage1", dataset.name, dataset.hash, given=path)
    require_upstream(path, about, "cf", load_cf(cf_path, dataset).identity)
    run = stage1_export.load_stage1(path)
    if run.joint.shape[1] != LATENT:
        raise UserError(f"{path}: joint embeddings of width {run.joint.shape[1]}; the official code's have {LATENT}")
    items, texts = official.autoencoder_states(run.params)
    encoder = state_of(run.encoder.config, run.encoder.params)
    sbert = {ENCODER_PREFIXES[0] + key: value for key, value in encoder.items()}
    states = {"sbert": sbert, "mlp": items, "mlp2": texts}
    for part, state in states.items():
        _save_torch(OFFICIAL.claim_file(layout.root, layout.stage1(part)), _tensors(state))
    return [layout.stage1(part) for part in states]


def export_stage2(dataset: Dataset, path: Path, layout: Layout) -> list[Path]:
    """A ``train stage2`` run as ``log_proj.pt`` and ``item_proj.pt``.

    Raises:
        UserError: it is of another data set, or has no user or no item projector.
    """
    find_upstream(path.parent, "stage2", dataset.name, dataset.hash, given=path)
    params = load_stage2(path).params
    if not {"user_in", "item_in"} <= params.keys():
        raise UserError(f"{path}: the official code needs both projectors, and this run left one out")
    users, items = official.projector_states(params)
    states = {"log_proj": users, "item_proj": items}
    for part, state in states.items():
        _save_torch(OFFICIAL.claim_file(layout.root, layout.stage2(part)), _tensors(state))
    return [layout.stage2(part) for part in states]


def _tensors(state: official.State) -> "OrderedDict[str, Any]":
    import torch

    return OrderedDict((key, torch.from_numpy(np.array(value, np.float32))) for key, value in state.items())


def _save_torch(path: Path, body: Any) -> None:
    import torch

    with atomic_path(path) as sibling:
        torch.save(body, sibling)
