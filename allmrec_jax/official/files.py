"""The official code's files, read and written: data set, SASRec checkpoint, stage 1, stage 2.

Where it keeps them, below its root (NAME is the data set, E1 and E2 the stages' epochs):

    data/amazon/NAME.txt                             a line "user item" an interaction, both from 1, in order
    data/amazon/NAME_text_name_dict.json.gz          a plain pickle: {"title": {item: …}, "description": {item: …}}
    pre_train/sasrec/NAME/*.pth                      [{"user_num", "item_num", "args"}, state dict]
    models/saved_models/NAME_sasrec_E1_*.pt          sbert, mlp, mlp2: state dicts
    models/saved_models/NAME_sasrec_E1_opt_E2_*.pt   log_proj, item_proj: state dicts

Pickles are read by unpicklers that know exactly what those files hold; anything else in them is refused, named, and not
run.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from allmrec_jax.data.dataset import NO_TITLE, Dataset, item_texts, write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_arrays, save_arrays, write_text
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.protocol import load_cf, read_card
from allmrec_jax.models.cf.sasrec import SASRecCF, SASRecConfig
from allmrec_jax.models.projectors import Projectors
from allmrec_jax.models.text_encoder import tokenize_texts
from allmrec_jax.official import parameters as official
from allmrec_jax.pretrained.llm import llm_hash, read_llm_config
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, params_of, state_of
from allmrec_jax.runs import Run, find_upstream, require_upstream
from allmrec_jax.training import cf, stage1, stage2

LATENT = 128
"""Width of the joint embeddings, fixed in the official code."""

STYLES = {
    "Movies_and_TV": "movies",
    "Video_Games": "games",
    "Luxury_Beauty": "goods",
    "Toys_and_Games": "goods",
}
"""The words of the official prompts by data set; it has none for others."""

ENCODER_PREFIXES = ("0.auto_model.", "0.model.")
"""Before Hugging Face's names in ``sbert.pt``: of sentence-transformers up to 5 and since 6."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of one data set are, below the official code's root."""

    root: Path
    name: str
    stage1_epoch: int = 10
    stage2_epoch: int = 5

    @property
    def sequences(self) -> Path:
        """The interactions."""
        return self.root / "data" / "amazon" / f"{self.name}.txt"

    @property
    def texts(self) -> Path:
        """Titles and descriptions."""
        return self.root / "data" / "amazon" / f"{self.name}_text_name_dict.json.gz"

    @property
    def cf_folder(self) -> Path:
        """Of the CF checkpoint; the official code wants exactly one in it."""
        return self.root / "pre_train" / "sasrec" / self.name

    def stage1(self, part: str) -> Path:
        """``sbert``, ``mlp`` or ``mlp2``."""
        return self.root / "models" / "saved_models" / f"{self.name}_sasrec_{self.stage1_epoch}_{part}.pt"

    def stage2(self, part: str) -> Path:
        """``log_proj`` or ``item_proj``."""
        name = f"{self.name}_sasrec_{self.stage1_epoch}_opt_{self.stage2_epoch}_{part}.pt"
        return self.root / "models" / "saved_models" / name


# Reading


class _PlainUnpickler(pickle.Unpickler):
    """For pickles of dictionaries, strings and numbers, which name no class or function."""

    def __init__(self, stream: io.BufferedIOBase, path: Path) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Refuses."""
        raise UserError(refusal(self.path, f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> Any:
        """Refuses."""
        raise UserError(refusal(self.path, "an object outside of the file"))


def refusal(path: Path, what: str) -> str:
    """What a pickle with anything unexpected gets."""
    return f"{path}: refused: the pickle asks for {what}, which such a file never holds; nothing of it was run"


def read_texts(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Titles and descriptions by item.

    Raises:
        UserError: the file is missing, damaged, holds another thing, or anything but plain values.
    """
    try:
        with path.open("rb") as stream:
            body = _PlainUnpickler(stream, path).load()
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a readable pickle ({error})") from error
    if not isinstance(body, dict) or set(body) != {"title", "description"}:
        raise UserError(f"{path}: should hold a dictionary of 'title' and 'description'")
    for name, values in body.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {name} should be a dictionary from item to text")
        for item, text in values.items():
            if type(item) is not int or type(text) is not str:
                raise UserError(f"{path}: {name} of {item!r} should be a text by a whole number")
    return body["title"], body["description"]


def read_sequences(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Items [total] of all users, user by user, and offsets [U+1].

    Raises:
        UserError: the file is missing or empty, a line is not two numbers from 1, or a user is left out.
    """
    users: dict[int, list[int]] = {}
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            parts = line.split()
            if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
                raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} should be a user and an item, from 1")
            users.setdefault(int(parts[0]), []).append(int(parts[1]))
    if not users:
        raise UserError(f"{path}: no interactions")
    for user in range(1, max(users) + 1):
        if user not in users:
            raise UserError(
                f"{path}: user {user} of {max(users)} has no interaction; the official code fails there too"
            )
    sequences = [users[user] for user in range(1, max(users) + 1)]
    items = np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences])
    return items, np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])


