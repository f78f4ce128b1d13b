"""The embedded data: two made-up shops in the raw form of Amazon Reviews 2018, and the probabilities they came from.

Both shops sell goods of the same themes (:data:`allmrec_jax.embedded.lexicon.THEMES`) and have no item in common. An
item has one or two themes, told by the words of its title and description and named by its categories. A user has a few
favourite themes, which drift. The next item i of user u on day t is drawn from what the user has not bought, with

    P(i | u, t)  ∝  popularity_i · attention(t − release_i) · exp(γ · Σ_k θ_uk φ_ik)

where θ_u holds the strength of the user's favourites (plus a little for the theme of the last item), φ_i the item's
shares of its themes, and attention is 0 before release and higher soon after. A last wave of releases, bought as the
users' last items, leaves items that no training sequence holds and only their text tells: the cold items.

The settings were chosen with ``docs/synthetic.md``'s measurements and are frozen.
"""

import dataclasses
import datetime
import gzip
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from allmrec_jax.data.dataset import Dataset
from allmrec_jax.embedded.lexicon import FUNCTION, PLAIN, THEMES
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import atomic_path
from allmrec_jax.outputs import Output
from allmrec_jax.rng import numpy_rng
from allmrec_jax.settings import setting

EPOCH = datetime.date(2014, 11, 1)
"""Day 0."""

SEASON = 1400
"""First day of the last wave of releases; the files end 60 days later."""

SEASON_DAYS = 60
ALWAYS = -100_000
"""Release day of what was on sale before day 0."""

NO_THEME = len(THEMES)
STRENGTHS = (1.0, 0.9, 0.8)
"""θ of a user's first, second and third favourite theme."""

ATTENTION_DAYS = 60.0
RATINGS = (0.03, 0.04, 0.09, 0.22, 0.62)
"""Shares of one to five stars. They say nothing: a review is an interaction whatever its rating."""

CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """What decides the data, beside the seed. Each of the two domains has these numbers."""

    users: int = setting(4000, "users with six interactions or more")
    three_interaction_users: int = setting(240, "users with exactly three interactions")
    items: int = setting(1250, "items in the metadata")
    mean_interactions: float = setting(16.0, "mean items of a user (at least 6, at most 50)")
    popularity_spread: float = setting(0.6, "standard deviation of the logarithm of an item's popularity")
    taste: float = setting(8.0, "γ: weight of the likeness of taste and themes")
    momentum: float = setting(0.2, "added to θ for the first theme of the last item")
    drift: float = setting(0.02, "chance at each step that one favourite theme gives way to another")
    two_themes: float = setting(0.75, "share of items that have a second theme")
    late_items: float = setting(0.25, "share of items released in the course of the years")
    new_items: float = setting(0.12, "share of items released in the last wave")
    novelty: float = setting(2.0, "how much more attention an item gets on its release day")
    second_late: float = setting(0.12, "share of users who buy two items after the last wave")
    third_late: float = setting(0.005, "share of users who buy three items after the last wave; the rest buy one")
    repeated: float = setting(0.01, "share of reviews that the file holds twice")
    undescribed: float = setting(0.06, "share of items without a description")


SYNTHETIC = Output("folder of synthetic reviews", signs=("oracle.npz", "*.json.gz"))
"""Where :func:`generate` writes."""

PRESETS = {
    "demo": SyntheticSettings(),
    "tiny": SyntheticSettings(users=160, three_interaction_users=12, items=120),
}


