"""Our side of each component.

The modules, losses, optimizers and settings are those that training and inference use; only weights and inputs come
from elsewhere: from :mod:`allmrec_jax.parity.cases` and from what the reference chose.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from allmrec_jax.inference import decode
from allmrec_jax.metrics import official_hit
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import Block, Dropout, SASRec, SASRecCF, SASRecConfig
from allmrec_jax.models.llm.opt import OPT, POSITION_OFFSET
from allmrec_jax.models.llm.opt import Block as OPTBlock
from allmrec_jax.models.projectors import Projectors, embed_prompts
from allmrec_jax.models.text_encoder import SentenceEncoder, encode_texts, tokenize_texts
from allmrec_jax.official import parameters as official
from allmrec_jax.parity import cases, conversion
from allmrec_jax.parity.directories import write_opt, write_sentence_encoder
from allmrec_jax.parity.reference import BETA2, CF_RATE, NEW_TOKENS, STAGE1_RATE, STAGE2_RATE, Outputs, Steps, kind
from allmrec_jax.pretrained.llm import load_checkpoint, load_tokenizer
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder
from allmrec_jax.pretrained.text_encoder_weights import state_of
from allmrec_jax.prompts import (
    ITEM_SLOT,
    STYLES,
    PromptBatch,
    PromptTables,
    build_prompts,
    pad_answers,
    prompt_text,
    title_table,
    tokenize,
)
from allmrec_jax.training import cf, stage1, stage1_batches, stage1_settings, stage2, stage2_batches, stage2_settings
from allmrec_jax.training.state import CountedState, TrainState

SASREC = SASRecConfig(cases.ITEMS, cases.DIM, cases.BLOCKS, cases.HEADS, cases.LENGTH, cases.DROPOUT)
CF = dataclasses.replace(CF_PRESETS["sasrec"]["official"], learning_rate=CF_RATE, beta2=BETA2)
STAGE1 = dataclasses.replace(
    stage1_settings.PRESETS["official"], learning_rate=STAGE1_RATE, encoder_learning_rate=STAGE1_RATE, beta2=BETA2
)
STAGE2 = dataclasses.replace(
    stage2_settings.PRESETS["official"], learning_rate=STAGE2_RATE, beta2=BETA2, dtype="float32"
)
STYLE = STYLES["movies"]
DECODE = dataclasses.replace(decode.PRESETS["paper"], max_new_tokens=NEW_TOKENS)
OFFICIAL_DECODE = decode.PRESETS["official"]


# SASRec


def _sasrec_params() -> Any:
    return jax.tree.map(jnp.asarray, official.sasrec_params(cases.weights(cases.sasrec_shapes()), cases.BLOCKS))


def _feed_dropout(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """An interceptor: SASRec's dropouts keep what the variable ``mask`` in their own scope says."""
    module = context.module
    if not isinstance(module, Dropout):
        return next_fun(*args, **kwargs)
    x, deterministic = args
    if deterministic or module.rate == 0:
        return x
    return jnp.where(module.get_variable("params", "mask"), x / (1 - module.rate), 0.0)


def _with_masks(params: Any) -> Any:
    """The parameters, each dropout's mask beside them: so the scan over blocks hands each block its own."""
    masks = cases.dropout_masks()
    blocks = dict(params["blocks"])
    blocks["attention"] = blocks["attention"] | {"dropout": {"mask": masks["attention"]}}
    blocks["feed_forward"] = blocks["feed_forward"] | {name: {"mask": masks[name]} for name in ("dropout1", "dropout2")}
    return params | {"blocks": blocks, "embedding_dropout": {"mask": masks["embedding"]}}


def _cf_loss(model: SASRec, params: Any, batch: cases.Sequences) -> Array:
    """The training loss of a batch; negatives are fed instead of drawn."""
    tokens = jnp.concatenate([batch.items, batch.positives[:, -1:]], axis=1)
    nobody = jnp.zeros(len(tokens), jnp.int32)
    bucket = cf.Bucket(**{name: nobody for name in cf.Bucket._fields} | {"tokens": tokens})
    with mock.patch.object(cf, "draw_free_items", lambda *args: batch.negatives):
        total, count = cf.bucket_loss(model, "bce", params, bucket, nobody, jax.random.key(0))
    return total / count


