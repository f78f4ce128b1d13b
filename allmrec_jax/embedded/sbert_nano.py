"""``sbert-nano``: a DistilBERT of 3 MB, trained contrastively on generated text alone.

Two texts are written independently on the same mix of themes. Among the second texts of a batch each first text must
find its own, graded: the target is a softmax over how much the mixes have in common, so that the cosine of two vectors
comes to say how near two texts' themes are (InfoNCE, van den Oord et al. 2018, with soft targets).
"""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from allmrec_jax.embedded import lexicon
from allmrec_jax.embedded.theme_texts import WORDS, draw_pairs, invented_word
from allmrec_jax.models.text_encoder import (
    SentenceEncoder,
    TextEncoder,
    TextEncoderConfig,
    encode_texts,
    init_params,
    tokenize_texts,
)
from allmrec_jax.outputs import Output
from allmrec_jax.rng import jax_key, numpy_rng
from allmrec_jax.settings import setting
from allmrec_jax.training.state import CountedState

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL = Output("embedded model", signs=())
"""A folder of an embedded model, as the ones in the package are marked."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class SbertNanoSettings:
    """Settings of ``allmrec train sbert-nano``."""

    steps: int = setting(1000, "training steps")
    batch_size: int = setting(64, "pairs of texts in a step")
    learning_rate: float = setting(2e-3, "of AdamW at its peak: linear warm-up, then cosine to zero")
    temperature: float = setting(0.1, "of the cosines and of the overlaps")
    invented: float = setting(0.25, "share of pairs on invented words")
    vocabulary: int = setting(3000, "word pieces at most, bytes included")
    hidden_size: int = setting(128, "width of a vector")
    layers: int = setting(2, "transformer layers")
    heads: int = setting(4, "attention heads")
    max_length: int = setting(256, "longest text in tokens")


SHORT = 32
"""Tokens of a text in most batches."""

PRESETS = {"default": SbertNanoSettings()}


class GeneratedTexts(NamedTuple):
    """What the embedded models are trained on, as a run records it."""

    name: str
    hash: str


def generated_texts() -> GeneratedTexts:
    """The texts that are written on the fly, by the SHA-256 (hex) of the words that they are made of."""
    return GeneratedTexts("generated", lexicon_hash())


def lexicon_hash() -> str:
    """SHA-256 (hex) of the words that all texts are made of."""
    return hashlib.sha256(json.dumps([lexicon.THEMES, lexicon.PLAIN, lexicon.FUNCTION]).encode()).hexdigest()


def train_tokenizer(vocabulary: int, seed: int) -> "Tokenizer":
    """A lower-casing WordPiece over bytes, trained on generated text: no text has an unknown token.

    Every byte is in the vocabulary, both as the beginning of a word and inside one, and every word of the lexicon.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    rng = numpy_rng(seed, "sbert-nano tokenizer")
    texts = [text for _ in range(40) for text in draw_pairs(rng, 50).texts]
    texts += [" ".join(invented_word(rng) for _ in range(20)) for _ in range(500)]
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    base = [*SPECIAL, *alphabet, *("##" + letter for letter in alphabet)]
    # Letters and lexicon words are found by the trainer too, so the vocabulary comes out a little smaller.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary - 2 * len(alphabet) - 100, special_tokens=list(SPECIAL), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    pieces = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    words = sorted({word for topic in WORDS for word in topic} | {*lexicon.PLAIN, *lexicon.FUNCTION})
    ordered = list(dict.fromkeys([*base, *words, *(piece for piece, _ in pieces)]))
    vocab = {piece: i for i, piece in enumerate(ordered[:vocabulary])}

    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=1_000_000))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def new_encoder(settings: SbertNanoSettings, seed: int) -> SentenceEncoder:
    """An untrained encoder with its tokenizer."""
    tokenizer = train_tokenizer(settings.vocabulary, seed)
    config = TextEncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=settings.max_length,
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return SentenceEncoder(
        model=TextEncoder(config),
        params=init_params(config, jax_key(seed, "sbert-nano parameters")),
        tokenizer=tokenizer,
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **names},
        max_length=settings.max_length,
        source="sbert-nano",
    )


