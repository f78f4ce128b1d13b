"""A finished stage-2 or MLP-LLM run, opened as the recommender that it trained; and LLM-Only, which nothing trains.

Shapes: N items, Dj width of an item vector.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import load_arrays
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender, SoftTokens
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.pretrained.frozen_llm import LLMWeights, load_llm, prompt_tables
from allmrec_jax.pretrained.llm import check_llm, llm_hash
from allmrec_jax.prompts import STYLES
from allmrec_jax.records import read_llm
from allmrec_jax.runs import load_run, run_settings, verify_export
from allmrec_jax.training.stage1_export import Stage1Export
from allmrec_jax.training.stage2 import item_latents
from allmrec_jax.training.stage2_settings import Stage2Settings


@dataclasses.dataclass(frozen=True)
class Stage2Export:
    """What a finished run gives to inference.

    Attributes:
        path: the run's directory.
        about: its ``run.json``.
        settings: those of the training.
        llm: name or path of the language model as given to training; ``about["upstream"]["llm"]`` is its hash.
        params: of the projectors.
    """

    path: Path
    about: dict[str, Any]
    settings: Stage2Settings
    llm: str
    params: Any

    def latents(self, stage1: Stage1Export | None, cf: CFModel | None = None) -> Float[np.ndarray, "N+1 Dj"] | None:
        """The item vectors of training, from the loaded stage 1 or, for MLP-LLM, the CF model."""
        return item_latents(stage1, self.settings.item_vectors, self.about["seed"], cf)

    def recommender(
        self,
        titles: list[str],
        latents: Float[np.ndarray, "N+1 Dj"] | None,
        *,
        llm: str | Path | None = None,
        llm_weights: LLMWeights | None = None,
        batch_size: int = 16,
        decode: DecodeSettings | None = None,
    ) -> LLMRecommender:
        """The trained system over a catalogue.

        Args:
            titles: [N+1], the first one padding's.
            latents: [N+1, Dj], the same rows: :meth:`latents`, or others (text latents, new items, controls).
            llm: where the language model is now; by default where it was in training.
            llm_weights: how its kernels are stored; by default as in training.
            batch_size: prompts read at once.
            decode: how titles are generated.

        Raises:
            UserError: the language model is not the one trained with.
        """
        name = llm or self.llm
        weights = llm_weights or self.settings.llm_weights
        check_llm(name, jnp.dtype(self.settings.dtype), int8=weights == "int8")
        if llm_hash(name) != self.about["upstream"]["llm"]:
            raise UserError(f"{name} is not the language model that {self.path} was trained with (its files differ)")
        model, llm_params = load_llm(name, self.settings.dtype, weights)
        return LLMRecommender(
            model,
            llm_params,
            prompt_tables(name, model.config, titles, self.settings.title_max_tokens, chat=self.settings.chat),
            STYLES[self.settings.style],
            sharding.place(SoftTokens(self.params, None if latents is None else jnp.asarray(latents))),
            user_slot=self.settings.user_vector,
            history_length=self.settings.history_length,
            batch_size=batch_size,
            decode=decode or DecodeSettings(),
        )


def load_stage2(path: Path | str) -> Stage2Export:
    """The export of a finished ``train stage2`` or ``train mlp-llm`` run.

    Raises:
        UserError: there is none at ``path``, or it is damaged.
    """
    path = Path(path)
    about = load_run(path)
    if about["kind"] not in ("stage2", "mlp-llm"):
        raise UserError(f"{path} is a {about['kind']} run; a stage2 run is needed here")
    verify_export(path)
    llm = read_llm(path, "stage2")
    params = jax.tree.map(jnp.asarray, load_arrays(path / "export" / "params.safetensors"))
    return Stage2Export(path, about, run_settings(path, about, Stage2Settings), llm, params)


def text_recommender(
    llm_name: str | Path,
    titles: list[str],
    settings: Stage2Settings,
    *,
    batch_size: int = 16,
    decode: DecodeSettings | None = None,
) -> LLMRecommender:
    """LLM-Only: the same frozen language model on the text-only prompt, with stage 2's prompt settings."""
    llm, llm_params = load_llm(llm_name, settings.dtype, settings.llm_weights)
    return LLMRecommender(
        llm,
        llm_params,
        prompt_tables(llm_name, llm.config, titles, settings.title_max_tokens, chat=settings.chat),
        STYLES[settings.style],
        history_length=settings.history_length,
        batch_size=batch_size,
        decode=decode or DecodeSettings(),
    )