def load_torch(path: Path, *, arguments: bool = False) -> Any:
    """A torch file of plain tensors; with ``arguments`` also an ``argparse.Namespace``.

    Raises:
        UserError: the file is missing or damaged, or its pickle asks for anything else.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if arguments else contextlib.nullcontext()
    try:
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(refusal(path, found[1])) from None
        raise UserError(f"{path}: not a checkpoint of plain tensors ({_first_line(error)})") from None
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not a torch file ({_first_line(error)})") from None


def read_state(path: Path, state: Any = None) -> official.State:
    """A state dict as arrays, from ``path`` or already loaded from it.

    Raises:
        UserError: as :func:`load_torch`; or it is no state dict of float32 tensors.
    """
    import torch

    state = load_torch(path) if state is None else state
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: should hold a state dict, holds a {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            raise UserError(f"{path}: key {key!r} should be a float32 tensor")
    return {key: value.numpy() for key, value in state.items()}


def read_sasrec(path: Path) -> tuple[int, int, argparse.Namespace, official.State]:
    """Users, items, arguments and checked parameters of the official SASRec.

    Raises:
        UserError: as :func:`load_torch`; or a part, key or argument is missing, extra or does not fit the others.
    """
    body = load_torch(path, arguments=True)
    if not isinstance(body, list) or len(body) != 2 or not isinstance(body[0], dict):
        raise UserError(f"{path}: should hold a list of arguments and a state dict")
    about, state = body[0], read_state(path, body[1])
    if set(about) != {"user_num", "item_num", "args"} or not isinstance(about["args"], argparse.Namespace):
        raise UserError(f"{path}: should begin with user_num, item_num and args, has {', '.join(map(str, about))}")
    args = about["args"]
    for name, kind in _ARGUMENTS.items():
        if not isinstance(getattr(args, name, None), kind):
            raise UserError(f"{path}: its arguments have no usable {name}")
    for name in ("user_num", "item_num"):
        if type(about[name]) is not int:
            raise UserError(f"{path}: {name} should be a whole number")
    positions = state.get("pos_emb.weight", np.zeros((args.maxlen, 0)))
    if len(positions) != args.maxlen:
        raise UserError(
            f"{path}: its arguments say maxlen {args.maxlen}, but its key 'pos_emb.weight' holds {len(positions)} "
            "positions; it was not saved by one training run, use the checkpoint as that wrote it"
        )
    shapes = official.sasrec_shapes(about["item_num"], args.hidden_units, args.num_blocks, args.maxlen)
    official.check_state(state, shapes, path)
    return about["user_num"], about["item_num"], args, state


_ARGUMENTS: dict[str, Any] = {
    "hidden_units": int,
    "maxlen": int,
    "num_blocks": int,
    "num_heads": int,
    "dropout_rate": (int, float),
}
"""Those that decide the computation."""


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
    return write_dataset(
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
    preset: Any = cf.PRESETS["sasrec"]["official"]
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
    params = params_of(base.config, plain, plain.__getitem__, layout.stage1("sbert"))
    encoder = dataclasses.replace(base, params=params)

    settings = dataclasses.replace(stage1.PRESETS["official"], epochs=layout.stage1_epoch)
    files = _sha256(*(layout.stage1(part) for part in states))
    upstream = {"cf": model.identity, "encoder": fingerprint(base), "official": files}
    run = Run.open(out, dataset.name, "stage1", settings, 0, dataset.hash, upstream)
    if not run.done:
        tokens = tokenize_texts(encoder, item_texts(dataset, settings.text_style), settings.text_max_tokens)
        alignment = Alignment(model.dim, encoder.dim, LATENT)
        weights = official.autoencoder_params(states["mlp"], states["mlp2"])
        catalogue = stage1.Catalogue(model.item_vectors(), tokens, None)
        stage1.export_stage1(run, alignment, weights, encoder, catalogue, dataset)
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
    model, width = load_cf(cf_path, dataset), read_llm_config(llm).word_embed_proj_dim
    _, about = find_upstream(out, "stage1", dataset.name, dataset.hash, given=stage1_path)
    states = {part: read_state(layout.stage2(part)) for part in ("log_proj", "item_proj")}
    for part, inputs in (("log_proj", model.dim), ("item_proj", LATENT)):
        official.check_state(states[part], official.projector_shapes(inputs, width), layout.stage2(part))
    settings = dataclasses.replace(
        stage2.PRESETS["official"],
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


# Writing


def export_data(dataset: Dataset, layout: Layout) -> list[Path]:
    """Interactions and texts as the official code reads them."""
    lines = [f"{user + 1} {item}\n" for user in range(dataset.num_users) for item in dataset.sequence(user).tolist()]
    write_text(layout.sequences, "".join(lines))
    titles = {item: title for item, title in enumerate(dataset.titles) if item and title != NO_TITLE}
    descriptions = {item: text for item, text in enumerate(dataset.descriptions) if item and text}
    with atomic_path(layout.texts) as sibling:
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
    _save_torch(file, [about_model, _tensors(state)])
    return file


def export_stage1(dataset: Dataset, path: Path, cf_path: Path, layout: Layout) -> list[Path]:
    """A ``train stage1`` run as ``sbert.pt``, ``mlp.pt`` and ``mlp2.pt``.

    Raises:
        UserError: the run was not built on that CF run, or its latents have another width than the official 128.
    """
    _, about = find_upstream(path.parent, "stage1", dataset.name, dataset.hash, given=path)
    require_upstream(path, about, "cf", load_cf(cf_path, dataset).identity)
    run = stage1.load_stage1(path)
    if run.joint.shape[1] != LATENT:
        raise UserError(f"{path}: joint embeddings of width {run.joint.shape[1]}; the official code's have {LATENT}")
    items, texts = official.autoencoder_states(run.params)
    encoder = state_of(run.encoder.config, run.encoder.params)
    sbert = {ENCODER_PREFIXES[0] + key: value for key, value in encoder.items()}
    states = {"sbert": sbert, "mlp": items, "mlp2": texts}
    for part, state in states.items():
        _save_torch(layout.stage1(part), _tensors(state))
    return [layout.stage1(part) for part in states]


def export_stage2(dataset: Dataset, path: Path, layout: Layout) -> list[Path]:
    """A ``train stage2`` run as ``log_proj.pt`` and ``item_proj.pt``.

    Raises:
        UserError: it is of another data set, or has no user or no item projector.
    """
    find_upstream(path.parent, "stage2", dataset.name, dataset.hash, given=path)
    params = stage2.load_stage2(path).params
    if not {"user_in", "item_in"} <= params.keys():
        raise UserError(f"{path}: the official code needs both projectors, and this run left one out")
    users, items = official.projector_states(params)
    states = {"log_proj": users, "item_proj": items}
    for part, state in states.items():
        _save_torch(layout.stage2(part), _tensors(state))
    return [layout.stage2(part) for part in states]


def _tensors(state: official.State) -> "OrderedDict[str, Any]":
    import torch

    return OrderedDict((key, torch.from_numpy(np.array(value, np.float32))) for key, value in state.items())


def _save_torch(path: Path, body: Any) -> None:
    import torch

    with atomic_path(path) as sibling:
        torch.save(body, sibling)


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


# For those who serve the language model elsewhere


def export_serving(dataset: Dataset, stage1_path: Path, stage2_path: Path, out: Path) -> Path:
    """Item vectors, latents and projector weights as safetensors with a README, in the directory ``out``.

    Raises:
        UserError: the runs do not belong together, or a file is damaged.
    """
    from safetensors.numpy import save_file

    _, about = find_upstream(stage1_path.parent, "stage1", dataset.name, dataset.hash, given=stage1_path)
    find_upstream(stage2_path.parent, "stage2", dataset.name, dataset.hash, given=stage2_path)
    run = stage2.load_stage2(stage2_path)
    require_upstream(stage2_path, run.about, "stage1", about["identity"])
    latents = run.latents(stage1.load_stage1(stage1_path))
    if latents is None or "user_in" not in run.params:
        raise UserError(f"{stage2_path}: a run with user and item vectors is needed, and this one left one out")
    width = run.params["item_out"]["kernel"].shape[1]
    _, tokens = Projectors(width).apply({"params": run.params}, None, jnp.asarray(latents))
    tokens = np.array(tokens)
    tokens[0] = 0  # padding
    users, items = official.projector_states(run.params)
    projectors = {
        f"{name}.{key}": value for name, state in (("user", users), ("item", items)) for key, value in state.items()
    }
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        vectors = {"item_tokens": tokens, "item_latents": np.asarray(latents, np.float32)}
        save_file(vectors, folder / "items.safetensors")
        save_file(projectors, folder / "projectors.safetensors")
        ids = dataset.items_raw
        (folder / "items.json").write_text(json.dumps({"raw_id": ids, "title": dataset.titles}, ensure_ascii=False))
        (folder / "README.md").write_text(_README.format(
            name=dataset.name, llm=run.llm, items=dataset.num_items, width=width, latent=latents.shape[1],
            user=users["0.weight"].shape[1], history=run.settings.history_length, style=run.settings.style,
        ))  # fmt: skip
    return out


_README = """\
# A-LLMRec on {name}, for {llm}

