"""Training of ``opt-nano``: an OPT small enough for a CPU that chooses from lists, from generated text alone.

Its attention heads start from a construction instead of from noise, since copying and look-up, left to chance, take a
small model most of its training to find. The construction uses twelve heads of sixteen in four layers, and three
feed-forward units:

* layer 0: look at the previous token; look at the quote that opened the title; flag what is behind the start and the
  end of the candidates; flag prompts with soft tokens and questions for genres;
* layer 1: fetch the user's vector (what the token before the latest ``</s>`` was); fetch a title's first token to its
  slot; flag tokens that the history does not have; look at the token before the previous one;
* layer 2: look at the candidate slots by their likeness to the user, write their first tokens, and remember where their
  titles began; without soft tokens, look at the candidates' tokens that the history has too, those of late titles
  first; asked for genres, take the mean of the words so far;
* layer 3: copy from the chosen title the token that follows the last two written. The units end a title and a text,
  and prefer the names of genres where these are asked for.

Each reads and writes its own part of the hidden vector (:class:`Parts`). Training on
:mod:`allmrec_jax.embedded.list_tasks` does the rest: it turns the circuit into one that tolerates other scales, long
titles and near misses.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from allmrec_jax.embedded.lexicon import FUNCTION, PLAIN, THEMES
from allmrec_jax.embedded.list_tasks import GENRE_QUESTION, SKILLS, Batch, Shape, TaskWriter, pack
from allmrec_jax.embedded.theme_texts import invented_word
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPT, POSITION_OFFSET, OPTConfig
from allmrec_jax.prompts import STYLES, prompt_text, tokenize
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting
from allmrec_jax.training.state import CountedState

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""OPT's special tokens at OPT's ids; ``<unk>`` is never produced, every byte being in the vocabulary."""

SHAPES: tuple[tuple[float, Shape], ...] = (
    (0.5, Shape(32, 288, "words", 20, 8, 6)),
    (0.2, Shape(24, 384, "short", 20, 8, 5)),
    (0.3, Shape(12, 768, "long", 22, 10, 5)),
)
"""How often each kind of title is drawn, and the sizes of its batches: about 9,200 columns a step."""


CLEAR_FROM = 600
"""The step from which on ``text`` tasks have one right answer."""


@dataclasses.dataclass(frozen=True)
class OptNanoSettings:
    """Settings of ``allmrec train opt-nano``."""

    vocabulary: int = setting(4096, "tokens, the 256 bytes among them")
    ffn_dim: int = setting(512, "width of the feed-forward layers")
    positions: int = setting(1024, "positions")
    steps: int = setting(900, "training steps")
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(0.01, "AdamW's weight decay")


PRESETS = {"default": OptNanoSettings()}


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
    CONTENT = slice(0, 64)  # which token this is, or what its slot holds; the first eight for markers
    POSITION = slice(64, 88)
    PREVIOUS = slice(88, 136)  # the first 48 dimensions of the previous token's content
    SECOND = slice(136, 152)  # 16 dimensions of the content of the token before that
    CANDIDATE = 152  # not 0 behind the start of the candidates
    ANSWER = 153  # not 0 behind the end of the candidates
    USER = slice(154, 194)  # the user's content, without the markers
    START = slice(196, 220)  # position of the quote that opened this title
    CHOSEN = slice(220, 244)  # START of the chosen candidate
    FIRST = slice(220, 244)  # at slots: the last 24 dimensions of the content of the title's first token
    NEW = 244  # not 0 where this token was not in the history
    SOFT = 245  # not 0 where a soft token has told something of the user or of a title
    GENRE = 246  # not 0 behind the question for genres
    CLOSED = 247  # not 0 at the closing quote


HEAD = 64
"""Width of an attention head."""

OPENER, CLOSER, END, LIST, ASK, SOFT, GENRE, NAME = range(8)
"""Content dimensions that only marker tokens use: opening quotes, the closing quote, ``</s>``, the word "following"
that comes before the candidates, "recommendation" that comes behind them, what only prompts with soft tokens have,
"genres", and names of genres."""

MARKERS = 8

FREQUENCIES = 2.0 * np.exp(-np.arange(12) * math.log(500) / 11)
"""Radians per position, of the 12 sine and cosine pairs of a position; one period of the last is 1,570 tokens."""

CONTENT_NORM = 5.6
"""Norm of a token's content; a position's is 3.5."""

THEME_SHARE = 0.25
"""Share of a theme's words and name in their squared norm that they have in common."""

FLAG = 0.4
"""What a flag is, of the marker that raises it."""

NORM_GAIN = (2.4, 1.8, 1.6, 1.5)
"""About what layer norm multiplies the hidden vector by, in each layer, before training."""


