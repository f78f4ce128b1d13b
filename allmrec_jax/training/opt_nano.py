"""Training of ``opt-nano``: an OPT small enough for a CPU that chooses from lists, from generated text alone.

Its attention heads start from a construction instead of from noise, since copying and look-up, left to chance, take a
small model most of its training to find. The construction uses seven heads of sixteen in four layers:

* layer 0: look at the previous token; look at the quote that opened the title; look for the start of the candidates;
* layer 1: fetch the user's vector (what the token before the latest ``</s>`` was); fetch a title's first token to its
  slot;
* layer 2: look at the candidate slots by their likeness to the user, write their first tokens, and remember where their
  titles began;
* layer 3: copy from that title the token that follows what has been written so far.

Each reads and writes its own part of the hidden vector (:class:`Parts`). Training on :mod:`allmrec_jax.data.list_tasks`
does the rest: it turns the circuit into one that tolerates other scales, long titles and near misses, and adds what the
construction lacks, choosing by text and naming genres.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from allmrec_jax.data.lexicon import FUNCTION, PLAIN, THEMES
from allmrec_jax.data.list_tasks import GENRE_QUESTION, SKILLS, Batch, Shape, TaskWriter, pack
from allmrec_jax.data.theme_texts import invented_word
from allmrec_jax.models.opt import OPT, POSITION_OFFSET, OPTConfig, init_params
from allmrec_jax.prompts import STYLES, prompt_text, tokenize
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""OPT's special tokens at OPT's ids; ``<unk>`` is never produced, every byte being in the vocabulary."""

SHAPES: tuple[tuple[float, Shape], ...] = (
    (0.6, Shape(32, 288, "words", 20, 8, 6)),
    (0.2, Shape(24, 384, "short", 20, 8, 5)),
    (0.2, Shape(12, 768, "long", 22, 10, 5)),
)
"""How often each kind of title is drawn, and the sizes of its batches: about 9,200 columns a step."""


@dataclasses.dataclass(frozen=True)
class OptNanoSettings:
    """Settings of ``allmrec train opt-nano``."""

    vocabulary: int = setting(4096, "tokens, the 256 bytes among them")
    ffn_dim: int = setting(512, "width of the feed-forward layers")
    positions: int = setting(1024, "positions")
    steps: int = setting(700, "training steps")
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(0.01, "AdamW's weight decay")


PRESETS = {"default": OptNanoSettings()}


class TrainState(NamedTuple):
    """What training carries from step to step."""

    params: Any
    optimizer: Any
    step: Int[Array, ""]


