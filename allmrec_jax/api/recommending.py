"""A trained A-LLMRec that recommends."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allmrec_jax.api.runs import TrainedRun, find_run
from allmrec_jax.api.table import Table
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import atomic_path

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset
    from allmrec_jax.trained.recommend import NewItem, Recommendation, Recommender

FILES = (".csv", ".jsonl", ".parquet")
"""The endings of files of recommendations, which say in what form they are written."""

USER_COLUMNS = ("user", "user_id", "userId", "raw_id", "reviewerID")
"""What a column of users may be called in a table of several columns."""


@dataclasses.dataclass(frozen=True)
class Recommended:
    """One recommended item of one user.

    Attributes:
        user: the user's id, where several were asked about.
        rank: its place, 1 is best.
        item: what is known about it, see :class:`allmrec_jax.trained.recommend.Recommendation`.
    """

    user: str | None
    rank: int
    item: "Recommendation"

    @property
    def title(self) -> str:
        """The item's title."""
        return self.item.title

    @property
    def id(self) -> str:
        """The item's id in the source."""
        return self.item.raw_id

    @property
    def probability(self) -> float:
        """The language model's probability of its title among the titles re-ranked."""
        return self.item.probability


class Recommendations(Table[Recommended]):
    """Recommended items, best first, of one user or of several."""

    def record(self, row: Recommended) -> dict[str, Any]:
        """An item's cells."""
        about = {} if row.user is None else {"user": row.user}
        return {
            **about,
            "rank": row.rank,
            "id": row.item.raw_id,
            "title": row.item.title,
            "probability": round(row.item.probability, 6),
            "log_likelihood": round(row.item.log_likelihood, 4),
            "retrieved": row.item.retrieved,
            "new": row.item.new,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the rows as CSV, JSON lines or Parquet, by the ending of ``path``.

        Raises:
            UserError: another ending, or the disk refuses.
        """
        path = Path(path)
        if path.suffix not in FILES:
            raise UserError(f"{path}: the name should end in {', '.join(FILES[:-1])} or {FILES[-1]}")
        frame = self.to_polars()
        with atomic_path(path) as sibling:
            if path.suffix == ".csv":
                frame.write_csv(sibling)
            elif path.suffix == ".jsonl":
                frame.write_ndjson(sibling)
            else:
                frame.write_parquet(sibling)


def read_users(path: str | os.PathLike[str]) -> list[str]:
    """Ids of users: the lines of a text file, or a column of a CSV or Parquet file, named as ``FILE:COLUMN``.

    Without a name it is the only column, or the first of :data:`USER_COLUMNS` that is there.

    Raises:
        UserError: the file cannot be read, holds no id, or has several columns of which none is named.
    """
    import polars as pl

    from allmrec_jax.parquet import read_frame

    name, _, column = os.fspath(path).partition(":")
    file = Path(name)
    try:
        if file.suffix == ".parquet":
            frame = read_frame(file, "give another file")
        elif file.suffix == ".csv":
            frame = pl.read_csv(file, infer_schema=False)
        else:
            lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n"))
            return _some_users(file, [line for line in lines if line])
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from error
    if not column and len(frame.columns) > 1:
        column = next((each for each in USER_COLUMNS if each in frame.columns), "")
    column = column or (frame.columns[0] if len(frame.columns) == 1 else "")
    if column not in frame.columns:
        columns = ", ".join(name[:60] for name in frame.columns[:20])
        raise UserError(f"{file}: which column holds users? name it as {file}:COLUMN of {columns}")
    try:
        ids = frame[column].drop_nulls().cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file}: column {column!r} holds no ids ({first_line(error)})") from error
    return _some_users(file, ids.unique(maintain_order=True).to_list())


def _some_users(file: Path, users: list[str]) -> list[str]:
    if not users:
        raise UserError(f"{file}: no user in it")
    return users


@dataclasses.dataclass(frozen=True)
class ALLMRec(TrainedRun):
    """A trained A-LLMRec: a stage-2 run with what it was built on.

    The CF model retrieves items from the whole catalogue, and the language model re-ranks them by their titles'
    likelihood. Models are loaded at the first call and kept.

    Attributes:
        dataset: that it was trained on; found where it was in training if ``None``.
    """

    dataset: "Dataset | None" = dataclasses.field(default=None, repr=False, compare=False)
    _loaded: dict[Any, "Recommender"] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def llm(self) -> str:
        """The language model that it was trained with, as it was named then."""
        from allmrec_jax.records import read_llm

        return read_llm(self.path, "stage2")

    def recommend(
        self,
        *,
        history: Sequence[str] = (),
        user: str | None = None,
        count: int = 10,
        retrieve: int = 20,
        new_items: "Sequence[NewItem]" = (),
        **where: Any,
    ) -> Recommendations:
        """Recommends items for a user of the data set, or for a bare history.

        Args:
            history: titles or ids of items, oldest first.
            user: a user's id, in place of a history.
            count: how many items to recommend.
            retrieve: how many the CF model hands to the language model.
            new_items: items that no training has seen, known by their text; they can be recommended and be history.
            where: see :meth:`open`.

        Raises:
            UserError: an unknown user or item (the nearest are named), or both or neither of user and history.

        Example:
            >>> system.recommend(history=["The Matrix (1999)", "Alien (1979)"], count=5)
            >>> system.recommend(user="42").to_polars()
        """
        if (user is None) == (not history):
            raise UserError("give either a user or at least one item of a history")
        _check_counts(count, retrieve)
        from allmrec_jax.progress import announce
        from allmrec_jax.trained.recommend import Catalogue, find_user

        dataset = self._dataset()
        catalogue = Catalogue.of(dataset, new_items)  # a name that is not in it is told before models are read
        number = None if user is None else find_user(dataset, user)
        past = [catalogue.find(name) for name in history] if number is None else dataset.sequence(number).tolist()
        recommender = self.open(new_items, **where)
        with announce("asking the models"):
            found = recommender.recommend(past, user=number, count=count, retrieve=retrieve)
        more = f"{len(past) - 5} earlier items, " if len(past) > 5 else ""
        title = f"After {more}{', '.join(catalogue.titles[item] for item in past[-5:])}"
        return Recommendations([Recommended(None, rank, each) for rank, each in enumerate(found, 1)], title)

    def recommend_all(
        self,
        users: Iterable[str] | None = None,
        *,
        count: int = 10,
        retrieve: int = 20,
        new_items: "Sequence[NewItem]" = (),
        **where: Any,
    ) -> Iterator[Recommendations]:
        """Recommends items for many users, in batches; yields each user's as soon as they are there.

        Args:
            users: their ids; all users of the data set by default.
            count: how many items to recommend to each.
            retrieve: how many the CF model hands to the language model.
            new_items: see :meth:`recommend`.
            where: see :meth:`open`.

        Raises:
            UserError: an unknown user.

        Example:
            >>> for each in system.recommend_all(["1", "2"], count=3):
            ...     print(each[0].user, [row.title for row in each])
        """
        _check_counts(count, retrieve)
        from allmrec_jax.trained.recommend import find_users

        dataset = self._dataset()
        ids = dataset.users_raw if users is None else list(users)
        numbers = find_users(dataset, ids)
        from allmrec_jax.trained.sources import prompts_at_once

        recommender = self.open(new_items, batch_size=prompts_at_once(), **where)
        histories = [dataset.sequence(number).tolist() for number in numbers]
        found = recommender.recommend_many(histories, numbers, count=count, retrieve=retrieve)
        for user, items in zip(ids, found, strict=True):
            yield Recommendations([Recommended(user, rank, each) for rank, each in enumerate(items, 1)])

    def open(
        self,
        new_items: "Sequence[NewItem]" = (),
        *,
        cf: "str | os.PathLike[str] | None" = None,
        stage1: "str | os.PathLike[str] | None" = None,
        llm: str | None = None,
        llm_weights: Literal["dtype", "int8"] | None = None,
        batch_size: int = 1,
    ) -> "Recommender":
        """Loads the models, once for the same arguments.

        Args:
            new_items: items that no training has seen, beside those of the data set.
            cf: where the CF run is (or one's own arrays), if not beside this one.
            stage1: where the stage-1 run is, if not beside this one.
            llm: where the language model is, if not where it was in training.
            llm_weights: its kernels as trained with, or rounded to ``"int8"``.
            batch_size: prompts that the language model reads at once.

        Raises:
            UserError: something that the run was built on is not there, or is another.
        """
        key = (tuple(new_items), cf, stage1, llm, llm_weights, batch_size)
        if key not in self._loaded:
            from allmrec_jax.progress import announce
            from allmrec_jax.trained.recommend import load_recommender

            dataset, root = self._dataset(), self.path.absolute().parents[2]
            places = {
                role: None if given is None else find_run(given, root, data=dataset, kind=role)
                for role, given in (("cf", cf), ("stage1", stage1))
            }
            self._loaded.clear()  # one language model in memory at a time
            with announce("opening the models"):
                self._loaded[key] = load_recommender(
                    dataset, self.path, new_items, llm=llm, llm_weights=llm_weights, batch_size=batch_size, **places
                )
        return self._loaded[key]

    def _dataset(self) -> "Dataset":
        if self.dataset is None:
            object.__setattr__(self, "dataset", self.load_data())
        assert self.dataset is not None
        return self.dataset


def _check_counts(count: int, retrieve: int) -> None:
    if count < 1:
        raise UserError(f"--count {count}: at least 1 is expected")
    if count > retrieve:
        raise UserError(f"--count {count} is more than --retrieve {retrieve}; raise --retrieve")
