"""Our side of the components in which the reference chooses the inputs: forward passes, gradients, prompts, tokens.

The modules, losses and settings are those that training and inference use; weights and inputs come from elsewhere, from
:mod:`allmrec_jax.parity.cases` and from what the reference chose.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from allmrec_jax import metrics, prompts
from allmrec_jax.data.dataset import item_texts
from allmrec_jax.inference import decode
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf import protocol, registry
from allmrec_jax.models.cf.sasrec import Block, SASRec
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.models.llm.opt import Block as OPTBlock
from allmrec_jax.models.projectors import Projectors, embed_prompts
from allmrec_jax.models.text_encoder import encode_texts, tokenize_texts
from allmrec_jax.official import layout
from allmrec_jax.official import parameters as official
from allmrec_jax.parity import cases, conversion
from allmrec_jax.parity.ours_files import (
    alignment_params,
    cf_settings,
    encoder,
    files,
    opt,
    projector_params,
    projector_states,
    sasrec_params,
    stage1_settings_at,
    stage2_settings_at,
)
from allmrec_jax.parity.reference import NEW_TOKENS, Drawn, DrawnStep, Outputs, kind
from allmrec_jax.parity.watched import MASK, Watched, named, sasrec_masks
from allmrec_jax.pretrained import frozen_llm
from allmrec_jax.pretrained.text_encoder_weights import state_of
from allmrec_jax.training import (
    cf,
    stage1,
    stage1_batches,
    stage1_export,
    stage1_settings,
    stage2,
    stage2_batches,
    stage2_settings,
)

# SASRec


def sasrec(theirs: Outputs) -> Outputs:
    """Every block, user vectors, logits, loss and gradient; without dropout."""
    return _sasrec(cf_settings("official", dropout=0.0))[0]


def sasrec_with_dropout() -> tuple[Outputs, Drawn]:
    """The same with dropout drawn by the product."""
    found, masks = _sasrec(cf_settings("official"))
    batch = cases.sequences()
    step = DrawnStep(batch.users, batch.items, batch.positives, batch.negatives, sasrec_masks(masks, cases.LENGTH))
    return found, Drawn({}, [step])


def _sasrec(settings: Any) -> tuple[Outputs, list[np.ndarray]]:
    model, params, batch = settings.module(cases.ITEMS, cases.ITEMS), sasrec_params(), cases.sequences()
    tokens = jnp.concatenate([batch.items, batch.positives[:, -1:]], axis=1)
    nobody = jnp.zeros(len(tokens), jnp.int32)
    bucket = cf.Bucket(**{name: nobody for name in cf.Bucket._fields} | {"tokens": tokens})

    def loss(params: Any) -> Array:
        # Negatives are given, not drawn.
        with mock.patch.object(cf, "draw_free_items", lambda *args: jnp.asarray(batch.negatives)):
            total, count = cf.bucket_loss(model, settings.loss, params, bucket, nobody, jax.random.key(0))
        return total / count

    told = Watched(loss, (Block, "__call__"), (SASRec, "__call__"))(params)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    (hidden,) = named(told, "SASRec")
    found: Outputs = {f"block {index}": output for index, output in enumerate(named(told, "Block"))}
    found |= {"hidden": hidden, "loss": np.asarray(value), "user vectors": hidden[:, -1]}
    for name, items in (("positive", batch.positives), ("negative", batch.negatives)):
        found[f"{name} logits"] = np.asarray(model.scores(params, hidden, items, None))
    return kind("forward", found) | kind("gradient", official.sasrec_state(gradient)), named(told, MASK)


# Stage 1


def _alignment() -> Alignment:
    return Alignment(cases.DIM, cases.TEXT_ENCODER["dim"], stage1_settings_at().latent_dim)


def autoencoders(theirs: Outputs) -> Outputs:
    """Latents and reconstructions."""
    found = _alignment().apply({"params": alignment_params()}, theirs["input/item"], theirs["input/text"])
    names = {"e": "item latent", "items": "item output", "q": "text latent", "texts": "text output"}
    return kind("forward", _numpy({names[key]: value for key, value in found.items()}))


def _texts() -> list[str]:
    return item_texts(files().load(), stage1_settings_at().text_style)


def sentence_encoder(theirs: Outputs, *, bert: bool = False) -> Outputs:
    """Sentence vectors of some items' texts."""
    texts = _texts()
    return {"forward/vectors": encode_texts(encoder(bert), [texts[item] for item in (1, 2, 3, 9)])}


