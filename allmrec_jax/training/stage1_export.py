"""What stage 1 hands on: the items' latents, the autoencoders and the sentence encoder.

Shapes: D CF width, L latent width, N items.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_array, load_arrays, save_arrays
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.text_encoder import SentenceEncoder, encode_table, encode_texts
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder, save_sentence_encoder
from allmrec_jax.runs import Run, load_run, run_settings, verify_export
from allmrec_jax.training.stage1_batches import Catalogue
from allmrec_jax.training.stage1_settings import Stage1Settings


def export_stage1(
    run: Run, alignment: Alignment, params: Any, encoder: SentenceEncoder, catalogue: Catalogue, dataset: Dataset
) -> None:
    """Writes what :func:`load_stage1` reads: latents of all items, parameters, and the sentence encoder."""
    texts = catalogue.texts
    if texts is None:
        texts = encode_table(encoder.model, encoder.params, catalogue.tokens)
    arrays = {
        "items_joint": np.array(alignment.apply({"params": params}, catalogue.items, method="encode_items")),
        "items_text": np.array(alignment.apply({"params": params}, texts, method="encode_texts")),
    }
    for latents in arrays.values():
        latents[0] = 0  # padding
    save_arrays(run.export_path("params.safetensors"), params)
    save_sentence_encoder(run.export_path("sentence_encoder"), encoder)
    for name, array in {**arrays, "trained": dataset.train_count > 0}.items():
        with atomic_path(run.export_path(f"{name}.npy")) as sibling, sibling.open("wb") as stream:
            np.save(stream, array)


@dataclasses.dataclass(frozen=True)
class Stage1Export:
    """What stage 1 hands on.

    Attributes:
        joint: e of each item [N+1, L], from its CF vector; row 0 is zero.
        text: q of each item [N+1, L], from its text; row 0 is zero.
        trained: [N+1], whether the CF vector was trained on any interaction.
        params: of the autoencoders.
        settings: the run's.
        path: the run's directory.
    """

    joint: Float[np.ndarray, "N+1 L"]
    text: Float[np.ndarray, "N+1 L"]
    trained: Bool[np.ndarray, "N+1"]
    params: Any
    settings: Stage1Settings
    path: Path

    def item_latents(self, mode: Literal["joint", "text"] = "joint") -> Float[np.ndarray, "N+1 L"]:
        """The items' latents: ``joint`` is e, and q for items without a trained vector; ``text`` is q for all."""
        return self.text if mode == "text" else np.where(self.trained[:, None], self.joint, self.text)

    @functools.cached_property
    def encoder(self) -> SentenceEncoder:
        """The fine-tuned sentence encoder, loaded on first use."""
        return load_sentence_encoder(self.path / "export" / "sentence_encoder")

    def encode_items(self, vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n L"]:
        """e of items' CF vectors."""
        alignment = Alignment(vectors.shape[1], 0, self.joint.shape[1])  # texts take no part
        return np.asarray(alignment.apply({"params": self.params}, vectors, method="encode_items"))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n L"]:
        """q of texts in the form of :func:`allmrec_jax.data.dataset.item_texts`, in this run's ``text_style``."""
        vectors = encode_texts(self.encoder, texts, self.settings.text_max_tokens)
        alignment = Alignment(self.joint.shape[1], vectors.shape[1], self.text.shape[1])
        return np.asarray(alignment.apply({"params": self.params}, vectors, method="encode_texts"))


def load_stage1(path: Path | str) -> Stage1Export:
    """The export of a finished ``train stage1`` run.

    Raises:
        UserError: there is none at ``path``, it is unfinished or of another kind, or a file is damaged.
    """
    path = Path(path)
    about = load_run(path)
    if about["kind"] != "stage1":
        raise UserError(f"{path} is a {about['kind']} run; a stage1 run is needed here")
    verify_export(path)
    names = ("items_joint", "items_text", "trained")
    arrays = {name: load_array(path / "export" / f"{name}.npy", "train stage 1 again") for name in names}
    params = load_arrays(path / "export" / "params.safetensors")
    settings = run_settings(path, about, Stage1Settings)
    return Stage1Export(arrays["items_joint"], arrays["items_text"], arrays["trained"], params, settings, path)
