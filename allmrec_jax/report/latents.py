"""A map of the items: what the CF model and the texts know of them, before stage 1 and after it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.errors import UserError
from allmrec_jax.records import read_card
from allmrec_jax.report import figures
from allmrec_jax.rng import numpy_rng

SAMPLE = 1500
"""Items on a map at most."""

CATEGORIES = 6
"""Categories with a colour of their own, the largest; the rest share one."""

TOO_WIDE = 0.6
"""A category of a larger share of the items tells nothing about one."""

NEIGHBOURS = 10


@dataclass(frozen=True)
class ItemMap:
    """The maps of one stage-1 run.

    Attributes:
        panels: caption, figure and neighbour agreement of each map.
        legend: category and tone of each colour.
        chance: neighbour agreement of items placed at random.
        own: share of items whose joint embedding is the one nearest to their text latent.
        items: how many are shown.
        of: how many there are.
        missing: what could not be drawn, and why.
    """

    panels: Sequence[Mapping[str, object]]
    legend: Sequence[tuple[str, str]]
    chance: float
    own: float
    items: int
    of: int
    missing: Sequence[str]


def item_map(dataset: Dataset, stage1: Path, cf: Path) -> ItemMap:
    """Items by the first two principal components of their vectors (an SVD; both kinds after stage 1 share its axes).

    Args:
        dataset: that both runs were trained on.
        stage1: its directory.
        cf: that of the CF model beneath it.

    Raises:
        UserError: a run is damaged, or no item has a category.
    """
    from allmrec_jax.models.cf.protocol import load_cf
    from allmrec_jax.training.stage1_export import load_stage1

    group, names = grouped(dataset.categories)
    if not names:
        raise UserError(f"{dataset.path}: no item has a category to colour by")
    rng = numpy_rng(0, "report/item-map")
    shown = 1 + np.sort(rng.permutation(dataset.num_items)[:SAMPLE])
    group = group[shown]
    export, missing = load_stage1(stage1), []
    spaces = {"CF item vectors": ("before", np.asarray(load_cf(cf, dataset).item_vectors())[shown])}
    try:
        every = item_texts(dataset, export.settings.text_style)
        texts = [every[item] for item in shown]
        spaces["Sentence vectors of the texts"] = ("before", _sentences(stage1, texts, export.settings.text_max_tokens))
    except (UserError, OSError) as error:
        missing.append(f"sentence vectors before stage 1: {error}")
    joint, text = export.joint[shown], export.text[shown]
    spaces |= {"Joint embeddings": ("after", joint), "Text latents": ("after", text)}
    shared = principal(np.concatenate([joint, text]))
    flat = {"Joint embeddings": shared[: len(joint)], "Text latents": shared[len(joint) :]}
    inside = group < len(names)
    panels = []
    for name, (when, vectors) in spaces.items():
        placed = flat[name] if name in flat else principal(vectors)
        near = agreement(vectors[inside], group[inside])
        alt = f"{name}, {when} stage 1: {len(shown)} items; {near:.0%} of an item’s neighbours share its category"
        clouds = [[tuple(point) for point in placed[group == number]] for number in (*range(len(names)), len(names))]
        clouds, tones = [clouds[-1], *clouds[:-1]], ["faint", *(f"c{number + 1}" for number in range(len(names)))]
        svg: Markup = figures.cloud(clouds, alt, tones, _box(placed))
        panels.append({"when": when, "name": name, "svg": svg, "near": near})
    shares = np.bincount(group[inside], minlength=len(names)) / max(1, inside.sum())
    return ItemMap(
        panels,
        [(name, f"c{number + 1}") for number, name in enumerate(names)],
        float(np.sum(shares**2)),
        float(np.mean(_nearest(text, joint, 1)[:, 0] == np.arange(len(shown)))),
        len(shown),
        dataset.num_items,
        missing,
    )


def _sentences(stage1: Path, texts: Sequence[str], max_tokens: int) -> Float[np.ndarray, "n D"]:
    """Sentence vectors of the encoder that stage 1 began with."""
    from allmrec_jax.models.text_encoder import encode_texts
    from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

    name = read_card(stage1, "stage1").get("encoder")
    if not name:
        raise UserError(f"{stage1}/export/stage1.json does not say which sentence encoder it began with")
    return np.asarray(encode_texts(load_sentence_encoder(name), texts, max_tokens))


def grouped(categories: Sequence[Sequence[str]]) -> tuple[Int[np.ndarray, "N+1"], list[str]]:
    """A group for each item, the number of one of the largest categories or of what is left, and their names.

    An item of several goes by its rarest: ``["Movies", "Drama"]`` is a drama.
    """
    counts = Counter(name for each in categories for name in dict.fromkeys(each))
    limit = TOO_WIDE * sum(bool(each) for each in categories)
    names = [name for name, count in counts.most_common() if count <= limit][:CATEGORIES]
    group = np.full(len(categories), len(names))
    for item, each in enumerate(categories):
        own = [name for name in each if name in names]
        if own:
            group[item] = names.index(min(own, key=lambda name: counts[name]))
    return group, names


def principal(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n 2"]:
    """The first two principal components, each turned so that its largest weight is positive."""
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(axis=1)[:, None], axis=1))
    return centred @ axes.T


def agreement(vectors: Float[np.ndarray, "n D"], group: Int[np.ndarray, "n"]) -> float:
    """Share of an item's nearest neighbours, by cosine, that are of its group."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    near = _nearest(unit, unit, NEIGHBOURS + 1)[:, 1:]
    return float(np.mean(group[near] == group[:, None]))


def _nearest(
    queries: Float[np.ndarray, "n D"], keys: Float[np.ndarray, "m D"], count: int
) -> Int[np.ndarray, "n count"]:
    """The ``count`` keys nearest to each query, nearest first."""
    distance = np.sum(keys**2, axis=1)[None] - 2 * queries @ keys.T
    return np.argsort(distance, axis=1, kind="stable")[:, :count]


def _box(placed: Float[np.ndarray, "n 2"]) -> list[float]:
    """What of a map is shown: all but a point in a hundred at each edge, and a margin."""
    low, high = np.quantile(placed, [0.005, 0.995], axis=0)
    margin = 0.08 * (high - low)
    low, high = low - margin, high + margin
    return [low[0], high[0], low[1], high[1]]
