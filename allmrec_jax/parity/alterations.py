"""Mistakes made on our side on purpose: the self-test of the comparison, which must notice each of them."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from allmrec_jax import prompts as prompt_module
from allmrec_jax.official import exporting, reading
from allmrec_jax.official import parameters as official
from allmrec_jax.parity import ours
from allmrec_jax.parity.ours import CF, DECODE, OFFICIAL_DECODE, SASREC, STAGE1, STAGE2
from allmrec_jax.parity.reference import STAGE1_RATE, STAGE2_RATE
from allmrec_jax.prompts import STYLES


class Alteration(NamedTuple):
    """A mistake on our side, for the self-test.

    Attributes:
        what: in words.
        target: dotted name of what is replaced.
        value: what by.
    """

    what: str
    target: str
    value: Any

    @contextlib.contextmanager
    def made(self) -> Any:
        """While it lasts; caches of traced functions and of loaded weights are emptied around it."""
        _forget()
        with mock.patch(self.target, self.value):
            yield
        _forget()


def _forget() -> None:
    jax.clear_caches()
    for cached in (ours._encoder, ours._catalogue, ours._frozen_cf, ours._opt):
        cached.cache_clear()


def _stage1_with(**changes: Any) -> tuple[str, Any]:
    return "allmrec_jax.parity.ours.STAGE1", dataclasses.replace(STAGE1, **changes)


def _shifted_answers(answers: Any, pad: int) -> Any:
    ids, mask = prompt_module.pad_answers(answers, pad)  # not the name that is replaced
    return np.roll(ids, 1, axis=1), mask


_tensors, _read_sequences = exporting._tensors, reading.read_sequences


def _halved(state: official.State) -> Any:
    return _tensors({name: value.astype(np.float16) for name, value in state.items()})


def _reversed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    items, offsets = _read_sequences(path)
    return np.concatenate([part[::-1] for part in np.split(items, offsets[1:-1])]), offsets


_EPSILON = Alteration("LayerNorm epsilon 1e-6 for 1e-8", "allmrec_jax.models.cf.sasrec.LAYER_NORM_EPSILON", 1e-6)
_OFFSET = Alteration(
    "positions start one late", "allmrec_jax.parity.ours._positions", lambda real: np.cumsum(real, axis=1)
)
_OPT_EPSILON = Alteration("LayerNorm epsilon 1e-3 for 1e-5", "allmrec_jax.models.llm.opt.LAYER_NORM_EPSILON", 1e-3)
_GELU = Alteration(
    "the tanh approximation of GELU",
    "allmrec_jax.models.text_encoder.ACTIVATIONS",
    {"gelu": functools.partial(nn.gelu, approximate=True)},
)
_SLOPE = Alteration("LeakyReLU slope 0.02 for 0.01", "allmrec_jax.models.projectors.LEAKY_SLOPE", 0.02)

ALTERATIONS: dict[str, tuple[Alteration, ...]] = {
    "SASRec": (
        _EPSILON,
        Alteration("a causal mask that hides nothing", "allmrec_jax.models.cf.sasrec.np.tril", lambda x: x),
    ),
    "SASRec with dropout": (
        Alteration(
            "dropout scales as for a rate of 0.4",
            "allmrec_jax.parity.ours.SASREC",
            dataclasses.replace(SASREC, dropout=0.4),
        ),
    ),
    "SASRec training": (
        Alteration("beta2 0.999 for 0.98", "allmrec_jax.parity.ours.CF", dataclasses.replace(CF, beta2=0.999)),
    ),
    "Autoencoders": (Alteration("tanh for the sigmoid", "allmrec_jax.models.alignment.nn.sigmoid", nn.tanh),),
    "Sentence encoder": (_GELU,),
    "Sentence encoder, BERT": (_GELU,),
    "Stage 1": (
        Alteration("weight 0.5 for 0.2 of the text reconstruction", *_stage1_with(beta=0.5)),
        Alteration("weight 0.4 for 0.5 of the item reconstruction", *_stage1_with(alpha=0.4)),
        Alteration("weight 0.9 of the matching loss", *_stage1_with(match_weight=0.9)),
        Alteration("summed logits in the recommendation loss", *_stage1_with(mean_logits=False)),
        Alteration("a text target that is pulled along", *_stage1_with(detach_texts=False)),
        Alteration("only the positive item's errors", *_stage1_with(negatives_too=False)),
    ),
    "Stage 1 training": (
        Alteration(
            "learning rates of 1.5 times",
            *_stage1_with(learning_rate=1.5 * STAGE1_RATE, encoder_learning_rate=1.5 * STAGE1_RATE),
        ),
    ),
    "Prompts": (
        Alteration("the words of games", "allmrec_jax.parity.ours.STYLE", STYLES["games"]),
        Alteration(
            "titles tokenised with a space before them",
            "allmrec_jax.parity.ours.title_table",
            lambda tokenizer, titles, limit: prompt_module.title_table(
                tokenizer, [" " + title for title in titles], limit
            ),
        ),
    ),
    "Projectors": (
        _SLOPE,
        Alteration("LayerNorm epsilon 1e-3 for 1e-5", "allmrec_jax.models.projectors.LAYER_NORM_EPSILON", 1e-3),
    ),
    "OPT, right-padded": (_OFFSET, _OPT_EPSILON),
    "OPT, left-padded": (
        _OFFSET,
        Alteration(
            "padding is attended",
            "allmrec_jax.parity.ours._attention_mask",
            lambda real: np.tril(np.ones((len(real), real.shape[1], real.shape[1]), bool)),
        ),
    ),
    "OPT-350m's shape": (_OFFSET, _OPT_EPSILON),
    "Stage 2": (
        _SLOPE,
        _OPT_EPSILON,
        Alteration("targets one token late", "allmrec_jax.parity.ours.pad_answers", _shifted_answers),
    ),
    "Stage 2 training": (
        Alteration(
            "a learning rate of 1.5 times",
            "allmrec_jax.parity.ours.STAGE2",
            dataclasses.replace(STAGE2, learning_rate=1.5 * STAGE2_RATE),
        ),
    ),
    "Generation": (
        Alteration(
            "a repetition penalty of 1.5",
            "allmrec_jax.parity.ours.DECODE",
            dataclasses.replace(DECODE, repetition_penalty=1.5),
        ),
    ),
    "Generation, official settings": (
        Alteration(
            "no repetition penalty",
            "allmrec_jax.parity.ours.OFFICIAL_DECODE",
            dataclasses.replace(OFFICIAL_DECODE, repetition_penalty=1.0),
        ),
    ),
    "Hit@1 of eval.py": (
        Alteration(
            "equality for containment",
            "allmrec_jax.parity.ours.official_hit",
            lambda text, title: text.removesuffix('"') == title,
        ),
    ),
    "Conversion": (
        Alteration("checkpoints written in half precision", "allmrec_jax.official.exporting._tensors", _halved),
        Alteration("histories read back to front", "allmrec_jax.official.importing.read_sequences", _reversed),
    ),
}
"""What ``--selftest`` alters in each component: every one of them must turn its row red."""
