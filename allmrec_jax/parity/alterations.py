"""Mistakes made in the product on purpose: the self-test of the comparison, which must notice each of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from allmrec_jax import prompts, rng
from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.inference import decode
from allmrec_jax.models.cf import registry, sequential
from allmrec_jax.official import exporting, layout, reading
from allmrec_jax.official import parameters as official
from allmrec_jax.parity import ours_files
from allmrec_jax.training import cf, stage1_settings, stage2, stage2_batches, stage2_settings


class Alteration(NamedTuple):
    """A mistake in the product, for the self-test.

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
        ours_files.files()  # written before anything is altered
        _forget()
        with mock.patch(self.target, self.value):
            yield
        _forget()


def _forget() -> None:
    jax.clear_caches()
    ours_files.forget()


def _with(presets: Mapping[str, Any], name: str = "official", **changes: Any) -> dict[str, Any]:
    """Presets, one of them with other values."""
    return dict(presets) | {name: dataclasses.replace(presets[name], **changes)}


def _sasrec(what: str, **changes: Any) -> Alteration:
    presets = dict(registry.CF_PRESETS) | {"sasrec": _with(registry.CF_PRESETS["sasrec"], **changes)}
    return Alteration(what, "allmrec_jax.models.cf.registry.CF_PRESETS", presets)


def _stage1(what: str, **changes: Any) -> Alteration:
    presets = _with(stage1_settings.PRESETS, **changes)
    return Alteration(what, "allmrec_jax.training.stage1_settings.PRESETS", presets)


def _stage2(what: str, **changes: Any) -> Alteration:
    presets = _with(stage2_settings.PRESETS, **changes)
    return Alteration(what, "allmrec_jax.training.stage2_settings.PRESETS", presets)


def _decoding(what: str, preset: str, **changes: Any) -> Alteration:
    return Alteration(what, "allmrec_jax.inference.decode.PRESETS", _with(decode.PRESETS, preset, **changes))


# Draws.

_bucket_loss, _batch_rows, _user_vectors = cf.bucket_loss, cf.batch_rows, stage2_batches.Stage2Sampler.user_vectors
_items_before, _item_latents, _numpy_rng = Dataset.items_before, stage2.item_latents, rng.numpy_rng
_title_table, _pad_answers, _prefill = prompts.title_table, prompts.pad_answers, decode.prefill


def _one_key(model: Any, loss: Any, params: Any, bucket: Any, free_below: Any, key: Any) -> Any:
    return _bucket_loss(model, loss, params, bucket, free_below, jax.random.key(0))


def _any_items(key: Any, below: Any, start: Any, end: Any, items: int, time: int) -> Any:
    return jax.random.randint(key, (len(start), time), 1, items + 1)


def _half_of_the_users(key: Any, users: int, *args: Any) -> Any:
    return _batch_rows(key, users // 2, *args)


def _of_step_0(seed: int, purpose: str, step: int = 0) -> Any:
    return _numpy_rng(seed, purpose)


def _with_the_target(dataset: Dataset, users: Any, places: Any, width: int) -> Any:
    return _items_before(dataset, users, places + 1, width)


def _reversed_history(sampler: Any, question: Any, key: Any = None) -> Any:
    histories = question.histories.copy()
    for row in histories:
        row[row > 0] = row[row > 0][::-1]
    return _user_vectors(sampler, question._replace(histories=histories), key)


def _text_latents(stage1: Any, kind: Any, *args: Any) -> Any:
    return _item_latents(stage1, "text", *args)


def _paper_texts(dataset: Dataset, style: Any) -> Any:
    return item_texts(dataset, "paper")


class _Unscaled(sequential.Dropout):
    """Does not scale up what it keeps."""

    @nn.compact
    def __call__(self, x: Any, deterministic: bool) -> Any:
        if deterministic or self.rate == 0:
            return x
        return jnp.where(jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape), x, 0.0)


class _Off(sequential.Dropout):
    """Keeps everything."""

    @nn.compact
    def __call__(self, x: Any, deterministic: bool) -> Any:
        return x


def _kept_pads(module: Any, weight: Any, deterministic: bool) -> Any:
    return weight


# The language model, prompts and files.


def _spaced(tokenizer: Any, titles: list[str], limit: int) -> Any:
    return _title_table(tokenizer, [" " + title for title in titles], limit)


def _shifted_answers(answers: Any, pad: int, width: int = 0) -> Any:
    ids, mask = _pad_answers(answers, pad, width)
    return np.roll(ids, 1, axis=1), mask


def _all_attended(q: Any, k: Any, v: Any, **options: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k), axis=-1)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)


def _late(llm: Any, params: Any, embeds: Any, lengths: Any) -> Any:
    table = jnp.roll(params["embed_positions"]["embedding"], -1, axis=0)
    return _prefill(llm, params | {"embed_positions": {"embedding": table}}, embeds, lengths)


_tensors, _read_sequences = exporting._tensors, reading.read_sequences


def _halved(state: official.State) -> Any:
    return _tensors({name: value.astype(np.float16) for name, value in state.items()})


def _reversed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    items, offsets = _read_sequences(path)
    return np.concatenate([part[::-1] for part in np.split(items, offsets[1:-1])]), offsets


_EPSILON = Alteration("LayerNorm epsilon 1e-6 for 1e-8", "allmrec_jax.models.cf.sasrec.LAYER_NORM_EPSILON", 1e-6)
_OFFSET = Alteration("positions start one late", "allmrec_jax.inference.decode.prefill", _late)
_OPT_EPSILON = Alteration("LayerNorm epsilon 1e-3 for 1e-5", "allmrec_jax.models.llm.opt.LAYER_NORM_EPSILON", 1e-3)
_GELU = Alteration(
    "the tanh approximation of GELU",
    "allmrec_jax.models.text_encoder.ACTIVATIONS",
    {"gelu": functools.partial(nn.gelu, approximate=True)},
)
_SLOPE = Alteration("LeakyReLU slope 0.02 for 0.01", "allmrec_jax.models.projectors.LEAKY_SLOPE", 0.02)
_ONE_KEY = Alteration("the same negatives and dropout in every step", "allmrec_jax.training.cf.bucket_loss", _one_key)