def _sasrec(theirs: Outputs, steps: Steps, *, train: bool = False) -> Outputs:
    config = SASREC if train else dataclasses.replace(SASREC, dropout=0.0)
    model, params, batch = SASRec(config), _sasrec_params(), cases.sequences()

    def variables(params: Any) -> Any:
        return {"params": _with_masks(params) if train else params}

    def hidden(params: Any) -> Array:
        return model.apply(variables(params), batch.items, not train, rngs={"dropout": jax.random.key(0)})

    def loss(params: Any) -> Array:
        return _cf_loss(model, variables(params)["params"], batch)

    @jax.jit
    def run(params: Any) -> Any:
        with nn.intercept_methods(_feed_dropout):
            blocks = _blocks(config, variables(params)["params"], batch, train)
            return hidden(params), blocks, jax.value_and_grad(loss)(params)

    states, found, (value, gradient) = run(params)
    found |= {"hidden": states, "loss": value, "user vectors": states[:, -1]}
    for name, items in (("positive", batch.positives), ("negative", batch.negatives)):
        found[f"{name} logits"] = jnp.sum(states * params["item_embedding"][items], axis=-1)
    return kind("forward", _numpy(found)) | kind("gradient", official.sasrec_state(gradient))


def _blocks(config: SASRecConfig, params: Any, batch: cases.Sequences, train: bool) -> dict[str, Array]:
    """The output of every block, the blocks applied one by one."""
    mask = batch.items != 0
    x = params["item_embedding"][batch.items] * config.dim**0.5 + params["position_embedding"][None]
    embedding = {"params": params.get("embedding_dropout", {})}
    x = jnp.where(mask[..., None], Dropout(config.dropout).apply(embedding, x, not train), 0.0)
    found = {}
    for index in range(config.blocks):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        x, _ = Block(config, not train).apply({"params": layer}, x, mask)
        found[f"block {index}"] = x
    return found


