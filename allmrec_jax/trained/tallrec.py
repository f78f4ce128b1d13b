"""A finished TALLRec run, opened as the recommender that it trained."""

import dataclasses
from pathlib import Path
from typing import Any

from allmrec_jax.baselines.tallrec import KINDS, TallrecSettings, make_recommender
from allmrec_jax.errors import UserError
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.inference.yes_no import YesNoRecommender
from allmrec_jax.models.llm.lora import merge
from allmrec_jax.pretrained.frozen_llm import load_llm, prompt_tables
from allmrec_jax.pretrained.llm import llm_hash
from allmrec_jax.pretrained.peft import load_adapter
from allmrec_jax.records import read_llm
from allmrec_jax.runs import load_run, run_settings, verify_export


@dataclasses.dataclass(frozen=True)
class TallrecExport:
    """What a finished run gives to inference.

    Attributes:
        path: the run's directory.
        about: its ``run.json``.
        settings: those of the training.
        llm: name or path of the language model as given to training.
    """

    path: Path
    about: dict[str, Any]
    settings: TallrecSettings
    llm: str

    def recommender(
        self,
        titles: list[str],
        *,
        llm: str | Path | None = None,
        batch_size: int = 16,
        decode: DecodeSettings | None = None,
    ) -> LLMRecommender | YesNoRecommender:
        """The trained system over a catalogue.

        Args:
            titles: [N+1], the first one padding's.
            llm: where the language model is now; by default where it was in training.
            batch_size: prompts read at once.
            decode: how titles are generated.

        Raises:
            UserError: the language model is not the one trained with, or the adapter is damaged.
        """
        name = llm or self.llm
        if llm_hash(name) != self.about["upstream"]["llm"]:
            raise UserError(f"{name} is not the language model that {self.path} was trained with (its files differ)")
        model, llm_params = load_llm(name, self.settings.dtype)
        lora = load_adapter(self.path / "export" / "adapter", model.config)
        tables = prompt_tables(name, model.config, titles, self.settings.title_max_tokens)
        merged = merge(llm_params, lora.adapter, lora.scale)
        return make_recommender(model, merged, tables, self.settings, batch_size=batch_size, decode=decode)


def load_tallrec(path: Path | str) -> TallrecExport:
    """The export of a finished ``train tallrec`` run.

    Raises:
        UserError: there is none at ``path``, or it is damaged.
    """
    path = Path(path)
    about = load_run(path)
    if about["kind"] not in KINDS:
        raise UserError(f"{path} is a {about['kind']} run; a tallrec run is needed here")
    verify_export(path)
    llm = read_llm(path, "tallrec")
    return TallrecExport(path, about, run_settings(path, about, TallrecSettings), llm)