def _construct(params: dict[str, Any], tokenizer: Any, rng: np.random.Generator) -> None:
    """Writes the constructed heads into ``params`` in place; the rest of the model becomes small noise."""
    layers = params["layers"]
    gains = {"q_proj": 0.5, "k_proj": 0.5, "v_proj": 1.0, "out_proj": 0.1, "fc1": 1.0, "fc2": 0.03}
    for name, gain in gains.items():
        kernel = layers[name]["kernel"]
        kernel[:] = rng.normal(size=kernel.shape) * gain / math.sqrt(kernel.shape[1])
        layers[name]["bias"][:] = 0
    _embeddings(params, tokenizer, rng)

    gain = NORM_GAIN[0]
    head = _Head(layers, 0, 0)
    head.look_back(1, 2.7)
    head.move(slice(0, 48), Parts.PREVIOUS, 1 / gain)
    head = _Head(layers, 0, 1)
    head.look_back(0, 3.0)
    head.prefer(OPENER, 110 / gain)
    head.move(Parts.POSITION, Parts.START, 1 / gain)
    head = _Head(layers, 0, 2)
    head.prefer(LIST, 12 / gain)
    head.prefer(ASK, 14 / gain)
    head.move(slice(LIST, ASK + 1), slice(Parts.CANDIDATE, Parts.ANSWER + 1), FLAG / gain)
    head = _Head(layers, 0, 3)
    head.prefer(SOFT, 12 / gain)
    head.prefer(GENRE, 18 / gain)
    head.move(slice(SOFT, GENRE + 1), slice(Parts.SOFT, Parts.GENRE + 1), FLAG / gain)

    gain = NORM_GAIN[1]
    head = _Head(layers, 1, 0)
    head.look_back(0, 2.2)
    head.prefer(END, 40 / gain)
    head.move(slice(Parts.PREVIOUS.start + MARKERS, Parts.PREVIOUS.stop), Parts.USER, 1 / gain)
    head = _Head(layers, 1, 1)
    head.match(Parts.START, Parts.START, 2.5)
    head.prefer_if(Parts.PREVIOUS.start + CLOSER, Parts.PREVIOUS.start + OPENER, 3.5)
    head.prefer(END, 40 / gain)
    head.move(slice(40, 64), Parts.FIRST, 1 / gain)
    head = _Head(layers, 1, 2)
    head.match(slice(MARKERS, 48), slice(Parts.PREVIOUS.start + MARKERS, Parts.PREVIOUS.stop), 2.5)
    head.prefer(Parts.CANDIDATE, -40 / FLAG / gain)
    head.prefer(END, 30 / gain)
    head.move(slice(END, END + 1), slice(Parts.NEW, Parts.NEW + 1), FLAG / gain)
    head = _Head(layers, 1, 3)
    head.look_back(1, 3.0)
    head.move(slice(Parts.PREVIOUS.start + MARKERS, Parts.PREVIOUS.start + MARKERS + 16), Parts.SECOND, 1 / gain)

    gain = NORM_GAIN[2]
    head = _Head(layers, 2, 0)
    head.match(Parts.USER, slice(MARKERS, 48), 1.6)
    head.prefer(Parts.CANDIDATE, 10 / FLAG / gain)
    head.prefer(Parts.PREVIOUS.start + CLOSER, 14 / gain)
    head.prefer(END, -20 / gain)
    head.move(Parts.START, Parts.CHOSEN, 1 / gain)
    head.move(Parts.FIRST, slice(40, 64), 2 / gain)
    head = _Head(layers, 2, 1)
    head.match(Parts.START, Parts.START, 0.6)
    head.prefer(Parts.CANDIDATE, 30 / FLAG / gain)
    head.prefer(Parts.ANSWER, -80 / FLAG / gain)
    head.prefer(Parts.NEW, -20 / FLAG / gain)
    head.prefer(OPENER, -14 / gain)
    head.prefer(CLOSER, -14 / gain)
    head.prefer_if(Parts.SOFT, Parts.CANDIDATE, -12)
    head.prefer_if(Parts.SOFT, END, 5)
    head.move(Parts.START, Parts.CHOSEN, 1 / gain)
    head = _Head(layers, 2, 2)
    head.prefer(END, 40 / gain)
    head.prefer_if(Parts.GENRE, END, -5)
    head.move(slice(MARKERS, 64), slice(MARKERS, 64), 3 / gain)

    gain = NORM_GAIN[3]
    head = _Head(layers, 3, 0)
    head.match(Parts.CHOSEN, Parts.START, 2.8)
    head.match(slice(OPENER, OPENER + 1), slice(Parts.PREVIOUS.start + OPENER, Parts.PREVIOUS.start + OPENER + 1), 2.2)
    head.match(slice(8, 30), slice(Parts.PREVIOUS.start + 8, Parts.PREVIOUS.start + 30), 1.8)
    head.match(slice(Parts.PREVIOUS.start + MARKERS, Parts.PREVIOUS.start + MARKERS + 16), Parts.SECOND, 1.0)
    head.prefer_if(Parts.GENRE, END, 6)
    head.move(Parts.CONTENT, Parts.CONTENT, 4 / gain)
    _ends(layers)
    # The copied token's content is then several times the norm of the rest: this makes logits of about 10 of it.
    params["final_layer_norm"]["scale"][:] = 0.15


