"""What every side of full_size.py reads: prompts made from a seed, and a language model with random weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.prompts import STYLES, Pieces, PromptBatch, PromptTables, TitleTable, build_prompts, prompt_text

USER_DIM, LATENT_DIM, ITEMS, TITLE = 50, 128, 500, 16

TITLE_LENGTHS = (3, 11, 14, 16, 18, 19, 21, 22, 23, 24, 26, 27, 28, 30, 31, 32, 32, 32, 32, 32, 53)
"""Tokens of Amazon Scientific's titles, every twentieth of them, cut at 32 as stage 2 cuts them."""

TRIAL = OPTConfig(
    vocab_size=600, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256, word_embed_proj_dim=64
)


class NoTokenizer(PromptTables):
    """Prompt tables whose fixed text is random tokens, one for each word: no tokenizer is at hand."""

    def pieces(self, style: Any, user_slot: bool, item_slots: bool) -> Pieces:
        """As many tokens as the pieces have words."""
        texts = prompt_text(style, user_slot=user_slot, item_slots=item_slots)
        return Pieces(*(np.arange(len(text.split()) or 1, dtype=np.int32) + 100 for text in texts))

    @property
    def end(self) -> np.ndarray:
        """The closing quote and the end of text."""
        return np.array([113, self.eos], np.int32)


class World:
    """The prompts that every side reads, made from a seed; NumPy only.

    Args:
        config: of the language model.
        users: how many prompts.
    """

    def __init__(self, config: OPTConfig, users: int) -> None:
        rng = np.random.default_rng(0)
        lengths = rng.choice(TITLE_LENGTHS, ITEMS)
        tokens = rng.integers(200, config.vocab_size, lengths.sum()).astype(np.int32)
        titles = TitleTable(tokens, np.concatenate([[0, 0], np.cumsum(lengths)]), 0, 0)
        self.config, self.tables = config, NoTokenizer(None, titles, config.max_position_embeddings)
        self.histories = rng.integers(1, ITEMS + 1, (users, 10)).astype(np.int32)
        self.candidates = np.stack([1 + rng.choice(ITEMS, 20, replace=False) for _ in range(users)]).astype(np.int32)
        self.users = rng.normal(size=(users, USER_DIM)).astype(np.float32)
        self.latents = rng.random((ITEMS + 1, LATENT_DIM)).astype(np.float32)
        self.lengths = self.prompts(np.arange(users), answers=True).lengths

    def prompts(self, rows: np.ndarray, *, answers: bool) -> PromptBatch:
        """Of some users, with or without the answer."""
        candidates = self.candidates[rows]
        targets = candidates[:, 0] if answers else None
        return build_prompts(self.tables, STYLES["neutral"], self.histories[rows], candidates, targets, soft=True)

    def batches(self, size: int, *, ordered: bool) -> Iterator[np.ndarray]:
        """Users in batches, by the lengths of their prompts or as they are; what is left over is left out."""
        order = np.argsort(self.lengths, kind="stable") if ordered else np.arange(len(self.lengths))
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]

    def count(self, size: int, *, ordered: bool) -> tuple[int, int]:
        """Users and real tokens of all batches of a size."""
        rows = np.concatenate(list(self.batches(size, ordered=ordered)))
        return len(rows), int(self.lengths[rows].sum())


def random_params(config: OPTConfig, dtype: Any) -> Any:
    """Parameters of the checkpoint's layout, made on the device in ``dtype`` leaf by leaf: never all in float32."""
    import jax

    from allmrec_jax.models.llm.families import init_params

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    return jax.tree.unflatten(tree, [draw(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])
