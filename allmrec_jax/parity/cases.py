"""Weights and inputs of the comparison, the same on both sides. NumPy only.

Weights are drawn by their PyTorch name, so each side draws what it knows the name of. ``RandomState`` is NumPy's frozen
generator: its numbers never change, and recorded reference numbers stay valid.

Shapes: B batch, T time, N items, D CF width.
"""

import json
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from allmrec_jax.assets import ASSETS

ITEMS, DIM, BLOCKS, HEADS, LENGTH, LATENT = 90, 16, 2, 2, 14, 128
"""The CF model: N, D, blocks, heads, T; and the latent width, which the official code fixes at 128."""

DROPOUT = 0.5
USERS = 8
"""B of the CF model and of stage 1, where no data set is read."""

BATCH = 16
"""B of the CF model and of stage 1 in the trainings on a data set."""

PROMPTS, HISTORY, CANDIDATES = 2, 10, 20
"""B of stage 2; items in a prompt."""

PROMPT_LENGTH = 512
"""S: every prompt of the case fits, and one S is one compiled program."""

DATA_NAME = "Movies_and_TV"

TEXT_ENCODER: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 160,
    "dim": 768,
    "n_layers": 1,
    "n_heads": 12,
    "hidden_dim": 64,
    "max_position_embeddings": 64,
    "activation": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
}
"""DistilBERT at the width that the official code fixes, otherwise small."""

TEXT_DROPOUT: dict[str, Any] = {"dropout": 0.1, "attention_dropout": 0.1}
"""The published encoder's, for the rows that train with it."""

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
"""BERT, the other family of sentence encoders (all-MiniLM-L6-v2 is one)."""

OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 4104,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 1024,
    "word_embed_proj_dim": 32,
    "do_layer_norm_before": True,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "dropout": 0.0,
}
"""OPT with more rows than its tokenizer has tokens, as the published ones: 4,096 of ``opt-nano`` and four added."""

OPT_350M: dict[str, Any] = OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False}
"""The shape of OPT-350m: post-norm, word embeddings of another width."""

TOKENS = 4100
"""Rows that the official code leaves after resizing the table to its tokenizer."""


class Sequences(NamedTuple):
    """A batch for the CF model in the official code's form; left-padded with 0."""

    users: np.ndarray
    """[B], from 1."""
    items: np.ndarray
    """[B, T]."""
    positives: np.ndarray
    """[B, T], the item after each."""
    negatives: np.ndarray
    """[B, T]."""


