"""Recommendation for one user: the CF model retrieves from the whole catalogue, A-LLMRec re-ranks what it found.

Items that the CF model never trained on (new ones given by their text, and catalogue items without a training
interaction) mean nothing to it. In histories and in retrieval each is read as its *stand-in*: the trained item whose
text latent q is nearest in squared distance, which is what stage 1's matching loss is about. The language model then
sees such items themselves, by title and q. Measured on the embedded data: of the test targets without a training
interaction this retrieves 43% among the first 20, the embedding that stage 1's item decoder makes of q retrieves 9%,
and the CF model's own vectors none.
"""

import dataclasses
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from allmrec_jax.data.dataset import Dataset, item_texts
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.inference.llm import LLMRecommender
from allmrec_jax.models.cf.protocol import CFModel
from allmrec_jax.rng import numpy_rng
from allmrec_jax.trained.sources import EvaluationSettings, Sources

if TYPE_CHECKING:
    from allmrec_jax.pretrained.frozen_llm import LLMWeights

CHUNK = 1024
"""Items whose stand-in is looked for at once."""

AT_ONCE = 64
"""Users whom the CF model is asked about at once."""

HISTORY = 50
"""Items of a history that the CF model is shown; fixed, so that it compiles once."""


@dataclass(frozen=True)
class NewItem:
    """An item that no training has seen, known by its text."""

    raw_id: str
    title: str
    description: str = ""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: index in the catalogue.
        raw_id: the source's id.
        title: of the item.
        probability: of its title among the titles re-ranked, by the language model.
        log_likelihood: of its title as the answer.
        retrieved: its place in the CF model's order, 1 is best.
        new: whether it was added by its text.
    """

    item: int
    raw_id: str
    title: str
    probability: float
    log_likelihood: float
    retrieved: int
    new: bool


@dataclass(frozen=True)
class Catalogue:
    """The items to choose from: those of a data set (1..N), then new ones (N+1..M).

    Attributes:
        titles: [M+1], ``[0] == ""``.
        raw_ids: [M+1], ``[0] == ""``.
        known: N, how many the data set has.
    """

    titles: list[str]
    raw_ids: list[str]
    known: int

    @classmethod
    def of(cls, dataset: Dataset, new: Sequence[NewItem] = ()) -> "Catalogue":
        """The data set's items and ``new`` ones; :class:`UserError` if an id is there already."""
        raw_ids = [*dataset.items_raw, *(item.raw_id for item in new)]
        count = Counter(raw_ids)
        for item in new:
            if count[item.raw_id] > 1:
                where = (
                    f"data set {dataset.name} has that id" if item.raw_id in dataset.items_raw else "it occurs twice"
                )
                raise UserError(f"new item {item.raw_id!r}: {where}; give it another id")
        return cls([*dataset.titles, *(item.title for item in new)], raw_ids, dataset.num_items)

    def find(self, name: str) -> int:
        """The item with this id, or with this title (case and white space aside, and where its article stands).

        MovieLens writes ``Matrix, The (1999)``; ``The Matrix (1999)`` is found too.

        Raises:
            UserError: there is none (the nearest titles are suggested), or several items have this title.
        """
        if name in self._by_id:
            return self._by_id[name]
        found = self._by_title.get(_plain(name), []) or self._by_article.get(_article_first(_plain(name)), [])
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(self.raw_ids[item] for item in found[:5])
            raise UserError(f"{len(found)} items are titled {name!r}; give the id of one: {ids}")
        raise UserError(f"no item has the id or title {name!r}{_nearest(_plain(name), self._shown)}")

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {raw_id: item for item, raw_id in enumerate(self.raw_ids) if item}

    @cached_property
    def _by_title(self) -> dict[str, list[int]]:
        items: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles[1:], start=1):
            items.setdefault(_plain(title), []).append(item)
        return items

    @cached_property
    def _by_article(self) -> dict[str, list[int]]:
        items: dict[str, list[int]] = {}
        for title, found in self._by_title.items():
            items.setdefault(_article_first(title), []).extend(found)
        return items

    @cached_property
    def _shown(self) -> dict[str, str]:
        return {_plain(title): title for title in self.titles[1:]}


def find_user(dataset: Dataset, raw_id: str) -> int:
    """Index of the user with this id; :class:`UserError` with the nearest ids if there is none."""
    return find_users(dataset, [raw_id])[0]


def find_users(dataset: Dataset, raw_ids: Iterable[str]) -> list[int]:
    """Indices of the users with these ids; :class:`UserError` for one that is not there, with the nearest ids."""
    numbers = {user: number for number, user in enumerate(dataset.users_raw)}
    found = []
    for raw_id in raw_ids:
        if raw_id not in numbers:
            near = _nearest(raw_id, {user: user for user in dataset.users_raw}) or (
                f"; ids look like {dataset.users_raw[0]!r}, and users of few interactions may have been left out "
                "(`allmrec prepare --min-user`)"
            )
            raise UserError(f"data set {dataset.name} has no user {raw_id!r}{near}")
        found.append(numbers[raw_id])
    return found