def _ends(layers: dict[str, Any]) -> None:
    """Three units of the last feed-forward layer: a copied opening quote becomes a closing one, what follows a closing
    quote is ``</s>``, and the answer to the question for genres is the name of one."""
    units = (
        (OPENER, 5.0, {CLOSER: 4, OPENER: -4}),
        (Parts.CLOSED, 0.2, {END: 40, CLOSER: -20}),
        (Parts.GENRE, 0.3, {NAME: 40, END: -20}),
    )
    first, bias, second = (
        layers[name][part][3] for name, part in (("fc1", "kernel"), ("fc1", "bias"), ("fc2", "kernel"))
    )
    for unit, (reads, threshold, writes) in enumerate(units):
        first[:, unit], second[unit] = 0, 0
        first[reads, unit], bias[unit] = 1, -threshold
        for dimension, gain in writes.items():
            second[unit, dimension] = gain


def _embeddings(params: dict[str, Any], tokenizer: Any, rng: np.random.Generator) -> None:
    table = params["embed_tokens"]["embedding"]
    content = np.zeros((len(table), 64))
    content[:, MARKERS:] = rng.normal(size=(len(table), 64 - MARKERS)) / math.sqrt(64 - MARKERS)
    for theme, words in THEMES.items():
        common = rng.normal(size=64 - MARKERS) / math.sqrt(64 - MARKERS)
        for word in (theme.lower(), *words):
            for text in (word.capitalize(), " " + word.capitalize(), " " + word):
                token = tokenize(tokenizer, text)[0]
                content[token, MARKERS:] = (
                    math.sqrt(1 - THEME_SHARE) * content[token, MARKERS:] + math.sqrt(THEME_SHARE) * common
                )
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    openers = {text: tokenize(tokenizer, text)[-1] for text in (' "', ',"', '","')}
    soft = [openers[',"'], *tokenize(tokenizer, " representation")[-1:]]
    markers = [(token, OPENER, 0.87) for token in openers.values()]
    markers += [(tokenize(tokenizer, '"')[0], CLOSER, 0.95), (tokenizer.eos_token_id, END, 1.0)]
    markers += [
        (tokenize(tokenizer, " following")[0], LIST, 0.95),
        (tokenize(tokenizer, " recommendation")[0], ASK, 0.95),
    ]
    markers += [(tokenize(tokenizer, " genres")[0], GENRE, 0.95)]
    names = {tokenize(tokenizer, text)[0] for theme in THEMES for text in (theme, " " + theme)}
    markers += [(token, NAME, 0.5) for token in sorted(names)]
    markers += [(token, SOFT, 0.95 if token != openers[',"'] else 0.45) for token in soft]
    kept = np.ones(len(table))
    for token, dimension, share in markers:
        content[token, dimension] = share
        kept[token] -= share**2
    content[:, MARKERS:] *= np.sqrt(kept)[:, None]
    table[:] = rng.normal(size=table.shape) * 0.02
    table[:, Parts.CONTENT] = CONTENT_NORM * content
    table[tokenize(tokenizer, '"')[0], Parts.CLOSED] = 1.5
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
        pairs, start = len(FREQUENCIES), Parts.POSITION.start
        at = self._take(2 * pairs)
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

    def prefer_if(self, query: int, key: int, gain: float) -> None:
        """Scores by the product of two dimensions."""
        at = self._take(1)
        self.q[query, at], self.k[key, at] = gain, abs(gain)

    def move(self, source: slice, destination: slice, gain: float) -> None:
        """Adds the source part of what is attended to the destination part."""
        count = source.stop - source.start
        for i in range(count):
            self.v[source.start + i, self.moved + i] = 1
            self.out[self.moved + i, destination.start + i] = gain
        self.moved += count


WARM_UP = 150
"""Steps until the learning rate has its peak."""


def make_optimizer(settings: OptNanoSettings) -> optax.GradientTransformation:
    """AdamW with a warm-up of 150 steps, slow enough to keep what is constructed, and a cosine decay to a fiftieth."""
    rate = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, WARM_UP, max(settings.steps, WARM_UP + 1), 0.02 * rate)
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
) -> Callable[[CountedState, Batch], tuple[CountedState, dict]]:
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

    def step(state: CountedState, batch: Batch) -> tuple[CountedState, dict[str, Array]]:
        key = jax_key(seed, "opt-nano noise", state.step)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
        updates, optimizer_state = optimizer.update(grads, state.opt_state, state.params)
        return CountedState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_batch(writer: TaskWriter, settings: OptNanoSettings, seed: int, step: int) -> Batch:
    """The batch of one step."""
    rng = numpy_rng(seed, "opt-nano tasks", step)
    shape = SHAPES[rng.choice(len(SHAPES), p=[share for share, _ in SHAPES])][1]
    return writer.batch(rng, shape, settings.positions, clear=step >= CLEAR_FROM)


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