ALTERATIONS: dict[str, tuple[Alteration, ...]] = {
    "Presets": (
        _stage1("stage 1 in batches of 64", batch_size=64),
        _stage2("stage 2 at a rate of 1e-3", learning_rate=1e-3),
        _sasrec("SASRec for 100 epochs", epochs=100),
        _decoding("a repetition penalty of 1.2", "official", repetition_penalty=1.2),
    ),
    "SASRec": (
        _EPSILON,
        Alteration("a causal mask that hides nothing", "allmrec_jax.models.cf.sasrec.np.tril", lambda x: x),
    ),
    "SASRec with dropout": (
        Alteration("dropout that does not scale", "allmrec_jax.models.cf.sasrec.Dropout", _Unscaled),
    ),
    "SASRec training": (
        _ONE_KEY,
        _sasrec("beta2 0.999 for 0.98", beta2=0.999),
        Alteration("dropout off", "allmrec_jax.models.cf.sasrec.Dropout", _Off),
        Alteration("users drawn from half of them", "allmrec_jax.training.cf.batch_rows", _half_of_the_users),
        Alteration("negatives that the user has met", "allmrec_jax.training.cf.draw_free_items", _any_items),
    ),
    "SASRec training, short histories": (
        Alteration("pads that no dropout drops", "allmrec_jax.models.cf.sasrec.PadDropout.__call__", _kept_pads),
        _ONE_KEY,
    ),
    "Autoencoders": (Alteration("tanh for the sigmoid", "allmrec_jax.models.alignment.nn.sigmoid", nn.tanh),),
    "Sentence encoder": (_GELU, _stage1("the paper's texts", text_style="paper")),
    "Sentence encoder, BERT": (_GELU,),
    "Stage 1": (
        _stage1("weight 0.5 for 0.2 of the text reconstruction", beta=0.5),
        _stage1("weight 0.4 for 0.5 of the item reconstruction", alpha=0.4),
        _stage1("weight 0.9 of the matching loss", match_weight=0.9),
        _stage1("summed logits in the recommendation loss", mean_logits=False),
        _stage1("a text target that is pulled along", detach_texts=False),
        _stage1("only the positive item's errors", negatives_too=False),
    ),
    "Stage 1 training": (
        Alteration(
            "user vectors that see the target", "allmrec_jax.data.dataset.Dataset.items_before", _with_the_target
        ),
        Alteration("the same negatives in every batch", "allmrec_jax.training.stage1_batches.numpy_rng", _of_step_0),
        _stage1("the CF model without dropout", cf_train_mode=False),
        _stage1("an encoder's rate of 1.5 times", encoder_learning_rate=1.5e-4),
        _stage1("the autoencoders' rate of 1.5 times", learning_rate=1.5e-4),
        Alteration("the paper's texts", "allmrec_jax.training.stage1.item_texts", _paper_texts),
    ),
    "Prompts": (
        Alteration(
            "the words of games", "allmrec_jax.official.layout.STYLES", layout.STYLES | {"Movies_and_TV": "games"}
        ),
        Alteration(
            "titles tokenised with a space before them", "allmrec_jax.pretrained.frozen_llm.title_table", _spaced
        ),
    ),
    "Projectors": (
        _SLOPE,
        Alteration("LayerNorm epsilon 1e-3 for 1e-5", "allmrec_jax.models.projectors.LAYER_NORM_EPSILON", 1e-3),
    ),
    "OPT, right-padded": (_OFFSET, _OPT_EPSILON),
    "OPT, left-padded": (
        _OFFSET,
        Alteration("later tokens are attended", "allmrec_jax.models.llm.attention.causal_attention", _all_attended),
    ),
    "OPT-350m's shape": (_OFFSET, _OPT_EPSILON),
    "Stage 2": (
        _SLOPE,
        _OPT_EPSILON,
        Alteration("targets one token late", "allmrec_jax.prompts.pad_answers", _shifted_answers),
    ),
    "Stage 2 training": (
        Alteration("the text's latents for the joint ones", "allmrec_jax.training.stage2.item_latents", _text_latents),
        Alteration(
            "user vectors of histories back to front",
            "allmrec_jax.training.stage2_batches.Stage2Sampler.user_vectors",
            _reversed_history,
        ),
        Alteration("the same candidates in every batch", "allmrec_jax.training.stage2_batches.numpy_rng", _of_step_0),
        _stage2("the CF model without dropout", cf_train_mode=False),
        _stage2("a learning rate of 1.5 times", learning_rate=1.5e-4),
    ),
    "Generation": (_decoding("a repetition penalty of 1.5", "paper", repetition_penalty=1.5),),
    "Generation, official settings": (_decoding("no repetition penalty", "official", repetition_penalty=1.0),),
    "Hit@1 of eval.py": (
        Alteration(
            "equality for containment", "allmrec_jax.metrics.official_hit", lambda text, title: text.strip('"') == title
        ),
    ),
    "Conversion": (
        Alteration("checkpoints written in half precision", "allmrec_jax.official.exporting._tensors", _halved),
        Alteration("histories read back to front", "allmrec_jax.official.importing.read_sequences", _reversed),
    ),
}
"""What ``--selftest`` alters in each component: every one of them must turn its row red."""