def _sasrec_training(theirs: Outputs, steps: Steps) -> Outputs:
    model, params = SASRec(dataclasses.replace(SASREC, dropout=0.0)), _sasrec_params()
    optimizer = cf.make_optimizer(CF)

    def step(state: Any, batch: cases.Sequences) -> tuple[Any, Array]:
        params, optimizer_state = state
        loss, gradient = jax.value_and_grad(lambda p: _cf_loss(model, p, batch))(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    batches = _stack([cases.sequences(index) for index in range(steps.cf)])
    (params, _), losses = jax.jit(lambda state: jax.lax.scan(step, state, batches))((params, optimizer.init(params)))
    return {"curve/loss": np.asarray(losses)} | kind("final", official.sasrec_state(params))


# Stage 1


@functools.cache
def _encoder(bert: bool = False) -> SentenceEncoder:
    with tempfile.TemporaryDirectory() as directory:
        write_sentence_encoder(Path(directory), bert=bert)
        return load_sentence_encoder(directory)


def _state(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> official.State:
    return {name.removeprefix(prefix): value for name, value in cases.weights(shapes).items()}


def _alignment_params() -> Any:
    items = _state(cases.autoencoder_shapes("mlp", cases.DIM), "mlp.")
    texts = _state(cases.autoencoder_shapes("mlp2", cases.TEXT_ENCODER["dim"]), "mlp2.")
    return jax.tree.map(jnp.asarray, official.autoencoder_params(items, texts))


def _stage1_model() -> stage1.Stage1Model:
    return stage1.Stage1Model(Alignment(cases.DIM, cases.TEXT_ENCODER["dim"], cases.LATENT), _encoder(), STAGE1)


def _stage1_params() -> Any:
    return {"alignment": _alignment_params(), "encoder": jax.tree.map(jnp.asarray, _encoder().params)}


def official_texts() -> list[str]:
    """The items' texts in the official form, [N+1]."""
    titles, descriptions = cases.texts()
    return [
        f'"{titles.get(item, "No Title")}, {descriptions.get(item, "No Description")}"'
        for item in range(cases.ITEMS + 1)
    ]


@functools.cache
def _catalogue() -> stage1_batches.Catalogue:
    items = cases.weight("item_emb.weight", (cases.ITEMS + 1, cases.DIM))
    return stage1_batches.Catalogue(items, tokenize_texts(_encoder(), official_texts()), None)


@functools.cache
def _frozen_cf() -> SASRecCF:
    return SASRecCF(dataclasses.replace(SASREC, dropout=0.0), _sasrec_params())


def _user_vectors(batch: cases.Sequences) -> np.ndarray:
    return np.asarray(_frozen_cf().user_vectors(None, batch.items))


def _part(batch: cases.Sequences) -> stage1_batches.Stage1Batch:
    catalogue, size = _catalogue(), len(batch.items)
    length = catalogue.tokens.ids.shape[1]
    args = (_user_vectors(batch), batch.positives[:, -1], batch.negatives[:, -1], np.ones(size))
    part = catalogue.part(*args, length)
    # All batches of one shape, so that the training step compiles once.
    rows = {name: np.resize(getattr(part, name), (2 * size, *getattr(part, name).shape[1:])) for name in _PER_ITEM}
    return part._replace(**rows)


_PER_ITEM = ("items", "ids", "lengths")


def _autoencoders(theirs: Outputs, steps: Steps) -> Outputs:
    model = Alignment(cases.DIM, cases.TEXT_ENCODER["dim"], cases.LATENT)
    found = model.apply({"params": _alignment_params()}, theirs["input/item"], theirs["input/text"])
    names = {"e": "item latent", "items": "item output", "q": "text latent", "texts": "text output"}
    return kind("forward", _numpy({names[key]: value for key, value in found.items()}))


def _sentence_encoder(theirs: Outputs, steps: Steps, *, bert: bool = False) -> Outputs:
    texts = official_texts()
    return {"forward/vectors": encode_texts(_encoder(bert), [texts[item] for item in (1, 2, 3, 9)])}


def _stage1(theirs: Outputs, steps: Steps) -> Outputs:
    model, part = _stage1_model(), _part(cases.sequences())
    grad = jax.value_and_grad(lambda params: model.losses(params, part, None), has_aux=True)
    (total, losses), gradient = jax.jit(grad)(_stage1_params())
    forward = {name: losses[name] for name in ("rec", "match", "item_recon", "text_recon")} | {"total": total}
    return kind("forward", _numpy(forward)) | kind("gradient", _stage1_state(gradient))


def _stage1_state(params: Any) -> Outputs:
    items, texts = official.autoencoder_states(params["alignment"])
    states = (("mlp", items), ("mlp2", texts), ("sbert", state_of(_encoder().config, params["encoder"])))
    return {f"{name}.{key}": value for name, state in states for key, value in state.items()}


def _stage1_training(theirs: Outputs, steps: Steps) -> Outputs:
    model, params = _stage1_model(), _stage1_params()
    optimizer = stage1.make_optimizer(STAGE1, steps.stage1)
    step = stage1.make_step(model, optimizer, 0)
    state, losses = CountedState(params, optimizer.init(params), jnp.zeros((), jnp.int32)), []
    for index in range(steps.stage1):
        state, metrics = step(state, _stack([_part(cases.sequences(index))]))
        losses.append(metrics["loss"])
    return {"curve/loss": np.asarray(jnp.stack(losses))} | kind("final", _stage1_state(jax.device_get(state.params)))


# Prompts


@functools.cache
def _tokenizer() -> Any:
    return load_tokenizer("opt-nano")


def _prompts(theirs: Outputs, steps: Steps) -> Outputs:
    """The prompts of the same users, put together by us with the official code's two differences in white space.

    The official text has a token of its own for the space before the answer, where our opening quote carries the space;
    and its slow tokenizer strips the space behind an item slot, so "in the previous" begins without one.
    """
    titles, _ = cases.texts()
    names = ["", *(titles.get(item, "No Title") for item in range(1, cases.ITEMS + 1))]
    tokenizer = _tokenizer()
    tables = PromptTables(tokenizer, title_table(tokenizer, names, 64), cases.OPT["max_position_embeddings"])
    text, pieces = prompt_text(STYLE), tables.pieces(STYLE, True, True)
    if theirs["input/strips"]:
        pieces = pieces._replace(middle=tokenize(tokenizer, text.middle.lstrip(" ")))
    ending = [tokenize(tokenizer, part) for part in (text.tail.removesuffix('"'), '"')]
    tables._pieces[(STYLE, True, True)] = pieces._replace(tail=np.concatenate(ending))
    items, targets = theirs["input/items"], theirs["input/targets"]
    prompts = build_prompts(tables, STYLE, items[:, : cases.HISTORY], items[:, cases.HISTORY :], targets, soft=True)
    width = theirs["exact/ids"].shape[1]
    real = np.arange(width)[None] < prompts.lengths[:, None]

    def padded(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    # The opening quote counts as answer there and as prompt here.
    start = prompts.target_start - 1
    return kind(
        "exact",
        {
            "ids": padded(prompts.ids, 1),
            "slots": padded(prompts.slot, 0),
            "slot items": padded(np.take_along_axis(prompts.items, prompts.slot_index, axis=1) * _is_item(prompts), 0),
            "positions": np.where(real, np.arange(width)[None], 0),
            "answer starts": start,
            "lengths": prompts.lengths,
        },
    )


def _is_item(prompts: PromptBatch) -> np.ndarray:
    return prompts.slot == ITEM_SLOT


# The language model


@functools.cache
def _opt(rows: int, shape_350m: bool = False) -> tuple[Any, Any]:
    """OPT with the case's weights, through our loader; ``rows`` of its table are kept."""
    with tempfile.TemporaryDirectory() as directory:
        write_opt(Path(directory), cases.OPT_350M if shape_350m else cases.OPT, rows)
        return load_checkpoint(directory)


def _opt_layers(theirs: Outputs, steps: Steps, *, shape_350m: bool = False) -> Outputs:
    config, params = _opt(cases.OPT["vocab_size"] if shape_350m else cases.TOKENS, shape_350m)
    model, variables = OPT(config), {"params": params}
    ids, real = theirs["input/ids"], theirs["input/real"]
    positions, mask = _positions(real), _attention_mask(real)
    embeds = model.apply(variables, ids, method="embed")
    hidden, _ = model.apply(variables, embeds, positions, mask)
    found = {"logits": model.apply(variables, hidden, method="logits")}
    x = embeds @ params["project_in"]["kernel"] if config.projects else embeds
    x = x + params["embed_positions"]["embedding"][positions + POSITION_OFFSET]
    for index in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        x, _ = OPTBlock(config).apply({"params": layer}, x, None, mask, jnp.zeros((), jnp.int32))
        found[f"layer {index}"] = x
    return kind("forward", {name: np.asarray(value) * real[..., None] for name, value in found.items()})


def _positions(real: np.ndarray) -> np.ndarray:
    """Positions count real tokens."""
    return np.maximum(np.cumsum(real, axis=1) - 1, 0)


def _attention_mask(real: np.ndarray) -> np.ndarray:
    """[B, T, T]: earlier real tokens; a pad attends itself, so that no row of the softmax is empty."""
    width = real.shape[1]
    return (np.tril(np.ones((width, width), bool)) & real[:, None]) | np.eye(width, dtype=bool)


def _projector_params() -> Any:
    users = _state(cases.projector_shapes("log_emb_proj", cases.DIM), "log_emb_proj.")
    items = _state(cases.projector_shapes("item_emb_proj", cases.LATENT), "item_emb_proj.")
    return jax.tree.map(jnp.asarray, official.projector_params(users, items))


def _projectors(theirs: Outputs, steps: Steps) -> Outputs:
    params = {"params": _projector_params()}
    users, items = Projectors(cases.OPT["hidden_size"]).apply(params, theirs["input/user"], theirs["input/item"])
    return kind("forward", _numpy({"user": users, "item": items}))


def _latents() -> Array:
    table = cases.weight("item_emb.weight", (cases.ITEMS + 1, cases.DIM))
    model = Alignment(cases.DIM, cases.TEXT_ENCODER["dim"], cases.LATENT)
    return model.apply({"params": _alignment_params()}, table, method="encode_items")


def _batch(theirs: Outputs, step: int | None = None) -> stage2_batches.Stage2Batch:
    """The reference's prompts as our training batch."""
    field = {
        name: theirs[f"input/{name}"] if step is None else theirs[f"input/{name}"][step]
        for name in ("ids", "slot", "slot_index", "items", "lengths", "target_start")
    }
    spans = zip(field["ids"], field["target_start"], field["lengths"], strict=True)
    answers, mask = pad_answers([row[start:end] for row, start, end in spans], 1)
    room = max(_ANSWER - answers.shape[1], 0)
    answers, mask = np.pad(answers, ((0, 0), (0, room)), constant_values=1), np.pad(mask, ((0, 0), (0, room)))
    prompts = PromptBatch(**field, targets=answers, target_mask=mask, dropped=np.zeros(len(mask), np.int32))
    batch = cases.sequences(step or 0, cases.PROMPTS)
    return stage2_batches.Stage2Batch(prompts, jnp.asarray(_user_vectors(batch)))


_ANSWER = 24
"""Columns of answers, so that all batches have one shape."""


def _stage2(theirs: Outputs, steps: Steps) -> Outputs:
    config, llm_params = _opt(cases.TOKENS)
    llm, batch, params = OPT(config), _batch(theirs), _projector_params()
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
    embeds = embed_prompts(llm, llm_params, params, batch.prompts, batch.users, frozen.latents)
    positions = np.broadcast_to(np.arange(embeds.shape[1]), embeds.shape[:2])
    hidden, _ = llm.apply({"params": llm_params}, embeds, positions)
    logits = np.asarray(llm.apply({"params": llm_params}, hidden, method="logits"))
    spans = zip(batch.prompts.target_start, batch.prompts.lengths, strict=True)
    rows = np.concatenate([logits[row, first - 1 : last - 1] for row, (first, last) in enumerate(spans)])
    present = np.asarray(batch.prompts.items > 0)[..., None]
    return (
        kind("forward", {"loss": np.asarray(value), "logits": rows})
        | kind("gradient", {"user tokens": np.asarray(users), "item tokens": np.asarray(items) * present})
        | kind("gradient", _projector_states(gradient))
    )


def _projector_states(params: Any) -> Outputs:
    states = zip(("log_emb_proj", "item_emb_proj"), official.projector_states(params), strict=True)
    return {f"{name}.{key}": value for name, state in states for key, value in state.items()}


def _stage2_training(theirs: Outputs, steps: Steps) -> Outputs:
    config, llm_params = _opt(cases.TOKENS)
    frozen, params = stage2.Frozen(llm_params, _latents()), _projector_params()
    optimizer = stage2.make_optimizer(STAGE2, steps.stage2)
    step = stage2.make_step(OPT(config), optimizer)
    state, losses = TrainState(params, optimizer.init(params)), []
    for index in range(steps.stage2):
        state, metrics = step(state, frozen, _batch(theirs, index))
        losses.append(metrics["loss"])
    return {"curve/loss": np.asarray(jnp.stack(losses))} | kind("final", _projector_states(state.params))


# Generation and Hit@1


def _generation(theirs: Outputs, steps: Steps) -> Outputs:
    return _generate(theirs, DECODE)


def _official_generation(theirs: Outputs, steps: Steps) -> Outputs:
    """Where the reference ran under transformers 5, its history starts empty and its limit counts the prompt."""
    settings = dataclasses.replace(
        OFFICIAL_DECODE,
        max_new_tokens=int(theirs["input/new tokens"]),
        penalize_end=OFFICIAL_DECODE.penalize_end and bool(theirs["input/penalizes end"]),
    )
    return _generate(theirs, settings)


def _generate(theirs: Outputs, settings: decode.DecodeSettings) -> Outputs:
    config, llm_params = _opt(cases.TOKENS)
    llm = OPT(config)
    if "input/plain ids" in theirs:
        ids = theirs["input/plain ids"]
        embeds, lengths = llm.apply({"params": llm_params}, ids, method="embed"), np.full(len(ids), ids.shape[1])
    else:
        prompts = _batch(theirs)
        embeds = embed_prompts(llm, llm_params, _projector_params(), prompts.prompts, prompts.users, _latents())
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


def _hits(theirs: Outputs, steps: Steps) -> Outputs:
    return {"exact/hits": np.asarray([official_hit(text.removeprefix('"'), title) for title, text in cases.OUTPUTS])}


def _conversion(theirs: Outputs, steps: Steps) -> Outputs:
    return conversion.expected()


def _numpy(tree: Mapping[str, Any]) -> Outputs:
    return {name: np.asarray(value) for name, value in tree.items()}


def _stack(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


OURS: dict[str, Callable[[Outputs, Steps], Outputs]] = {
    "SASRec": _sasrec,
    "SASRec with dropout": functools.partial(_sasrec, train=True),
    "SASRec training": _sasrec_training,
    "Autoencoders": _autoencoders,
    "Sentence encoder": _sentence_encoder,
    "Sentence encoder, BERT": functools.partial(_sentence_encoder, bert=True),
    "Stage 1": _stage1,
    "Stage 1 training": _stage1_training,
    "Prompts": _prompts,
    "Projectors": _projectors,
    "OPT, right-padded": _opt_layers,
    "OPT, left-padded": _opt_layers,
    "OPT-350m's shape": functools.partial(_opt_layers, shape_350m=True),
    "Stage 2": _stage2,
    "Stage 2 training": _stage2_training,
    "Generation": _generation,
    "Generation, official settings": _official_generation,
    "Hit@1 of eval.py": _hits,
    "Conversion": _conversion,
}
"""Our outputs of each component, from those of the reference."""
