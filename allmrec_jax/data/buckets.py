"""Histories in few fixed shapes: a compiled program each, and little padding.

Shapes: B batch, T time, U users.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

EVALUATION_ROWS = 256
"""Users per forward pass outside training."""


def choose_widths(lengths: Int[np.ndarray, "U"], count: int, max_length: int) -> list[int]:
    """At most ``count`` widths, the largest ``max(lengths)``, that pad the least in all.

    Args:
        lengths: of the histories, 1 to ``max_length`` each.
        count: 1 gives ``[max_length]``: the reference's fixed width.
        max_length: the model's.
    """
    if count == 1:
        return [max_length]
    users = np.bincount(lengths, minlength=max_length + 1)
    fitting = np.cumsum(users)
    # best[w]: fewest cells for all users of length at most w with w as a width, and the widths of that choice.
    widths = [int(width) for width in np.flatnonzero(users)]
    best = {width: (int(fitting[width]) * width, [width]) for width in widths}
    for _ in range(count - 1):
        best = {
            width: min(
                [best[width]]
                + [
                    (cells + int(fitting[width] - fitting[below]) * width, [*chosen, width])
                    for below, (cells, chosen) in best.items()
                    if below < width
                ]
            )
            for width in widths
        }
    return best[widths[-1]][1]


def bucketed(histories: Int[np.ndarray, "U T"]) -> Iterator[tuple[np.ndarray, Int[np.ndarray, "B T"]]]:
    """Rows of left-padded histories in batches of a few fixed shapes; one shape where there is one batch.

    Yields:
        The indices of up to ``EVALUATION_ROWS`` rows, and those rows without most of their padding, repeated to
        ``EVALUATION_ROWS``.
    """
    lengths = np.maximum(np.count_nonzero(histories, axis=1), 1)
    widths = choose_widths(lengths, 3 if len(histories) > EVALUATION_ROWS else 1, histories.shape[1])
    for below, width in zip([0, *widths], widths, strict=False):
        chosen = np.flatnonzero((lengths > below) & (lengths <= width))
        for begin in range(0, len(chosen), EVALUATION_ROWS):
            rows = chosen[begin : begin + EVALUATION_ROWS]
            yield rows, histories[np.resize(rows, EVALUATION_ROWS), histories.shape[1] - width :]