def stage1_step(theirs: Outputs) -> Outputs:
    """The losses of a batch, their weighted sum and its gradient."""
    batch, model = cases.sequences(), protocol.load_cf(files().cf, files().load())
    catalogue = stage1_batches.Catalogue(model.item_vectors(), tokenize_texts(encoder(), _texts()), None)
    users = np.asarray(model.at("train").user_vectors(None, batch.items))
    positives, negatives = batch.positives[:, -1], batch.negatives[:, -1]
    length = catalogue.tokens.bucket(np.concatenate([positives, negatives]))
    part = catalogue.part(users, positives, negatives, np.ones(len(users)), length)
    losses = stage1.Stage1Model(_alignment(), encoder(), stage1_settings_at()).losses
    params = {"alignment": alignment_params(), "encoder": jax.tree.map(jnp.asarray, encoder().params)}
    grad = jax.value_and_grad(lambda params: losses(params, part, None), has_aux=True)
    (total, named), gradient = jax.jit(grad)(params)
    forward = {name: named[name] for name in ("rec", "match", "item_recon", "text_recon")} | {"total": total}
    return kind("forward", _numpy(forward)) | kind("gradient", stage1_state(gradient["alignment"], gradient["encoder"]))


def stage1_state(alignment: Any, texts: Any) -> Outputs:
    """Autoencoders and sentence encoder under their official names."""
    items, second = official.autoencoder_states(alignment)
    states = (("mlp", items), ("mlp2", second), ("sbert", state_of(encoder().config, texts)))
    return {f"{name}.{key}": value for name, state in states for key, value in state.items()}


# Prompts


@contextlib.contextmanager
def official_pieces(*, stripped: bool = False) -> Iterator[None]:
    """The product's prompts with the official code's differences in white space.

    The official text has a token of its own for the space before the answer, where our opening quote carries the space;
    and its slow tokenizer strips (``stripped``) the space behind an item slot, so "in the previous" begins without one.
    """
    pieces_of = prompts.PromptTables.pieces

    def pieces(tables: prompts.PromptTables, style: Any, user_slot: bool, item_slots: bool) -> prompts.Pieces:
        found = pieces_of(tables, style, user_slot, item_slots)
        text = prompts.prompt_text(style, user_slot=user_slot, item_slots=item_slots)
        if stripped:
            found = found._replace(middle=prompts.tokenize(tables.tokenizer, text.middle.lstrip(" ")))
        ending = [prompts.tokenize(tables.tokenizer, part) for part in (text.tail.removesuffix('"'), '"')]
        return found._replace(tail=np.concatenate(ending))

    with mock.patch.object(prompts.PromptTables, "pieces", pieces):
        yield


def style() -> str:
    """The words that go with the case's data set."""
    return layout.STYLES[cases.DATA_NAME]