def contrastive_loss(
    first: Float[Array, "B D"], second: Float[Array, "B D"], overlap: Float[Array, "B B"], temperature: float
) -> Float[Array, ""]:
    """Cross entropy between graded targets and cosines, in both directions; 0 where both softmaxes agree.

    Args:
        overlap: of the themes of row i's pair and of column j's, 1 at most.
    """
    target = overlap / temperature
    cosines = _unit(first) @ _unit(second).T / temperature
    divergences = [
        (jax.nn.softmax(t) * (jax.nn.log_softmax(t) - jax.nn.log_softmax(c))).sum(-1).mean()
        for t, c in ((target, cosines), (target.T, cosines.T))
    ]
    return (divergences[0] + divergences[1]) / 2


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def make_optimizer(settings: SbertNanoSettings) -> optax.GradientTransformation:
    """AdamW with warm-up over a twentieth of the steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, max(settings.steps // 20, 1), settings.steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def make_step(model: TextEncoder, settings: SbertNanoSettings, seed: int) -> Any:
    """The jitted ``(state, batch) -> (state, metrics)``; the state is donated."""
    optimizer = make_optimizer(settings)

    def loss_fn(params: Any, batch: dict[str, Array], key: jax.Array) -> jax.Array:
        vectors = model.apply({"params": params}, batch["ids"], batch["lengths"], False, rngs={"dropout": key})
        first, second = jnp.split(vectors, 2)
        return contrastive_loss(first, second, batch["overlap"], settings.temperature)

    def step(state: CountedState, batch: dict[str, Array]) -> tuple[CountedState, dict[str, jax.Array]]:
        key = jax_key(seed, "sbert-nano dropout", state.step)
        loss, gradient = jax.value_and_grad(loss_fn)(state.params, batch, key)
        updates, moments = optimizer.update(gradient, state.opt_state, state.params)
        return CountedState(optax.apply_updates(state.params, updates), moments, state.step + 1), {"loss": loss}

    return jax.jit(step, donate_argnums=0)


def make_batch(encoder: SentenceEncoder, settings: SbertNanoSettings, seed: int, step: int) -> dict[str, np.ndarray]:
    """The batch of one step; one in sixteen has long descriptions, for the far positions."""
    rng = numpy_rng(seed, "sbert-nano batch", step)
    long = step % 16 == 15
    count = settings.batch_size // 8 if long else settings.batch_size
    pairs = draw_pairs(rng, count, settings.invented, longest=180 if long else 8)
    table = tokenize_texts(encoder, pairs.texts, settings.max_length if long else SHORT)
    # Two lengths only: few programs to compile, and the rare longer text is cut.
    ids, lengths = table.take(np.arange(len(pairs.texts)), table.max_length)
    return {"ids": ids, "lengths": lengths, "overlap": pairs.overlap}


def measure(encoder: SentenceEncoder, seed: int, count: int = 300) -> dict[str, float]:
    """Held-out texts, on themes and on invented words.

    Returns:
        ``nearest``: how often a theme text's nearest neighbour among ``count`` second texts shares its main theme (by
        chance about 0.04); ``overlap``: correlation of cosines with theme overlaps; ``invented``: how often a text on
        invented words finds the other text that shares some of them (by chance 1 / ``count``).
    """
    rng = numpy_rng(seed, "sbert-nano held-out")
    scores: dict[str, float] = {}
    for invented in (0.0, 1.0):
        pairs = draw_pairs(rng, count, invented)
        vectors = encode_texts(encoder, pairs.texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = vectors[:count] @ vectors[count:].T
        if invented:
            scores["invented"] = float((cosines.argmax(1) == np.arange(count)).mean())
        else:
            scores["nearest"] = float((np.take_along_axis(pairs.overlap, cosines.argmax(1)[:, None], 1) > 0.5).mean())
            scores["overlap"] = float(np.corrcoef(cosines.ravel(), pairs.overlap.ravel())[0, 1])
    return scores
