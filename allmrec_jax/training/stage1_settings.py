"""Settings and presets of stage 1."""

import dataclasses
from typing import Literal

from allmrec_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Stage1Settings:
    """What decides a stage-1 run's numbers, with the sentence encoder that it starts from."""

    epochs: int = setting(10, "passes over the training samples")
    batch_size: int = setting(32, "samples per optimizer step")
    accumulation: int = setting(1, "parts that a batch is computed in, one after the other; must divide it")
    learning_rate: float = setting(1e-4, "Adam's, for the autoencoders")
    encoder_learning_rate: float = setting(1e-4, "Adam's, for the sentence encoder")
    beta2: float = setting(0.98, "Adam's second moment decay, the official code's")
    schedule: Literal["constant", "cosine"] = setting("constant", "of both learning rates")
    alpha: float = setting(0.5, "weight of the item reconstruction; 0 leaves it out")
    beta: float = setting(0.5, "weight of the text reconstruction; the paper's is 0.2 for Luxury Beauty and Toys")
    match_weight: float = setting(1.0, "weight of the matching loss; 0 leaves it out")
    rec_weight: float = setting(1.0, "weight of the recommendation loss; 0 leaves it out")
    latent_dim: int = setting(128, "width of the joint embeddings")
    positions: Literal["last", "all"] = setting(
        "last", "samples: each training sequence's last item, or every item but the first (A-LLMRec_all)"
    )
    negatives_too: bool = setting(False, "match and reconstruct the negative item too, as the official code does")
    mean_logits: bool = setting(False, "recommendation logits are a mean over the width, as in the official code")
    detach_texts: bool = setting(False, "the text reconstruction's target gets no gradient, as in the official code")
    freeze_encoder: bool = setting(False, "leave the sentence encoder as it is")
    cf_train_mode: bool = setting(False, "leave the CF model's dropout on, as the official code does")
    shuffle: bool = setting(True, "draw the samples' order anew in each epoch; the official code does not on one GPU")
    text_style: Literal["paper", "official"] = setting("paper", "form of an item's text, see `item_texts`")
    text_max_tokens: int = setting(512, "tokens that longer texts are cut to; the encoder's own limit holds too")
    text_prompt: str = setting(
        "",
        "before each text, such as 'passage: ', or one of the encoder's prompts by name; empty: its own default",
        added=True,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the sentence encoder's computation")
    choose: Literal["best", "last"] = setting("last", "export the epoch best on validation (loss), or the last one")
    validation_users: int = setting(1000, "users in a validation, a seeded sample; one validation each epoch")
    patience: int = setting(0, "validations without improvement before training stops; 0 is never")


PRESETS = {
    "paper": Stage1Settings(),
    "official": Stage1Settings(
        beta=0.2,
        negatives_too=True,
        mean_logits=True,
        detach_texts=True,
        cf_train_mode=True,
        shuffle=False,
        text_style="official",
    ),
    "small": Stage1Settings(
        epochs=8,
        batch_size=128,
        learning_rate=3e-3,
        encoder_learning_rate=3e-4,
        schedule="cosine",
        negatives_too=True,
        detach_texts=True,
        text_max_tokens=48,
    ),
}