def train_tokenizer(vocabulary: int, seed: int) -> Any:
    """A byte-level BPE (Hugging Face) trained on the lexicon, the prompts' fixed text and invented words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = numpy_rng(seed, "opt-nano tokenizer")
    words = [*(word for theme in THEMES.values() for word in theme), *PLAIN, *(theme.lower() for theme in THEMES)]
    fixed = [GENRE_QUESTION]
    for style in STYLES.values():
        for slots in ({}, {"user_slot": False}, {"item_slots": False}):
            fixed += prompt_text(style, **slots)
        fixed += [style.past, style.noun, style.verb]
    texts = [text for word in words for text in (word.capitalize(), " " + word.capitalize(), " " + word)]
    texts = 60 * [*texts, *(" " + word for word in FUNCTION), *fixed]
    for _ in range(60_000):
        word = invented_word(rng)
        texts.append((word, word.capitalize(), " " + word, " " + word.capitalize())[rng.integers(4)])
    texts += [
        (" ", "", " (", "-")[rng.integers(4)] + str(rng.integers(10 ** rng.integers(1, 5))) for _ in range(20_000)
    ]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )


def new_model(settings: OptNanoSettings, tokenizer: Any, seed: int) -> tuple[OPTConfig, dict[str, Any]]:
    """The configuration, and parameters with the constructed heads in place."""
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=Parts.WIDTH,
        num_hidden_layers=4,
        num_attention_heads=Parts.WIDTH // HEAD,
        ffn_dim=settings.ffn_dim,
        max_position_embeddings=settings.positions,
        word_embed_proj_dim=Parts.WIDTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    params = jax.tree.map(np.array, init_params(config, jax_key(seed, "opt-nano parameters")))
    _construct(params, tokenizer, numpy_rng(seed, "opt-nano construction"))
    return config, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


class Parts:
    """Which dimensions of the hidden vector the construction uses for what."""

    WIDTH = 256
    CONTENT = slice(0, 64)  # which token this is, or what its slot holds
    POSITION = slice(64, 96)
    PREVIOUS = slice(96, 144)  # the first 48 dimensions of the previous token's content
    CANDIDATE = 144  # not 0 behind the start of the candidates
    USER = slice(145, 189)  # the user's content, without the markers
    START = slice(189, 221)  # position of the quote that opened this title
    CHOSEN = slice(221, 253)  # START of the chosen candidate
    FIRST = slice(221, 249)  # at slots: the last 28 dimensions of the content of the title's first token


HEAD = 64
"""Width of an attention head."""

OPENER, CLOSER, END, LIST = range(4)
"""Content dimensions that only marker tokens use: opening quotes, the closing quote, ``</s>``, and the word "following"
that comes before the candidates."""

FREQUENCIES = 2.0 * np.exp(-np.arange(16) * math.log(500) / 15)
"""Radians per position, of the 16 sine and cosine pairs of a position; one period of the last is 1,570 tokens."""

CONTENT_NORM = 5.6
"""Norm of a token's content; a position's is 4."""

NORM_GAIN = (2.3, 1.7, 1.5, 1.4)
"""About what layer norm multiplies the hidden vector by, in each layer, before training."""


def _construct(params: dict[str, Any], tokenizer: Any, rng: np.random.Generator) -> None:
    """Writes the constructed heads into ``params`` in place; the rest of the model becomes small noise."""
    layers, width = params["layers"], Parts.WIDTH
    gains = {"q_proj": 0.5, "k_proj": 0.5, "v_proj": 1.0, "out_proj": 0.1, "fc1": 1.0, "fc2": 0.1}
    for name, gain in gains.items():
        kernel = layers[name]["kernel"]
        kernel[:] = rng.normal(size=kernel.shape) * gain / math.sqrt(kernel.shape[1])
        layers[name]["bias"][:] = 0
    _embeddings(params, tokenizer, rng)

    gain = NORM_GAIN[0]
    head = _Head(layers, 0, 0)
    head.look_back(1, 2.5)
    head.move(slice(0, 48), Parts.PREVIOUS, 1 / gain)
    head = _Head(layers, 0, 1)
    head.look_back(0, 2.0)
    head.prefer(OPENER, 45 / gain)
    head.move(Parts.POSITION, Parts.START, 1 / gain)
    head = _Head(layers, 0, 2)
    head.prefer(LIST, 12 / gain)
    head.move(slice(LIST, LIST + 1), slice(Parts.CANDIDATE, Parts.CANDIDATE + 1), 1 / gain)

    gain = NORM_GAIN[1]
    head = _Head(layers, 1, 0)
    head.look_back(0, 2.0)
    head.prefer(END, 40 / gain)
    head.move(slice(Parts.PREVIOUS.start + 4, Parts.PREVIOUS.stop), Parts.USER, 1 / gain)
    head = _Head(layers, 1, 1)
    head.match(Parts.START, Parts.START, 2.2)
    head.prefer(Parts.PREVIOUS.start + OPENER, 20 / gain)
    head.move(slice(36, 64), Parts.FIRST, 1 / gain)

    gain = NORM_GAIN[2]
    head = _Head(layers, 2, 0)
    head.match(Parts.USER, slice(4, 48), 1.6)
    head.prefer(Parts.CANDIDATE, 10 / gain)
    head.prefer(Parts.PREVIOUS.start + CLOSER, 14 / gain)
    head.prefer(END, -20 / gain)
    head.move(Parts.START, Parts.CHOSEN, 1 / gain)
    head.move(Parts.FIRST, slice(36, 64), 2 / gain)

    gain = NORM_GAIN[3]
    head = _Head(layers, 3, 0)
    head.match(Parts.CHOSEN, Parts.START, 2.2)
    head.match(slice(0, 32), slice(Parts.PREVIOUS.start, Parts.PREVIOUS.start + 32), 1.5)
    head.move(Parts.CONTENT, Parts.CONTENT, 4 / gain)
    # The copied token's content is then several times the norm of the rest: this makes logits of about 20 of it.
    params["final_layer_norm"]["scale"][:] = 0.3 * np.ones(width)


def _embeddings(params: dict[str, Any], tokenizer: Any, rng: np.random.Generator) -> None:
    table = params["embed_tokens"]["embedding"]
    content = np.zeros((len(table), 64))
    content[:, 4:] = rng.normal(size=(len(table), 60))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    openers = {tokenize(tokenizer, text)[-1] for text in (' "', ',"', '","')}
    markers = [(token, OPENER, 0.87) for token in sorted(openers)]
    markers += [(tokenize(tokenizer, '"')[0], CLOSER, 0.95), (tokenizer.eos_token_id, END, 0.95)]
    markers += [(tokenize(tokenizer, " following")[0], LIST, 0.95)]
    for token, dimension, share in markers:
        content[token] *= math.sqrt(1 - share**2)
        content[token, dimension] = share
    table[:] = rng.normal(size=table.shape) * 0.02
    table[:, Parts.CONTENT] = CONTENT_NORM * content
    positions = params["embed_positions"]["embedding"]
    angles = np.arange(-POSITION_OFFSET, len(positions) - POSITION_OFFSET)[:, None] * FREQUENCIES
    positions[:] = 0
    positions[:, Parts.POSITION] = np.concatenate([np.sin(angles), np.cos(angles)], 1)


class _Head:
    """One attention head, emptied, and the pieces of circuit that can be put into it."""

    def __init__(self, layers: dict[str, Any], layer: int, head: int):
        own = slice(head * HEAD, (head + 1) * HEAD)
        self.q, self.k, self.v = (layers[name]["kernel"][layer][:, own] for name in ("q_proj", "k_proj", "v_proj"))
        self.out = layers["out_proj"]["kernel"][layer][own]
        self.bias = layers["q_proj"]["bias"][layer][own]
        for matrix in (self.q, self.k, self.v, self.out):
            matrix[:] = 0
        self.used = self.moved = 0

    def _take(self, count: int) -> int:
        self.used += count
        return self.used - count

    def look_back(self, distance: int, gain: float) -> None:
        """Scores positions by their nearness to the one ``distance`` back."""
        at, pairs, start = self._take(32), len(FREQUENCIES), Parts.POSITION.start
        for f, frequency in enumerate(FREQUENCIES):
            cos, sin = gain * math.cos(frequency * distance), gain * math.sin(frequency * distance)
            sine, cosine = start + f, start + pairs + f
            self.q[sine, at + f], self.q[cosine, at + f] = cos, -sin
            self.q[cosine, at + pairs + f], self.q[sine, at + pairs + f] = cos, sin
            self.k[sine, at + f] = self.k[cosine, at + pairs + f] = gain

    def match(self, query: slice, key: slice, gain: float) -> None:
        """Scores by the dot product of two parts."""
        count = key.stop - key.start
        at = self._take(count)
        for i in range(count):
            self.q[query.start + i, at + i] = self.k[key.start + i, at + i] = gain

    def prefer(self, dimension: int, nats: float) -> None:
        """Adds about ``nats`` to the score of what has a marker in ``dimension``."""
        at = self._take(1)
        self.bias[at] = nats * math.sqrt(HEAD) / (0.95 * CONTENT_NORM)
        self.k[dimension, at] = 1

    def move(self, source: slice, destination: slice, gain: float) -> None:
        """Adds the source part of what is attended to the destination part."""
        count = source.stop - source.start
        for i in range(count):
            self.v[source.start + i, self.moved + i] = 1
            self.out[self.moved + i, destination.start + i] = gain
        self.moved += count


def make_optimizer(settings: OptNanoSettings) -> optax.GradientTransformation:
    """AdamW with a warm-up of 50 steps and a cosine decay to a fiftieth."""
    rate = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 50, max(settings.steps, 51), 0.02 * rate)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=settings.weight_decay)
    )


def answer_logits(model: OPT, params: Any, batch: Batch, key: jax.Array) -> Float[Array, "M V"]:
    """Logits of the tokens asked for; blends, and noise by ``key``, stand in the slots."""
    variables = {"params": params}
    rows, columns = batch.ids.shape
    embeds = model.apply(variables, batch.ids, method="embed")
    words = params["embed_tokens"]["embedding"][batch.slot_words]
    blends = jnp.einsum("gr,grd->gd", batch.slot_weights, words)
    noise = jax.random.normal(key, blends.shape) * (CONTENT_NORM / math.sqrt(Parts.WIDTH))
    blends = blends + batch.noise[:, None] * noise
    embeds = embeds.reshape(rows * columns, -1).at[batch.slot_at].set(blends, mode="drop").reshape(embeds.shape)
    hidden, _ = model.apply(variables, embeds, batch.offsets[:, None] + jnp.arange(columns)[None])
    return model.apply(variables, hidden.reshape(rows * columns, -1)[batch.answer_at], method="logits")


def make_step(
    model: OPT, settings: OptNanoSettings, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """The jitted step: cross entropy of the answers' tokens, a mean over the batch."""
    optimizer = make_optimizer(settings)

    def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[Array, dict[str, Array]]:
        logits = answer_logits(model, params, batch, key)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answer)
        right = logits.argmax(-1) == batch.answer
        later = batch.weight - batch.first
        mean = jnp.sum(entropy * batch.weight) / batch.weight.sum()
        chosen, copied = jnp.sum(right * batch.first) / batch.first.sum(), jnp.sum(right * later) / later.sum()
        return mean, {"loss": mean, "chosen": chosen, "copied": copied}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax_key(seed, "opt-nano noise", state.step)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_batch(writer: TaskWriter, settings: OptNanoSettings, seed: int, step: int) -> Batch:
    """The batch of one step."""
    rng = numpy_rng(seed, "opt-nano tasks", step)
    shape = SHAPES[rng.choice(len(SHAPES), p=[share for share, _ in SHAPES])][1]
    return writer.batch(rng, shape, settings.positions)


