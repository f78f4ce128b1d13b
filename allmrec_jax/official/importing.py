"""The official code's files as a data set and finished runs."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from allmrec_jax.data.dataset import NO_TITLE, Dataset, item_texts, replace_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import save_arrays, write_text
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRecCF, SASRecConfig
from allmrec_jax.models.text_encoder import tokenize_texts
from allmrec_jax.official import parameters as official
from allmrec_jax.official.layout import ENCODER_PREFIXES, LATENT, STYLES, Layout
from allmrec_jax.official.reading import read_sasrec, read_sequences, read_state, read_texts
from allmrec_jax.pretrained.llm import llm_hash, load_config
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder
from allmrec_jax.pretrained.text_encoder_weights import params_of
from allmrec_jax.pretrained.weights import in_memory
from allmrec_jax.runs import Run, find_upstream
from allmrec_jax.training import cf, stage1_batches, stage1_export, stage1_settings, stage2_settings


def import_data(layout: Layout, path: Path) -> Dataset:
    """The official data files as a data set at ``path``.

    An item without a title is called :data:`~allmrec_jax.data.dataset.NO_TITLE`, as there. An empty description counts
    as none.

    Raises:
        UserError: as the readers raise it, or a text belongs to an item that no one has.
    """
    items, offsets = read_sequences(layout.sequences)
    titles, descriptions = read_texts(layout.texts)
    count = int(items.max())
    for name, values in (("title", titles), ("description", descriptions)):
        if values and not 1 <= min(values) <= max(values) <= count:
            raise UserError(f"{layout.texts}: {name} of an item outside 1 to {count}, those of {layout.sequences}")
    return replace_dataset(
        path,
        name=layout.name,
        items=items,
        offsets=offsets,
        titles=[titles.get(item, NO_TITLE) for item in range(1, count + 1)],
        descriptions=[descriptions.get(item, "") for item in range(1, count + 1)],
        users_raw=[str(user) for user in range(1, len(offsets))],
        manifest={"source": "the official code's files"},
    )


def import_cf(layout: Layout, dataset: Dataset, out: Path) -> Path:
    """The official SASRec checkpoint as a finished ``train cf`` run.

    Raises:
        UserError: as :func:`read_sasrec`; there is none or more than one; or it belongs to other data.
    """
    found = sorted(layout.cf_folder.glob("*.pth"))
    if len(found) != 1:
        raise UserError(f"{layout.cf_folder}: {len(found)} *.pth files; exactly one is needed")
    users, items, args, state = read_sasrec(found[0])
    if (users, items) != (dataset.num_users, dataset.num_items):
        raise UserError(
            f"{found[0]}: made for {users} users and {items} items, but {layout.sequences} has {dataset.num_users} "
            f"and {dataset.num_items}"
        )
    preset: Any = CF_PRESETS["sasrec"]["official"]
    settings = dataclasses.replace(
        preset,
        dim=args.hidden_units,
        max_length=args.maxlen,
        blocks=args.num_blocks,
        heads=args.num_heads,
        dropout=float(args.dropout_rate),
        **{ours: getattr(args, theirs) for ours, theirs in _TRAINING.items() if hasattr(args, theirs)},
    )
    upstream = {"official": _sha256(found[0])}
    run = Run.open(out, dataset.name, "cf", settings, 0, dataset.hash, upstream)
    if not run.done:
        config = SASRecConfig(items, *(getattr(settings, name) for name in _CONFIG))
        params = official.sasrec_params(state, config.blocks)
        model = SASRecCF(config, params, run.identity)
        cf.export_cf(run, "sasrec", config, params, model, dataset, config.max_length)
        run.finish({"model": "sasrec", "epoch": settings.epochs, "imported": found[0].name})
    return run.path


_TRAINING = {"learning_rate": "lr", "batch_size": "batch_size", "epochs": "num_epochs"}
_CONFIG = ("dim", "blocks", "heads", "max_length", "dropout")


def import_stage1(layout: Layout, dataset: Dataset, cf_path: Path, encoder_name: str, out: Path) -> Path:
    """``sbert.pt``, ``mlp.pt`` and ``mlp2.pt`` as a finished ``train stage1`` run.

    Args:
        encoder_name: the encoder that training started from, for its configuration and tokenizer.

    Raises:
        UserError: a file is missing, or a key or shape does not fit.
    """
    model, base = load_cf(cf_path, dataset), load_sentence_encoder(encoder_name)
    states = {part: read_state(layout.stage1(part)) for part in ("sbert", "mlp", "mlp2")}
    for part, width in (("mlp", model.dim), ("mlp2", base.dim)):
        official.check_state(states[part], official.autoencoder_shapes(width, LATENT), layout.stage1(part))
    prefix = next((p for p in ENCODER_PREFIXES if all(key.startswith(p) for key in states["sbert"])), "")
    plain = {key.removeprefix(prefix): value for key, value in states["sbert"].items()}
    params = params_of(base.config, in_memory(plain, layout.stage1("sbert")), layout.stage1("sbert"))
    encoder = dataclasses.replace(base, params=params)

    settings = dataclasses.replace(stage1_settings.PRESETS["official"], epochs=layout.stage1_epoch)
    files = _sha256(*(layout.stage1(part) for part in states))
    upstream = {"cf": model.identity, "encoder": fingerprint(base), "official": files}
    run = Run.open(out, dataset.name, "stage1", settings, 0, dataset.hash, upstream)
    if not run.done:
        tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
        alignment = Alignment(model.dim, encoder.dim, LATENT)
        weights = official.autoencoder_params(states["mlp"], states["mlp2"])
        catalogue = stage1_batches.Catalogue(model.item_vectors(), tokens, None)
        stage1_export.export_stage1(run, alignment, weights, encoder, catalogue, dataset)
        card: dict[str, int | str] = {"item_dim": model.dim, "text_dim": encoder.dim, "latent_dim": LATENT}
        card |= {"encoder": encoder_name, "cf": str(cf_path)}
        write_text(run.export_path("stage1.json"), json.dumps(card, indent=2) + "\n")
        run.finish({"epoch": layout.stage1_epoch, "imported": layout.stage1("mlp").name})
    return run.path


def import_stage2(layout: Layout, dataset: Dataset, cf_path: Path, stage1_path: Path, llm: str, out: Path) -> Path:
    """``log_proj.pt`` and ``item_proj.pt`` as a finished ``train stage2`` run.

    Args:
        llm: the language model that they were trained with.

    Raises:
        UserError: a file is missing, or a key or shape does not fit.
    """
    model, width = load_cf(cf_path, dataset), load_config(llm).embed_dim
    _, about = find_upstream(out, "stage1", dataset.name, dataset.hash, given=stage1_path)
    states = {part: read_state(layout.stage2(part)) for part in ("log_proj", "item_proj")}
    for part, inputs in (("log_proj", model.dim), ("item_proj", LATENT)):
        official.check_state(states[part], official.projector_shapes(inputs, width), layout.stage2(part))
    settings = dataclasses.replace(
        stage2_settings.PRESETS["official"],
        epochs=layout.stage2_epoch,
        style=STYLES.get(layout.name, "neutral"),  # type: ignore[arg-type]
    )
    files = _sha256(*(layout.stage2(part) for part in states))
    upstream = {"cf": model.identity, "stage1": about["identity"], "llm": llm_hash(llm), "official": files}
    run = Run.open(out, dataset.name, "stage2", settings, 0, dataset.hash, upstream)
    if not run.done:
        params = official.projector_params(states["log_proj"], states["item_proj"])
        save_arrays(run.export_path("params.safetensors"), params)
        card = {"llm": llm, "cf": str(cf_path), "stage1": str(stage1_path)}
        write_text(run.export_path("stage2.json"), json.dumps(card, indent=2) + "\n")
        run.finish({"epoch": layout.stage2_epoch, "imported": layout.stage2("log_proj").name})
    return run.path


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
