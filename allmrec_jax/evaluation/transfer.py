"""Systems trained on one data set and asked about the items of another, without training (the paper's Table 7).

What knows items by their text reads the other texts: MoRec's and RECFORMER's tables and A-LLMRec's text latents are
encoded anew by what they trained. What knows items by a table of vectors has none for them: the table is drawn anew, as
it is before training, and everything else is the trained model's.

Shapes: N items asked about, M items trained on, D CF width, L latent width.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.fileio import load_arrays
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.records import read_done
from allmrec_jax.rng import jax_key
from allmrec_jax.runs import load_run, run_settings, verify_export
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.stage1_export import Stage1Export


class TransferredSources(Sources):
    """The sources of systems that are asked about another data set's items.

    Args:
        dataset: what the runs were trained on.
        runs: see :class:`Sources`; the user's own arrays have nothing to say of other items.
        settings: how systems are asked.
        target: whose items are asked about.
    """

    def __init__(self, dataset: Dataset, runs: list[Path], settings: EvaluationSettings, target: Dataset) -> None:
        super().__init__(dataset, runs, settings)
        self.target, self.titles = target, target.titles

    @cached_property
    def cf(self) -> CFModel:
        """The frozen CF model of A-LLMRec over the other items, with an untrained table."""
        model = Sources.cf.func(self)  # type: ignore[attr-defined]
        return untrained_items(model, self.target.num_items)

    def scoring_model(self, need: str) -> CFModel:
        """The model of a run over the other items: by their texts where it reads texts, else untrained."""
        model, path = super().scoring_model(need), self.run(need)
        if need == "morec":
            return morec_over(path, model, self.target)
        if need.startswith("recformer"):
            return recformer_over(path, model, self.target)
        return untrained_items(model, self.target.num_items)

    @cached_property
    def stage1(self) -> Stage1Export:
        """Latents of the other items: joint embeddings of their untrained CF vectors, and those of their texts."""
        export = Sources.stage1.func(self)  # type: ignore[attr-defined]
        return stage1_over(export, self.cf, self.target)


def untrained_items(model: Any, num_items: int) -> Any:
    """A trained CF model over so many other items, whose table is as initialisation draws it, seeded by its identity.

    Everything that does not depend on the number of items is the trained model's.
    """
    config = dataclasses.replace(model.config, num_items=num_items)
    key = jax_key(int(model.identity[:8] or "0", 16), "transfer/untrained")
    fresh = type(model.model)(config).init_params(key)
    return type(model)(config, {**model.params, "item_embedding": fresh["item_embedding"]}, model.identity)


def morec_over(path: Path, model: Any, target: Dataset) -> CFModel:
    """MoRec over another data set's titles, by its trained encoder."""
    from allmrec_jax.baselines.morec import MoRecSettings, catalogue_params
    from allmrec_jax.models.text_encoder import tokenize_texts
    from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

    settings = run_settings(path, load_run(path), MoRecSettings)
    verify_export(path)
    encoder = load_sentence_encoder(path / "export" / "sentence_encoder", jnp.dtype(settings.dtype))
    params = {
        "sasrec": {name: leaf for name, leaf in model.params.items() if name != "item_embedding"},
        "head": load_arrays(path / "export" / "head.safetensors"),
        "encoder": jax.tree.map(jnp.asarray, encoder.params),
    }
    tokens = tokenize_texts(encoder, target.titles, settings.text_max_tokens)
    table = catalogue_params(encoder, settings, params, tokens)
    return type(model)(settings.sasrec(target.num_items), table, model.identity)


def recformer_over(path: Path, model: Any, target: Dataset) -> CFModel:
    """RECFORMER over another data set's items, by its trained Longformer."""
    from allmrec_jax.baselines.recformer import RecformerSettings, catalogue_tokens, load_start
    from allmrec_jax.models.recformer import RecformerCF, item_table

    about = load_run(path)
    settings = run_settings(path, about, RecformerSettings)
    start = load_start(settings, about["seed"], read_done(path).get("longformer") or "")
    tokens = catalogue_tokens(start.tokenizer, target, settings)
    table = item_table(model.config, model.params, tokens)
    return RecformerCF(model.config, model.params, table, tokens, model.identity)


def stage1_over(export: Stage1Export, cf: CFModel, target: Dataset) -> Stage1Export:
    """A stage-1 export over another data set's items: e of their vectors in ``cf``, and q of their texts.

    All count as trained, so that ``item_latents("joint")`` is e, as the paper's A-LLMRec has it, and ``"text"`` is q.
    """
    text = np.array(export.encode_texts(item_texts(target, export.settings.text_style)))
    joint = np.array(export.encode_items(cf.item_vectors()))
    joint[0] = text[0] = 0  # padding
    return dataclasses.replace(export, joint=joint, text=text, trained=np.ones(len(joint), bool))