def measure(model: OPT, params: Any, tokenizer: Any, seed: int, sequences: int = 96) -> dict[str, tuple[float, float]]:
    """Held-out tasks: the share of answers that are right to the last token, and of those copied right once begun.

    Both are those of greedy generation: the tokens before each one are the right answer's.

    Returns:
        by skill and kind of title, e.g. ``user/words``: right, and right from the second token on.
    """
    writer = TaskWriter(tokenizer, certain=True)
    forward = jax.jit(lambda params, batch: answer_logits(model, params, batch, jax.random.key(0)).argmax(-1))
    results = {}
    for _, shape in SHAPES:
        for skill in SKILLS:
            if skill == "genre" and shape.titles != "words":
                continue
            rng = numpy_rng(seed, f"opt-nano held out {skill} {shape.titles}")
            marks = [score(forward, params, writer, rng, shape, skill) for _ in range(-(-sequences // shape.batch))]
            results[f"{skill}/{shape.titles}"] = tuple(np.mean(np.concatenate(marks), axis=0).tolist())
    return results


def score(
    forward: Callable[[Any, Batch], Int[Array, "M"]],
    params: Any,
    writer: TaskWriter,
    rng: np.random.Generator,
    shape: Shape,
    skill: str,
    style: int | None = None,
) -> Float[np.ndarray, "B 2"]:
    """One batch of :func:`measure`: for each answer 1 where it is right, and where it is copied right."""
    tasks = [writer.task(rng, shape._replace(queries=1), skill, style) for _ in range(shape.batch)]
    batch = pack(tasks, shape, np.zeros(shape.batch, int), writer.pad)
    wrong = (np.asarray(forward(params, batch)) != batch.answer) & (batch.weight > 0)
    starts = np.flatnonzero(batch.first)
    misses = [np.add.reduceat(mask, starts) for mask in (wrong, wrong & (batch.first == 0))]
    return np.stack(misses, axis=1) == 0