Item vectors and projectors of a stage-2 run, for serving the language model elsewhere. float32; row 0 is padding.

| file | tensor | shape |
|---|---|---|
| items.safetensors | `item_tokens`: what stands at an item's slot, in place of a word embedding | {items}+1 × {width} |
| items.safetensors | `item_latents`: joint embeddings, the item projector's input | {items}+1 × {latent} |
| projectors.safetensors | `user.*`, `item.*`: see below | |
| items.json | `raw_id`, `title` by row | {items}+1 |

Projectors, in PyTorch's names and layouts ([out, in]):

    user: Linear 0 ({user} → {width}), LayerNorm 1 (eps 1e-5), LeakyReLU (0.01), Linear 3
    item: Linear 0 ({latent} → {width}), LayerNorm 1 (eps 1e-5), GELU (exact), Linear 3

`torch.nn.Sequential(Linear, LayerNorm, LeakyReLU() or GELU(), Linear)` loads each with its prefix taken off.
`item_tokens` is `item` applied to `item_latents`. A user's soft token is `user` applied to the CF model's user vector.

The prompt, in the words `{style}`, with the last {history} items of the history:

    <user token></s> is a user representation.This user has … "TITLE"<item token>,"TITLE"<item token> in the previous.
    Recommend one next … title set, "TITLE"<item token>,…. The recommendation is "

on one line; the pieces between titles and tokens are tokenised one by one, see `allmrec_jax/prompts.py`. Greedy
decoding then writes a candidate's title and a closing quote.
"""
