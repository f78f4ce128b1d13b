"""The families of metrics: ranking of candidates or of the catalogue, strict generation, the official substring test.

Every function works per user: a table's number is the mean over users, so that intervals can resample users.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

RANKING = ("hit@1", "hit@3", "hit@5", "ndcg@5", "ndcg@10", "mrr")
"""Metrics of a system that scores candidates."""
CATALOGUE = ("catalogue_recall@10", "catalogue_recall@20", "catalogue_ndcg@10", "catalogue_ndcg@20")
"""Metrics of a system that scores every item."""
GENERATION = ("strict_hit@1", "official_hit@1", "valid_ratio")
"""Metrics of a system that generates a title."""


def target_ranks(scores: Float[np.ndarray, "B K"], target_columns: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    """Rank of the target among the candidates, 1 is best.

    Ties count against the target, and so does a score that is not a number: a system that scores all candidates
    alike ranks every target last instead of winning by the order in which candidates happen to be displayed.
    """
    target = np.take_along_axis(scores, target_columns[:, None], axis=1)
    return scores.shape[1] - (scores < target).sum(axis=1)


def ranking_metrics(ranks: Int[np.ndarray, "B"]) -> dict[str, Float[np.ndarray, "B"]]:
    """Hit@k, NDCG@k and reciprocal rank of each user; with one relevant item the ideal DCG is 1."""
    gain = 1 / np.log2(ranks + 1.0)
    values = {f"hit@{k}": (ranks <= k).astype(np.float64) for k in (1, 3, 5)}
    values |= {f"ndcg@{k}": np.where(ranks <= k, gain, 0.0) for k in (5, 10)}
    return values | {"mrr": 1.0 / ranks}


def catalogue_ranks(
    scores: Float[np.ndarray, "B N+1"], histories: Int[np.ndarray, "B T"], targets: Int[np.ndarray, "B"]
) -> Int[np.ndarray, "B"]:
    """Rank of each target among all items that the user has not met, 1 is best; ties as in :func:`target_ranks`.

    Args:
        scores: of every item; column 0, padding's, is not read.
        histories: items met, padded with 0. A target that was met before is ranked all the same.
        targets: the item to find.
    """
    target = np.take_along_axis(scores, targets[:, None], axis=1)
    behind = scores < target
    np.put_along_axis(behind, histories, True, axis=1)  # met items stand before nobody
    behind[:, 0] = True
    np.put_along_axis(behind, targets[:, None], False, axis=1)
    return scores.shape[1] - behind.sum(axis=1)


def catalogue_metrics(ranks: Int[np.ndarray, "B"]) -> dict[str, Float[np.ndarray, "B"]]:
    """Recall@k (with one relevant item that is Hit@k) and NDCG@k of each user for k of 10 and 20."""
    gain = 1 / np.log2(ranks + 1.0)
    recall = {f"catalogue_recall@{k}": (ranks <= k).astype(np.float64) for k in (10, 20)}
    return recall | {f"catalogue_ndcg@{k}": np.where(ranks <= k, gain, 0.0) for k in (10, 20)}


def strict_choice(generated: str, titles: Sequence[str]) -> int | None:
    """Index of the one candidate that a generated text names, or None if the text is not valid.

    The prompt ends with the opening quote, so a valid text is a candidate's title, the closing quote and anything
    that does not name another candidate in quotes; a text that ends with the title itself is valid too. LLaRA's
    protocol: invalid answers count as misses, and their share is reported.

    Args:
        generated: text after the opening quote, without special tokens.
        titles: the candidates' titles as displayed, distinct; they may contain quotes themselves.
    """
    text = generated.strip()
    shown = [title.strip() for title in titles]
    named = [k for k, title in enumerate(shown) if title and (text == title or text.startswith(title + '"'))]
    if not named:
        return None
    choice = max(named, key=lambda k: len(shown[k]))  # of `A` and `A" B`, the text `A" B"` names the second
    rest = text[len(shown[choice]) + 1 :]
    others = (title for k, title in enumerate(shown) if k != choice and title)
    return None if any(f'"{title}"' in rest for title in others) else choice


def official_hit(generated: str, title: str) -> bool:
    """Hit@1 as the official code's ``eval.py`` counts it, for comparison with published numbers only.

    The first line, in lower case, between its first and its last double quote (the whole line where it has none)
    must contain the title. So "It" is hit by "It Follows", a list of all candidates hits, an empty title always
    hits, and a missing closing quote is a miss.

    Args:
        generated: text after the opening quote, which the official model generates itself and is put back here.
        title: the target's title as displayed.
    """
    line = ('"' + generated).split("\n", 1)[0].strip().lower().replace('"item title" : ', "")
    start, end = line.find('"'), line.rfind('"')
    return title.lower() in (line if start == -1 else line[start + 1 : end])
