"""A small planted data set whose titles tell what users follow, and a sentence encoder to read them."""

import jax
import numpy as np

from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.models.text_encoder import SentenceEncoder, TextEncoder, TextEncoderConfig, init_params
from allmrec_jax.pretrained.sentence_encoder import save_sentence_encoder

GROUPS, SIZE, USERS = 4, 16, 300
WORDS = [f"group{n}" for n in range(GROUPS)] + [f"item{n}" for n in range(SIZE)]


def make_dataset(path, *, shuffled=False, seed=0):
    """300 users, each of whom walks through the 16 items of one of four groups, mostly one step at a time.

    Groups differ in users, so that popularity is known well. Shuffled, each interaction's item is drawn anew from all
    of them: only popularity is left.
    """
    rng = np.random.default_rng(seed)
    sequences = []
    for group in rng.choice(GROUPS, USERS, p=[0.45, 0.3, 0.15, 0.1]):
        steps = rng.choice([1, 2], size=rng.integers(8, 12), p=[0.85, 0.15])
        sequences.append((rng.integers(0, 5) + np.cumsum(steps)) % SIZE + 1 + SIZE * group)
    items = np.concatenate(sequences)
    return write_dataset(
        path,
        name="texts",
        items=rng.choice(items, len(items)) if shuffled else items,
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"group{group} item{item}" for group in range(GROUPS) for item in range(SIZE)],
        descriptions=[""] * GROUPS * SIZE,
    )


def tokenizer():
    """One token for each word, BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def save_encoder(path):
    """A one-layer BERT of width 12 with random weights; returns its directory."""
    config = TextEncoderConfig(
        vocab_size=6 + len(WORDS),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    # Words apart from each other, so that a random encoder tells texts apart.
    params["word_embeddings"]["embedding"] = 10 * params["word_embeddings"]["embedding"]
    save_sentence_encoder(path / "model", SentenceEncoder(TextEncoder(config), params, tokenizer(), {}, 64))
    return path / "model"


def excess(dataset, model):
    """Hit@1 over popularity's, among the test item and 19 others, none of them met before, and its standard error."""
    users = dataset.users_with("test")
    users = np.array([user for user in users if dataset.sequence(user)[-1] not in dataset.sequence(user)[:-1]])
    histories, targets = dataset.history(users, "test", 5)
    rng = np.random.default_rng(1)
    everything = np.arange(1, dataset.num_items + 1)
    negatives = [rng.choice(np.setdiff1d(everything, dataset.sequence(user)), 19, replace=False) for user in users]
    candidates = np.concatenate([targets[:, None], negatives], axis=1)

    def hits(scores):
        return np.all(scores[:, :1] > scores[:, 1:], axis=1).astype(float)

    # Popularity's ties are broken at random, as a model's never arise.
    popularity = dataset.train_count[candidates] + rng.random(candidates.shape)
    difference = hits(np.asarray(model.score(users, histories, candidates))) - hits(popularity)
    return difference.mean(), difference.std() / np.sqrt(len(users))