def random(name: str) -> np.random.RandomState:
    """The generator of everything called ``name``."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight called ``name``: away from 0 and 1, so that a forgotten bias or scale shows, and of sane size."""
    noise = random(name).standard_normal(shape)
    if name.endswith("bias"):
        noise = 0.1 * noise
    elif len(shape) == 1:
        noise = 1 + 0.2 * noise
    elif "emb" in name:
        # CF embeddings are small: a LayerNorm's epsilon shows in them.
        noise = noise * (0.02 if name in ("item_emb.weight", "pos_emb.weight") else 0.3)
    else:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return noise.astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All of them by name."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def sasrec_shapes() -> dict[str, tuple[int, ...]]:
    """SASRec's parameters as the official checkpoint names them."""
    shapes: dict[str, tuple[int, ...]] = {"item_emb.weight": (ITEMS + 1, DIM), "pos_emb.weight": (LENGTH, DIM)}
    for block in range(BLOCKS):
        for norm in ("attention_layernorms", "forward_layernorms"):
            shapes |= {f"{norm}.{block}.weight": (DIM,), f"{norm}.{block}.bias": (DIM,)}
        attention, forward = f"attention_layers.{block}", f"forward_layers.{block}"
        shapes |= {f"{attention}.in_proj_weight": (3 * DIM, DIM), f"{attention}.in_proj_bias": (3 * DIM,)}
        shapes |= {f"{attention}.out_proj.weight": (DIM, DIM), f"{attention}.out_proj.bias": (DIM,)}
        for conv in ("conv1", "conv2"):
            shapes |= {f"{forward}.{conv}.weight": (DIM, DIM, 1), f"{forward}.{conv}.bias": (DIM,)}
    return shapes | {"last_layernorm.weight": (DIM,), "last_layernorm.bias": (DIM,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def autoencoder_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """An autoencoder's, ``mlp`` or ``mlp2``."""
    return _linear(f"{name}.fc1", width, LATENT) | _linear(f"{name}.fc2", LATENT, width)


def projector_shapes(name: str, inputs: int) -> dict[str, tuple[int, ...]]:
    """A projector's, ``log_emb_proj`` or ``item_emb_proj``."""
    width = OPT["hidden_size"]
    return _linear(f"{name}.0", inputs, width) | _norm(f"{name}.1", width) | _linear(f"{name}.3", width, width)


def distilbert_shapes() -> dict[str, tuple[int, ...]]:
    """DistilBERT's, as Hugging Face names them."""
    cfg = TEXT_ENCODER
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["embeddings.word_embeddings.weight"] = (cfg["vocab_size"], cfg["dim"])
    shapes["embeddings.position_embeddings.weight"] = (cfg["max_position_embeddings"], cfg["dim"])
    shapes |= _norm("embeddings.LayerNorm", cfg["dim"])
    for layer in range(cfg["n_layers"]):
        name = f"transformer.layer.{layer}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= _linear(f"{name}.attention.{part}", cfg["dim"], cfg["dim"])
        shapes |= _norm(f"{name}.sa_layer_norm", cfg["dim"]) | _norm(f"{name}.output_layer_norm", cfg["dim"])
        shapes |= _linear(f"{name}.ffn.lin1", cfg["dim"], cfg["hidden_dim"])
        shapes |= _linear(f"{name}.ffn.lin2", cfg["hidden_dim"], cfg["dim"])
    return shapes


def bert_shapes() -> dict[str, tuple[int, ...]]:
    """BERT's, as Hugging Face names them, without the pooler."""
    hidden, wide, root = BERT["hidden_size"], BERT["intermediate_size"], "embeddings"
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.{name}_embeddings.weight": (BERT[size], hidden) for name, size in tables.items()
    }
    shapes |= _norm(f"{root}.LayerNorm", hidden)
    for layer in range(BERT["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{name}.attention.{part}", hidden, hidden)
        shapes |= _norm(f"{name}.attention.output.LayerNorm", hidden) | _norm(f"{name}.output.LayerNorm", hidden)
        shapes |= _linear(f"{name}.intermediate.dense", hidden, wide) | _linear(f"{name}.output.dense", wide, hidden)
    return shapes


def opt_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """OPT's, as Hugging Face names them."""
    hidden, words, root = config["hidden_size"], config["word_embed_proj_dim"], "model.decoder"
    shapes: dict[str, tuple[int, ...]] = {f"{root}.embed_tokens.weight": (config["vocab_size"], words)}
    shapes[f"{root}.embed_positions.weight"] = (config["max_position_embeddings"] + 2, hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"{root}.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{name}.self_attn.{part}", hidden, hidden)
        shapes |= _norm(f"{name}.self_attn_layer_norm", hidden) | _norm(f"{name}.final_layer_norm", hidden)
        shapes |= _linear(f"{name}.fc1", hidden, config["ffn_dim"]) | _linear(f"{name}.fc2", config["ffn_dim"], hidden)
    if config["do_layer_norm_before"]:
        shapes |= _norm(f"{root}.final_layer_norm", hidden)
    if words != hidden:
        shapes |= {f"{root}.project_in.weight": (hidden, words), f"{root}.project_out.weight": (words, hidden)}
    return shapes


def sequences(step: int = 0, users: int = USERS) -> Sequences:
    """The CF batch of a training step: histories of 1 to T items, some of them over-long."""
    rng = random(f"sequences {step}")
    items, positives, negatives = (np.zeros((users, LENGTH), np.int32) for _ in range(3))
    for row in range(users):
        length = min(int(rng.randint(1, LENGTH + 4)), LENGTH)
        drawn = rng.permutation(ITEMS)[: 2 * length + 1] + 1
        items[row, LENGTH - length :] = drawn[:length]
        positives[row, LENGTH - length :] = drawn[1 : length + 1]
        negatives[row, LENGTH - length :] = drawn[length + 1 :]
    return Sequences(np.arange(1, users + 1), items, positives, negatives)


def histories() -> list[list[int]]:
    """Interactions of a data set of N users: one to twenty of each, different ones.

    The first one of user u is item u, so that every item is trained on. Some histories are longer than T; users with
    one or three interactions have a single training item, those with two or four the shortest history there is.
    """
    rng, found = random("histories"), []
    for user in range(ITEMS):
        others = [int(item) + 1 for item in rng.permutation(ITEMS) if item != user]
        found.append([user + 1, *others[: user % 20]])
    return found


_WORDS = "amber brook cedar delta ember fable grove haven inlet jewel kayak lemon maple north ocean pearl quilt river"


@cache
def texts() -> tuple[dict[int, str], dict[int, str]]:
    """Titles and descriptions of the items 1..N.

    Titles begin and end with letters, so that no tokenizer merges them with the quotes around them; item 7 has no text.
    """
    rng, words = random("texts"), _WORDS.split()
    titles, descriptions = {}, {}
    for item in range(1, ITEMS + 1):
        if item == 7:
            continue
        titles[item] = " ".join(rng.choice(words, 1 + item % 3)) + f" {words[item % len(words)]}"
        descriptions[item] = "Empty description" if item == 9 else " ".join(rng.choice(words, 1 + item % 7)) + "."
    return titles, descriptions


@cache
def letter_vocabulary() -> list[str]:
    """The sentence encoder's word pieces: letters and some words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *letters, *("##" + c for c in letters), *',.:"', *_WORDS.split()]


def tokenizer_parts() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of ``opt-nano``'s byte-pair encoding, of the same kind as OPT's."""
    body = json.loads((ASSETS / "opt-nano" / "tokenizer.json").read_text())["model"]
    return body["vocab"], [(pair[0], pair[1]) for pair in body["merges"]]


OUTPUTS = (
    ("It", '"It Follows"'),
    ("Red Fox", '"red fox"'),
    ("Red Fox", '"Red Fox'),
    ("Red Fox", '"Red Fox", "Blue Whale"'),
    ("Blue Whale", '"Red Fox", "Blue Whale"'),
    ("Blue Whale", '"Red Fox"\n"Blue Whale"'),
    ("X", '"X" and "Y'),
    ("and", '"X" and "Y'),
    ("Moon", '"item title" : "Moon"'),
    ("Moon", '"Sun" is not "Moon"'),
    ("Moon", '""'),
    ("", '"Sun"'),
    ('The "Best" of', '"The "Best" of"'),
)
"""Targets and generated outputs for the official Hit@1, its oddities among them (``eval.py`` of the authors' code)."""