def read_new_items(path: Path) -> list[NewItem]:
    """Items from JSON lines: ``{"id": …, "title": …, "description": …}``, the description optional.

    Raises:
        UserError: naming the line: not JSON, a key missing, or a value that is not text.
    """
    try:
        # A JSON text may hold other separators of lines than these; Windows begins files with a BOM.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    items = [_new_item(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise UserError(f"{path}: no item in it; write one JSON object a line")
    return items


def _new_item(where: str, line: str) -> NewItem:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{where}: not valid JSON ({reason})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])  # as `prepare` takes ids
    for key in ("id", "title"):
        if key not in row:
            raise UserError(f"{where}: {key!r} is missing; there are {', '.join(map(repr, row)) or 'no keys'}")
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where}: {key!r} must be a text and not empty")
    if not isinstance(row.get("description", ""), str):
        raise UserError(f"{where}: 'description' must be a text")
    return NewItem(row["id"], row["title"], row.get("description", ""))


@dataclass(frozen=True)
class Recommender:
    """A trained A-LLMRec over a catalogue.

    Attributes:
        catalogue: what to choose from, M items.
        cf: the frozen CF model, which knows the first N.
        llm: the language model with projectors; its title table and joint embeddings cover the catalogue.
        stand_in: [M+1] the item that the CF model reads each as: trained items are read as themselves.
    """

    catalogue: Catalogue
    cf: CFModel
    llm: LLMRecommender
    stand_in: Int[np.ndarray, "M+1"]

    def recommend(
        self, history: Sequence[int], *, user: int | None = None, count: int = 10, retrieve: int = 20
    ) -> list[Recommendation]:
        """The best items, best first; none of the history, no title twice.

        Args:
            history: items in time order; of long ones the last are read.
            user: index in the data set, if it is one of its users.
            count: how many.
            retrieve: how many the CF model hands to the language model.

        Raises:
            UserError: the history is empty, or nothing is left to recommend.
        """
        users = None if user is None else [user]
        return next(self.recommend_many([history], users, count=count, retrieve=retrieve))

    def recommend_many(
        self, histories: Sequence[Sequence[int]], users: Sequence[int] | None, *, count: int = 10, retrieve: int = 20
    ) -> Iterator[list[Recommendation]]:
        """:meth:`recommend` for each history; yielded in their order as soon as a chunk of them is answered.

        Args:
            histories: of each user.
            users: their indices in the data set; ``None`` where they are no users of it.
            count: how many items for each.
            retrieve: how many the CF model hands to the language model.

        Raises:
            UserError: a history is empty, or nothing is left to recommend.
        """
        size = min(len(histories), AT_ONCE)
        for start in range(0, len(histories), size or 1):
            part = histories[start : start + size]
            if not all(map(len, part)):
                raise UserError("an empty history: give at least one item")
            # The last chunk is filled up with its first rows, so that one shape is compiled.
            filled = np.resize(np.arange(len(part)), size)
            padded = np.stack([self._padded(part[int(row)]) for row in filled])
            asked = None if users is None else np.asarray(users[start : start + size])[filled]
            vectors, scores = self._ask_cf(padded, asked)
            found = [self._retrieve(scores[row], part[row], max(count, retrieve)) for row in range(len(part))]
            yield from self._rerank(padded[: len(part)], vectors[: len(part)], found, count)

    def _rerank(
        self,
        histories: Int[np.ndarray, "B T"],
        vectors: Float[np.ndarray, "B D"],
        found: Sequence[Int[np.ndarray, "K"]],
        count: int,
    ) -> list[list[Recommendation]]:
        """What the language model makes of the items ``found`` for each user; the best ``count``."""
        # The order shown is drawn, as in training: by retrieval, the place itself would tell the language model.
        shown = [row[numpy_rng(0, "recommend/order").permutation(len(row))] for row in found]
        answers: list[list[Recommendation]] = [[] for _ in found]
        for width in {len(row) for row in found}:  # users who have met nearly everything are found fewer
            rows = np.flatnonzero([len(row) == width for row in found])
            likelihoods = self.llm.rank(histories[rows], np.stack([shown[int(row)] for row in rows]), vectors[rows])
            for row, likelihood in zip(rows, likelihoods, strict=True):
                answers[row] = self._named(found[int(row)], shown[int(row)], likelihood, count)
        return answers

    def _named(
        self,
        found: Int[np.ndarray, "K"],
        shown: Int[np.ndarray, "K"],
        likelihoods: Float[np.ndarray, "K"],
        count: int,
    ) -> list[Recommendation]:
        probabilities = np.exp(likelihoods - likelihoods.max())
        probabilities /= probabilities.sum()
        place = {int(item): number for number, item in enumerate(found, start=1)}
        return [
            Recommendation(
                item=int(shown[column]),
                raw_id=self.catalogue.raw_ids[shown[column]],
                title=self.catalogue.titles[shown[column]],
                probability=float(probabilities[column]),
                log_likelihood=float(likelihoods[column]),
                retrieved=place[int(shown[column])],
                new=bool(shown[column] > self.catalogue.known),
            )
            for column in np.argsort(-likelihoods, kind="stable")[:count]
        ]

    def _padded(self, history: Sequence[int]) -> Int[np.ndarray, "T"]:
        last = list(history)[-HISTORY:]
        return np.array([0] * (HISTORY - len(last)) + last, np.int32)

    def _ask_cf(
        self, histories: Int[np.ndarray, "B T"], users: Int[np.ndarray, "B"] | None
    ) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B M+1"]]:
        """The CF model's user vectors, and a score for every item of the catalogue."""
        model, known = self.cf.at("test"), jnp.asarray(self.stand_in[histories])
        scores = np.asarray(model.score_catalogue(users, known))
        return np.asarray(model.user_vectors(users, known)), scores[:, self.stand_in]

    def _retrieve(self, scores: Float[np.ndarray, "M+1"], history: Sequence[int], count: int) -> Int[np.ndarray, "K"]:
        """The ``count`` best by score, none with a title that the history or a better one has."""
        taken = {_plain(self.catalogue.titles[item]) for item in history}
        found: list[int] = []
        for item in np.argsort(-scores[1:], kind="stable") + 1:
            title = _plain(self.catalogue.titles[item])
            if title not in taken and item not in history:
                found.append(int(item))
                taken.add(title)
            if len(found) == count:
                break
        if not found:
            raise UserError("nothing is left to recommend: the history holds the whole catalogue")
        return np.array(found, np.int32)