@dataclasses.dataclass(frozen=True)
class Domain:
    """One shop: its files' name, its top category and the plain words of its titles."""

    name: str
    category: str
    nouns: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DOMAINS = (
    Domain(
        "Nano_Movies",
        "Movies",
        _words(
            "tale tales story legend chronicles adventure night nights day days dream return world road house city "
            "king queen hunter master keeper beyond under last first lost hidden eternal final forgotten"
        ),
    ),
    Domain(
        "Nano_Games",
        "Games",
        _words(
            "set pack box kit pro mini mega super ultra plus one game edition volume deluxe classic original complete "
            "collection special series season two three seven new golden"
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items of a domain (or of both, in an :class:`Oracle`)."""

    asin: np.ndarray
    first: Int[np.ndarray, "N"]
    second: Int[np.ndarray, "N"]
    popularity: Float[np.ndarray, "N"]
    release: Int[np.ndarray, "N"]


@dataclasses.dataclass(frozen=True)
class History:
    """What the users of a domain bought, in order: event e is item ``item[e]`` on ``day[e]``.

    ``favourites[e]`` are the themes that the user favoured when choosing it, strongest first.
    """

    reviewer: np.ndarray
    offsets: Int[np.ndarray, "U+1"]
    item: Int[np.ndarray, "E"]
    day: Int[np.ndarray, "E"]
    favourites: Int[np.ndarray, "E F"]


def generate(out: str | Path, seed: int = 0, settings: SyntheticSettings = PRESETS["demo"]) -> list[Path]:
    """Write ``<domain>.json.gz`` and ``meta_<domain>.json.gz`` for both domains, and ``oracle.npz``, into ``out``.

    The same seed and settings give the same bytes.

    Returns:
        The reviews files, one per domain.

    Raises:
        UserError: settings that cannot be met, a folder of others at ``out``, or a disk that is full.
    """
    _check(settings)
    out = Path(out)
    SYNTHETIC.claim(out)
    titles: set[str] = set()
    domains, written = [], []
    for domain in DOMAINS:
        catalogue = _catalogue(domain, seed, settings)
        history = _history(domain, catalogue, seed, settings)
        with atomic_path(out / f"meta_{domain.name}.json.gz") as path:
            _write_json_lines(path, _metadata(domain, catalogue, titles, seed, settings))
        with atomic_path(out / f"{domain.name}.json.gz") as path:
            _write_json_lines(path, _reviews(domain, catalogue, history, seed, settings))
        written.append(out / f"{domain.name}.json.gz")
        domains.append((catalogue, history))
    oracle = _joined(domains, settings)
    with atomic_path(out / "oracle.npz") as path:
        arrays: dict[str, Any] = _arrays(oracle.catalogue) | _arrays(oracle.history)
        np.savez_compressed(path, settings=np.array(json.dumps(dataclasses.asdict(settings))), **arrays)
    return written


# The model of choice, shared by the generator and the Oracle.


def _weights(
    catalogue: Catalogue,
    items: Int[np.ndarray, "#B K"],
    favourites: Int[np.ndarray, "B F"],
    last: Int[np.ndarray, "B"],
    day: Int[np.ndarray, "B"],
    settings: SyntheticSettings,
) -> Float[np.ndarray, "B K"]:
    """Unnormalised P(item | user, day), what the user has already bought not excluded. ``last`` is -1 at the start."""
    rows = np.arange(len(favourites))[:, None]
    theta = np.zeros((len(favourites), NO_THEME + 1))
    theta[rows, favourites] = STRENGTHS[: favourites.shape[1]]
    theta[rows[:, 0], np.where(last < 0, NO_THEME, catalogue.first[last])] += settings.momentum
    theta[:, NO_THEME] = 0
    first, second = catalogue.first[items], catalogue.second[items]
    alone = second == NO_THEME
    likeness = np.where(alone, 0.8, 0.6) * theta[rows, first] + 0.4 * theta[rows, second]
    age = day[:, None] - catalogue.release[items]
    attention = np.where(age < 0, 0.0, 1 + settings.novelty * np.exp(-np.maximum(age, 0) / ATTENTION_DAYS))
    return catalogue.popularity[items] * attention * np.exp(settings.taste * likeness)


# The Oracle.


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The generator's own knowledge of both domains."""

    catalogue: Catalogue
    history: History
    settings: SyntheticSettings

    @cached_property
    def _item_of(self) -> dict[str, int]:
        return {asin: item for item, asin in enumerate(self.catalogue.asin.tolist())}

    @cached_property
    def _user_of(self) -> dict[str, int]:
        return {reviewer: user for user, reviewer in enumerate(self.history.reviewer.tolist())}


def load_oracle(path: str | Path) -> Oracle:
    """Read the ``oracle.npz`` that :func:`generate` wrote.

    Raises:
        UserError: the file is missing or is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            settings = SyntheticSettings(**json.loads(str(file["settings"])))
            catalogue = Catalogue(**{field.name: file[field.name] for field in dataclasses.fields(Catalogue)})
            history = History(**{field.name: file[field.name] for field in dataclasses.fields(History)})
    except Exception as error:  # NumPy and zipfile raise whatever the damage leads to
        raise UserError(
            f"{path}: not an oracle file ({first_line(error)}); write it again with `allmrec synthesize`"
        ) from None
    return Oracle(catalogue, history, settings)


def oracle_scores(
    oracle: Oracle,
    dataset: Dataset,
    users: Int[np.ndarray, "B"],
    candidates: Int[np.ndarray, "B K"],
) -> Float[np.ndarray, "B K"]:
    """The probability that each candidate is the user's test item, given that one of them is: rows sum to 1.

    It is exact where the candidates other than the target were drawn uniformly from what the user never bought.

    Args:
        dataset: prepared from one of the generated domains.
        users: indices into ``dataset``, each with a test item.
        candidates: item indices of ``dataset``.

    Raises:
        UserError: the data set holds users or items that this generator never made.
    """
    history = oracle.history
    try:
        own_user = np.array([oracle._user_of[dataset.users_raw[user]] for user in users])
        own_item = np.array([0, *(oracle._item_of[raw] for raw in dataset.items_raw[1:])])
    except KeyError as unknown:
        raise UserError(
            f"{dataset.path}: {unknown} is not of this oracle; both must come from one synthesize"
        ) from None
    # A review that preparation dropped may leave an earlier event as the test item: look it up.
    event = np.empty(len(own_user), int)
    for row, (user, target) in enumerate(zip(own_user, dataset.items[dataset.offsets[users + 1] - 1], strict=True)):
        start, end = history.offsets[user], history.offsets[user + 1]
        event[row] = start + np.flatnonzero(history.item[start:end] == own_item[target])[0]
    last = np.where(event > history.offsets[own_user], history.item[event - 1], -1)
    weights = _weights(
        oracle.catalogue, own_item[candidates], history.favourites[event], last, history.day[event], oracle.settings
    )
    return weights / weights.sum(axis=1, keepdims=True)


def _joined(domains: list[tuple[Catalogue, History]], settings: SyntheticSettings) -> Oracle:
    """Both domains side by side: their ids never meet, so indices are shifted and nothing else."""
    (one, first), (two, second) = domains
    catalogue = Catalogue(
        *(np.concatenate([getattr(one, f.name), getattr(two, f.name)]) for f in dataclasses.fields(Catalogue))
    )
    history = History(
        reviewer=np.concatenate([first.reviewer, second.reviewer]),
        offsets=np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        item=np.concatenate([first.item, len(one.asin) + second.item]),
        day=np.concatenate([first.day, second.day]),
        favourites=np.concatenate([first.favourites, second.favourites]),
    )
    return Oracle(catalogue, history, settings)


def _arrays(instance: Catalogue | History) -> dict[str, np.ndarray]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


# Items and what users do with them.


def _catalogue(domain: Domain, seed: int, settings: SyntheticSettings) -> Catalogue:
    rng = numpy_rng(seed, f"synthetic/{domain.name}/catalogue")
    count = settings.items
    share = rng.uniform(0.7, 1.4, NO_THEME)
    first = rng.choice(NO_THEME, count, p=share / share.sum())
    second = (first + rng.integers(1, NO_THEME, count)) % NO_THEME
    second[rng.random(count) >= settings.two_themes] = NO_THEME
    when = (rng.permutation(count) + 0.5) / count
    release = np.where(when < settings.late_items, rng.integers(0, SEASON, count), ALWAYS)
    release = np.where(when >= 1 - settings.new_items, SEASON + rng.integers(0, 5, count), release)
    return Catalogue(
        asin=_codes(rng, "B0", 8, count),
        first=first.astype(np.int8),
        second=second.astype(np.int8),
        popularity=np.exp(rng.normal(0, settings.popularity_spread, count)),
        release=release.astype(np.int32),
    )


def _history(domain: Domain, catalogue: Catalogue, seed: int, settings: SyntheticSettings) -> History:
    rng = numpy_rng(seed, f"synthetic/{domain.name}/users")
    # Beside the regular users and those with three interactions, some with fewer than any threshold.
    few = np.repeat([1, 2, 4], settings.users // 50)
    regular = np.minimum(5 + rng.geometric(1 / (settings.mean_interactions - 5), settings.users), 50)
    lengths = rng.permutation(np.concatenate([regular, np.full(settings.three_interaction_users, 3), few]))
    users = len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    reviewer = _codes(rng, "A", 13, users)

    step = np.arange(lengths.max())
    draw = rng.random(users)
    late = 1 + (draw < settings.second_late + settings.third_late).astype(int) + (draw < settings.third_late)
    is_late = step >= (lengths - late)[:, None]
    joined = rng.integers(0, SEASON * 3 // 5, (users, 1))
    fraction = rng.random((users, len(step)))
    early_day, late_day = joined + fraction * (SEASON - joined), SEASON + 5 + fraction * (SEASON_DAYS - 5)
    day = np.where(is_late, late_day, early_day).astype(np.int32)
    day[step >= lengths[:, None]] = np.iinfo(np.int32).max
    day.sort(axis=1)
    with_previous = (rng.random(day.shape) < 0.05) & ~is_late & (step > 0)
    day = np.where(with_previous, np.roll(day, 1, axis=1), day)

    item = np.full(day.shape, -1)
    favourites = np.zeros((*day.shape, len(STRENGTHS)), np.int8)
    for start in range(0, users, CHUNK):
        chunk = slice(start, start + CHUNK)
        item[chunk], favourites[chunk] = _choices(rng, catalogue, lengths[chunk], day[chunk], settings)
    kept = step < lengths[:, None]
    return History(reviewer, offsets, item[kept].astype(np.int32), day[kept], favourites[kept])


def _choices(
    rng: np.random.Generator,
    catalogue: Catalogue,
    lengths: Int[np.ndarray, "B"],
    day: Int[np.ndarray, "B T"],
    settings: SyntheticSettings,
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T F"]]:
    """Each user's items one after the other, and the favourites behind each choice."""
    batch, time = day.shape
    every = np.arange(len(catalogue.asin))[None, :]
    item = np.full((batch, time), -1)
    favourites = np.zeros((batch, time, len(STRENGTHS)), np.int8)
    bought = np.zeros((batch, len(catalogue.asin)), bool)
    taste = np.argsort(rng.random((batch, NO_THEME)), axis=1)[:, : len(STRENGTHS)]
    last = np.full(batch, -1)
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        drifting = rng.random(batch) < settings.drift
        strange = rng.random((batch, NO_THEME))
        np.put_along_axis(strange, taste, -1.0, axis=1)
        slot = rng.integers(0, len(STRENGTHS), size=(batch,))
        taste[drifting, slot[drifting]] = strange.argmax(axis=1)[drifting]
        weights = _weights(catalogue, every, taste[active], last[active], day[active, step], settings)
        weights[bought[active]] = 0
        ladder = np.cumsum(weights, axis=1)
        rung = rng.random((batch, 1))[active] * ladder[:, -1:]
        chosen = (ladder <= rung).sum(axis=1)
        item[active, step], favourites[active, step] = chosen, taste[active]
        bought[active, chosen] = True
        last[active] = chosen
    return item, favourites


# The raw files.


def _reviews(
    domain: Domain, catalogue: Catalogue, history: History, seed: int, settings: SyntheticSettings
) -> Iterator[dict]:
    """Lines of the reviews file in order of time, the order within a day being the user's; some lines come twice."""
    rng = numpy_rng(seed, f"synthetic/{domain.name}/reviews")
    users = np.repeat(np.arange(len(history.reviewer)), np.diff(history.offsets))
    stars = rng.choice(5, len(users), p=RATINGS) + 1
    order = np.argsort(history.day, kind="stable")
    order = np.repeat(order, 1 + (rng.random(len(order)) < settings.repeated))
    verified = rng.random(len(users)) < 0.9
    days = [EPOCH + datetime.timedelta(days=day) for day in range(SEASON + SEASON_DAYS)]
    written = [f"{day.month:02d} {day.day}, {day.year}" for day in days]
    first_day = (EPOCH - datetime.date(1970, 1, 1)).days
    words = ("One", "Two", "Three", "Four", "Five")
    columns = (stars, verified, history.day, history.reviewer[users], catalogue.asin[history.item])
    for star, real, day, reviewer, asin in zip(*(column[order].tolist() for column in columns), strict=True):
        yield {
            "overall": float(star),
            "verified": real,
            "reviewTime": written[day],
            "reviewerID": reviewer,
            "asin": asin,
            "summary": f"{words[star - 1]} Stars",
            "unixReviewTime": (first_day + day) * 86_400,
        }


def _metadata(
    domain: Domain, catalogue: Catalogue, titles: set[str], seed: int, settings: SyntheticSettings
) -> Iterator[dict]:
    """Lines of the metadata file. ``titles`` are those given so far, in any domain; they are not given again."""
    rng = numpy_rng(seed, f"synthetic/{domain.name}/texts")
    names = [*THEMES, ""]
    words = [*THEMES.values(), ()]
    for item in range(len(catalogue.asin)):
        first, second = int(catalogue.first[item]), int(catalogue.second[item])
        title = _title(rng, words[first], words[second] or words[first], domain.nouns)
        while title in titles:
            title = _title(rng, words[first], words[second] or words[first], domain.nouns)
        titles.add(title)
        line = {
            "category": [domain.category, names[first], *([names[second]] if second != NO_THEME else [])],
            "title": title,
            "brand": " ".join(rng.choice(PLAIN, 2, replace=False)).title(),
            "asin": str(catalogue.asin[item]),
        }
        description = _description(rng, words[first], words[second] or words[first])
        missing = rng.random()
        if missing >= settings.undescribed:
            line["description"] = [description]
        elif missing >= settings.undescribed / 2:
            line["description"] = []
        yield line


def _title(rng: np.random.Generator, first: tuple, second: tuple, nouns: tuple) -> str:
    """Two to four words, one of each theme (two of a lone one) among up to two plain ones."""
    words = [rng.choice(first), rng.choice(second)]
    while words[0] == words[1]:
        words[1] = rng.choice(second)
    words += rng.choice(nouns, rng.choice(3, p=[0.35, 0.4, 0.25]), replace=False).tolist()
    return " ".join(word.capitalize() for word in rng.permutation(words).tolist())


def _description(rng: np.random.Generator, first: tuple, second: tuple) -> str:
    """Two or three sentences of 7 to 12 words, half of them theme words, the first theme leading."""
    sentences = []
    for _ in range(rng.integers(2, 4)):
        kinds = rng.choice(4, rng.integers(7, 13), p=[0.3, 0.2, 0.35, 0.15])
        words = [str(rng.choice((first, second, FUNCTION, PLAIN)[kind])) for kind in kinds.tolist()]
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)


def _codes(rng: np.random.Generator, prefix: str, length: int, count: int) -> np.ndarray:
    """Distinct ids of so many letters and digits after a prefix."""
    alphabet = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes[prefix + "".join(alphabet[rng.integers(0, len(alphabet), length)])] = None
    return np.array(list(codes))


def _write_json_lines(path: Path, lines: Iterable[dict]) -> None:
    encode = json.JSONEncoder().encode
    text = "".join(f"{encode(line)}\n" for line in lines)
    # No name and no time in the gzip header, so that the bytes depend on the content alone.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        packed.write(text.encode())


def _check(settings: SyntheticSettings) -> None:
    if settings.items < 100:
        raise UserError(f"items is {settings.items}; at least 100 are needed, so that no user runs out of them")
    if settings.users < 1 or settings.three_interaction_users < 0:
        raise UserError(
            f"users is {settings.users}, three-interaction-users {settings.three_interaction_users}: too few"
        )
    if not 6 < settings.mean_interactions <= 30:
        raise UserError(f"mean-interactions is {settings.mean_interactions}; it must be above 6 and at most 30")
    shares = ("drift", "two_themes", "late_items", "new_items", "second_late", "third_late", "repeated", "undescribed")
    for name in shares:
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name.replace('_', '-')} is {getattr(settings, name)}; it must be from 0 to 1")
    if settings.late_items + settings.new_items > 0.5:
        raise UserError("late-items and new-items add up to more than 0.5; the first users would find nothing to buy")
    for name in ("popularity_spread", "taste", "momentum", "novelty"):
        if not 0 <= getattr(settings, name) <= 50:
            raise UserError(f"{name.replace('_', '-')} is {getattr(settings, name)}; it must be from 0 to 50")
