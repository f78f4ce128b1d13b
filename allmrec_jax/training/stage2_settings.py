"""Settings and presets of stage 2."""

import dataclasses
from typing import Literal

from allmrec_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Stage2Settings:
    """What decides a stage-2 run's numbers."""

    epochs: int = setting(5, "passes over the training samples")
    steps: int = setting(0, "optimizer steps in place of epochs; 0 is by epochs")
    batch_size: int = setting(4, "prompts per optimizer step")
    accumulation: int = setting(1, "parts that a batch is computed in, one after the other; must divide it")
    learning_rate: float = setting(1e-4, "Adam's learning rate")
    beta2: float = setting(0.98, "Adam's second moment decay, the official code's")
    schedule: Literal["constant", "cosine"] = setting("constant", "of the learning rate after the warm-up")
    warmup_steps: int = setting(0, "steps of linear warm-up")
    warm_start_steps: int = setting(
        0, "steps that bring the projectors near each other among the word embeddings before the LLM takes part"
    )
    positions: Literal["last", "all"] = setting(
        "last", "targets: each training sequence's last item, or every item but the first (A-LLMRec_all)"
    )
    history_length: int = setting(10, "items of history in a prompt at most")
    candidates: int = setting(20, "titles to choose from")
    title_max_tokens: int = setting(32, "tokens that longer titles are cut to")
    style: Literal["neutral", "movies", "games", "goods"] = setting("neutral", "the words of the prompt")
    item_vectors: Literal["joint", "text", "normal", "cf", "none"] = setting(
        "joint",
        "behind each title: stage 1's joint embedding, its text latent, fixed random numbers of N(0, 1), the CF "
        "model's own vector without a stage 1 (MLP-LLM), or nothing",
    )
    text_share: float = setting(
        0.0, "share of the item vectors that training draws from the text latents, as for items without interactions"
    )
    user_vector: bool = setting(True, "begin with the user's vector")
    cf_train_mode: bool = setting(False, "leave the CF model's dropout on, as the official code does")
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", "of the language model; projectors are float32")
    remat: bool = setting(False, "recompute layers in the backward pass to save memory")
    choose: Literal["best", "last"] = setting("best", "export the best step on validation (Hit@1), or the last one")
    validation_users: int = setting(500, "users in a validation, a seeded sample; one validation each epoch")
    patience: int = setting(0, "validations without improvement before training stops; 0 is never")
    llm_weights: Literal["dtype", "int8"] = setting(
        "dtype", "the language model's kernels in its dtype, or rounded to int8", added=True
    )
    chat: bool = setting(False, "put prompts in the tokenizer's chat template, for models trained on one", added=True)
    sort_batches: int = setting(
        0,
        "batches in a row that share out their samples by the prompts' lengths, so that little is padding; 0 is none",
        added=True,
    )

    @property
    def kind(self) -> str:
        """Of the run: MLP-LLM, which has no stage 1, is a system of its own."""
        return "mlp-llm" if self.item_vectors == "cf" else "stage2"


PRESETS = {
    "paper": Stage2Settings(),
    "official": Stage2Settings(batch_size=2, title_max_tokens=256, cf_train_mode=True, choose="last"),
    "small": Stage2Settings(
        steps=320,
        batch_size=32,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=20,
        warm_start_steps=300,
        text_share=0.3,
        positions="all",
        history_length=6,
        title_max_tokens=16,
        dtype="float32",
        choose="last",
    ),
}