def load_recommender(
    dataset: Dataset,
    run: Path,
    new: Sequence[NewItem] = (),
    *,
    cf: Path | None = None,
    stage1: Path | None = None,
    llm: str | None = None,
    llm_weights: "LLMWeights | None" = None,
    batch_size: int = 1,
) -> Recommender:
    """A trained A-LLMRec over the data set's items and ``new`` ones.

    Args:
        dataset: what it was trained on.
        run: a ``train stage2`` run; stage 1 and the CF model are found beside it.
        new: items that no training has seen.
        cf: where the CF run is, or the user's own arrays, if not beside ``run``.
        stage1: where the stage-1 run is, if not beside ``run``.
        llm: where the language model is now, if not where it was in training.
        llm_weights: how its kernels are stored; by default as in training.
        batch_size: prompts that the language model reads at once.

    Raises:
        UserError: the run is unfinished or of another data set, or what it was built on is missing or another.
    """
    catalogue = Catalogue.of(dataset, new)
    sources = Sources(
        dataset, [run, *filter(None, (cf, stage1))], EvaluationSettings(), option=lambda role: f"--{role}"
    )
    aligned, stage2, model = sources.stage1, sources.stage2, sources.cf
    added = np.zeros((len(new), aligned.text.shape[1]), np.float32)
    if new:
        titles, descriptions = [item.title for item in new], [item.description for item in new]
        alone = dataclasses.replace(dataset, titles=["", *titles], descriptions=["", *descriptions])
        added = aligned.encode_texts(item_texts(alone, aligned.settings.text_style)[1:])
    latents = stage2.latents(aligned)
    return Recommender(
        catalogue,
        model,
        stage2.recommender(
            catalogue.titles,
            None if latents is None else np.concatenate([latents, added]),
            llm=llm,
            llm_weights=llm_weights,
            batch_size=batch_size,
        ),
        stand_ins(np.concatenate([aligned.text, added]), np.concatenate([aligned.trained, np.zeros(len(new), bool)])),
    )


def stand_ins(texts: Float[np.ndarray, "M+1 L"], trained: Bool[np.ndarray, "M+1"]) -> Int[np.ndarray, "M+1"]:
    """For each item itself where it is ``trained``, else the trained one with the nearest row of ``texts``; 0 for 0."""
    found = np.arange(len(texts), dtype=np.int32)
    known = np.flatnonzero(trained)
    lengths = np.square(texts[known]).sum(axis=1)
    for rows in np.array_split(missing := np.flatnonzero(~trained)[1:], -(-len(missing) // CHUNK) or 1):
        found[rows] = known[np.argmin(lengths - 2 * texts[rows] @ texts[known].T, axis=1)]
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _article_first(title: str) -> str:
    """``matrix, the (1999)`` as ``the matrix (1999)``."""
    return re.sub(r"^(.*), (the|a|an)( \(\d{4}\))?$", r"\2 \1\3", title)


def _nearest(name: str, shown: dict[str, str]) -> str:
    close = difflib.get_close_matches(name, shown, n=3, cutoff=0.5)
    return "; nearest: " + ", ".join(repr(shown[match]) for match in close) if close else ""