def prompt_tokens(theirs: Outputs) -> Outputs:
    """The prompts of the same users."""
    titles, limit = files().load().titles, stage2_settings_at().title_max_tokens
    tables = frozen_llm.prompt_tables(files().llm, opt()[0], titles, limit)
    items, targets = theirs["input/items"], theirs["input/targets"]
    shown = items[:, : cases.HISTORY], items[:, cases.HISTORY :]
    with official_pieces(stripped=bool(theirs["input/strips"])):
        made = prompts.build_prompts(tables, prompts.STYLES[style()], *shown, targets, soft=True)
    width = theirs["exact/ids"].shape[1]
    real = np.arange(width)[None] < made.lengths[:, None]

    def padded(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    at_items = np.take_along_axis(made.items, made.slot_index, axis=1) * (made.slot == prompts.ITEM_SLOT)
    return kind(
        "exact",
        {
            "ids": padded(made.ids, 1),
            "slots": padded(made.slot, 0),
            "slot items": padded(at_items, 0),
            "positions": np.where(real, np.arange(width)[None], 0),
            # The opening quote counts as answer there and as prompt here.
            "answer starts": made.target_start - 1,
            "lengths": made.lengths,
        },
    )


# The language model


def opt_layers(theirs: Outputs, *, shape_350m: bool = False) -> Outputs:
    """Hidden states behind every layer and logits, as a prompt is read: padded on the right, whatever theirs is."""
    config, params = opt(shape_350m)
    llm, real = OPT(config), theirs["input/real"]
    lengths, width = real.sum(axis=1), real.shape[1]
    rows = [np.pad(ids[there], (0, width - there.sum())) for ids, there in zip(theirs["input/ids"], real, strict=True)]
    embeds = llm.apply({"params": params}, np.stack(rows), method="embed")
    read = Watched(decode.prefill, (OPTBlock, "__call__"), (OPT, "__call__"), static=(0,))
    told = read(llm, params, embeds, jnp.asarray(lengths, jnp.int32))
    found = {f"layer {index}": output for index, output in enumerate(named(told, "Block"))}
    (hidden,) = named(told, "OPT")
    found["logits"] = np.asarray(llm.apply({"params": params}, hidden, method="logits"))

    def at_theirs(values: np.ndarray) -> np.ndarray:
        placed = np.zeros_like(values)
        placed[real] = np.concatenate([row[:length] for row, length in zip(values, lengths, strict=True)])
        return placed

    return kind("forward", {name: at_theirs(value) for name, value in found.items()})


def projectors(theirs: Outputs) -> Outputs:
    """Both."""
    params = {"params": projector_params()}
    users, items = Projectors(cases.OPT["hidden_size"]).apply(params, theirs["input/user"], theirs["input/item"])
    return kind("forward", _numpy({"user": users, "item": items}))


def _latents() -> Array:
    return jnp.asarray(stage2.item_latents(stage1_export.load_stage1(files().stage1), "joint", 0))


def _batch(theirs: Outputs) -> stage2_batches.Stage2Batch:
    """The reference's prompts as our training batch."""
    names = ("ids", "slot", "slot_index", "items", "lengths", "target_start")
    field = {name: theirs[f"input/{name}"] for name in names}
    spans = zip(field["ids"], field["target_start"], field["lengths"], strict=True)
    answers, mask = prompts.pad_answers([row[start:end] for row, start, end in spans], 1)
    told = prompts.PromptBatch(**field, targets=answers, target_mask=mask, dropped=np.zeros(len(mask), np.int32))
    items = cases.sequences(0, cases.PROMPTS).items
    users = protocol.load_cf(files().cf, files().load()).at("train").user_vectors(None, items)
    return stage2_batches.Stage2Batch(told, users)


def stage2_step(theirs: Outputs) -> Outputs:
    """Logits at the answers, the loss, and its gradients, those of the soft tokens included."""
    config, llm_params = opt()
    llm, batch, params = OPT(config), _batch(theirs), projector_params()
    frozen = stage2.Frozen(llm_params, _latents())
    tokens = float(batch.prompts.target_mask.sum())
    width = config.word_embed_proj_dim
    no_shift = (jnp.zeros((cases.PROMPTS, width)), jnp.zeros((*batch.prompts.items.shape, width)))

    def loss(params: Any, shift: tuple[Array, Array]) -> Array:
        # The gradient with respect to an added zero is that with respect to the soft tokens.
        def shifted(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            found = next_fun(*args, **kwargs)
            if isinstance(context.module, Projectors) and context.method_name == "__call__":
                return tuple(value + part for value, part in zip(found, shift, strict=True))
            return found

        with nn.intercept_methods(shifted):
            return stage2.answer_loss(llm, params, frozen, batch)[0] / tokens

    value, (gradient, (users, items)) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, no_shift)
    (logits,) = named(Watched(stage2.answer_loss, (OPT, "logits"), static=(0,))(llm, params, frozen, batch), "OPT")
    present = np.asarray(batch.prompts.items > 0)[..., None]
    return (
        kind("forward", {"loss": np.asarray(value), "logits": logits[batch.prompts.target_mask > 0]})
        | kind("gradient", {"user tokens": np.asarray(users), "item tokens": np.asarray(items) * present})
        | kind("gradient", projector_states(gradient))
    )


# Generation, Hit@1, conversion, presets


def generation(theirs: Outputs) -> Outputs:
    """Greedy tokens with our settings."""
    return _generate(theirs, dataclasses.replace(decode.PRESETS["paper"], max_new_tokens=NEW_TOKENS))


def official_generation(theirs: Outputs) -> Outputs:
    """Where the reference ran under transformers 5, its history starts empty and its limit counts the prompt."""
    settings = decode.PRESETS["official"]
    settings = dataclasses.replace(
        settings,
        max_new_tokens=int(theirs["input/new tokens"]),
        penalize_end=settings.penalize_end and bool(theirs["input/penalizes end"]),
    )
    return _generate(theirs, settings)


def _generate(theirs: Outputs, settings: decode.DecodeSettings) -> Outputs:
    config, llm_params = opt()
    llm = OPT(config)
    if "input/plain ids" in theirs:
        ids = theirs["input/plain ids"]
        embeds, lengths = llm.apply({"params": llm_params}, ids, method="embed"), np.full(len(ids), ids.shape[1])
    else:
        batch = _batch(theirs)
        embeds = embed_prompts(llm, llm_params, projector_params(), batch.prompts, batch.users, _latents())
        lengths = theirs["input/lengths"]

    @jax.jit
    def run(params: Any, embeds: Array) -> Array:
        prefix = decode.prefill(llm, params, embeds, jnp.asarray(lengths, jnp.int32))
        return decode.generate(llm, params, prefix, settings)

    tokens = np.asarray(run(llm_params, embeds))
    ended = np.cumsum(tokens == config.eos_token_id, axis=1) > 0
    width = theirs["exact/tokens"].shape[1]
    # The reference fills rows that have ended with end tokens, and stops when all have.
    return {"exact/tokens": np.where(ended, config.eos_token_id, tokens)[:, :width]}


def hits(theirs: Outputs) -> Outputs:
    """The official Hit@1."""
    found = [metrics.official_hit(text.removeprefix('"'), title) for title, text in cases.OUTPUTS]
    return {"exact/hits": np.asarray(found)}


def converted(theirs: Outputs) -> Outputs:
    """What the official code should find in our files."""
    return conversion.expected()


def presets(theirs: Outputs) -> Outputs:
    """The presets ``official``, each value in full."""
    sas: Any = registry.CF_PRESETS["sasrec"]["official"]
    one, two = stage1_settings.PRESETS["official"], stage2_settings.PRESETS["official"]
    words = decode.PRESETS["official"]
    values = {
        "cf batch_size": sas.batch_size,
        "cf lr": sas.learning_rate,
        "cf maxlen": sas.max_length,
        "cf hidden_units": sas.dim,
        "cf num_blocks": sas.blocks,
        "cf num_epochs": sas.epochs,
        "cf num_heads": sas.heads,
        "cf dropout_rate": sas.dropout,
        "cf beta2": sas.beta2,
        "stage 1 batch": one.batch_size,
        "stage 1 rate": one.learning_rate,
        "stage 1 encoder rate": one.encoder_learning_rate,
        "stage 1 epochs": one.epochs,
        "stage 1 beta2": one.beta2,
        "stage 1 latent": one.latent_dim,
        "stage 2 batch": two.batch_size,
        "stage 2 rate": two.learning_rate,
        "stage 2 epochs": two.epochs,
        "stage 2 beta2": two.beta2,
        "stage 2 history": two.history_length,
        "stage 2 candidates": two.candidates,
        "history of the stages": protocol.CF_HISTORY,
        "repetition penalty": words.repetition_penalty,
        "new tokens": words.max_new_tokens,
    }
    return kind("exact", _numpy(values))


def _numpy(tree: Mapping[str, Any]) -> Outputs:
    return {name: np.asarray(value) for name, value in tree.items()}
