"""Item vectors and projectors of a stage-2 run, for those who serve the language model elsewhere."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.projectors import Projectors
from allmrec_jax.official import parameters as official
from allmrec_jax.outputs import Output
from allmrec_jax.runs import find_upstream, require_upstream
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training import stage1_export

SERVING = Output(
    "export for serving",
    signs=("items.safetensors", "projectors.safetensors", "items.json"),
    names=("items.safetensors", "projectors.safetensors", "items.json", "README.md"),
)
"""The directory that :func:`export_serving` writes."""


def export_serving(dataset: Dataset, stage1_path: Path, stage2_path: Path, out: Path) -> Path:
    """Item vectors, latents and projector weights as safetensors with a README, in the directory ``out``.

    Raises:
        UserError: the runs do not belong together, or a file is damaged.
    """
    from safetensors.numpy import save_file

    _, about = find_upstream(stage1_path.parent, "stage1", dataset.name, dataset.hash, given=stage1_path)
    find_upstream(stage2_path.parent, "stage2", dataset.name, dataset.hash, given=stage2_path)
    run = load_stage2(stage2_path)
    require_upstream(stage2_path, run.about, "stage1", about["identity"])
    latents = run.latents(stage1_export.load_stage1(stage1_path))
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
    with SERVING.replacing(out) as folder:
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
