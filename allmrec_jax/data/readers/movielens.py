"""MovieLens: 100K (``u.data``), 1M and 10M (``ratings.dat``), latest, 20M and later (``ratings.csv``)."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.delimited import Dialect, read_delimited, read_header
from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, gather, last_values
from allmrec_jax.data.readers.streams import encoding_of
from allmrec_jax.data.readers.times import SECONDS, in_seconds
from allmrec_jax.errors import UserError

NO_GENRES = "(no genres listed)"

RATINGS = {
    "user": Field("userId", "id"),
    "item": Field("movieId", "id"),
    "rating": Field("rating", "number"),
    "time": Field("timestamp", "time"),
}
RATING_NAMES = [column.key for column in RATINGS.values()]

MOVIE = {"item": Field("movieId", "id"), "title": Field("title", "text"), "categories": Field("genres", "texts")}


def read_movielens(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read the directory of any MovieLens edition, or its file of ratings: the one that is named, where one is.

    The editions have no descriptions: the genres, joined by commas, stand in for one, so that an item has a text.

    Raises:
        UserError: a file is missing or bad; see :mod:`allmrec_jax.data.readers.reading`.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_dir():
        ratings = next((path / name for name in MOVIES if (path / name).is_file()), None)
        if ratings is None:
            raise UserError(f"{path}: no MovieLens ratings here ({', '.join(MOVIES)})")
    else:
        ratings = path
    edition = edition_of(ratings)
    movies = items or directory / MOVIES[edition]
    interactions, table = EDITIONS[edition](ratings, movies, reading)
    interactions = interactions.with_columns(in_seconds(interactions["time"], SECONDS, ratings, reading))

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        reading.described_item = table["item"][0]
        return table.filter(pl.col("item").is_in(wanted.implode()))

    return Source(directory.resolve().name, "movielens", [ratings, movies], interactions, read_items)


def edition_of(ratings: Path) -> str:
    """The key of :data:`MOVIES` whose layout a file of ratings has, by its name's end."""
    if ratings.name.endswith((".csv", ".csv.gz")):
        return "ratings.csv"
    return "ratings.dat" if ratings.name.endswith((".dat", ".dat.gz")) else "u.data"


def _read_csv(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    return _table(ratings, reading, RATINGS), _items(_table(movies, reading, MOVIE))


def _read_dat(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    plain = Dialect("::", quotes=False)
    return _table(ratings, reading, RATINGS, plain, RATING_NAMES), _items(
        _table(movies, reading, MOVIE, plain, ["movieId", "title", "genres"])
    )


def _read_100k(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    piped = Dialect("|", quotes=False)
    rows = _table(ratings, reading, RATINGS, Dialect("\t", quotes=False), RATING_NAMES)
    genre_file = movies.with_name("u.genre")
    if not genre_file.is_file():
        raise UserError(f"{genre_file}: is missing; it names the genres of {movies.name}")
    genre_fields = {"genre": Field("genre", "text"), "index": Field("index", "number")}
    genres = _table(genre_file, reading, genre_fields, piped, ["genre", "index"]).sort("index")["genre"].to_list()
    flags = [f"flag {index}" for index in range(len(genres))]
    fields = {"item": Field("movieId", "id"), "title": Field("title", "text")}
    table = _table(
        movies,
        reading,
        fields | {flag: Field(flag, "text") for flag in flags},
        piped,
        ["movieId", "title", "released", "video", "url", *flags],
    )
    named = [pl.when(pl.col(flag) == "1").then(pl.lit(genre)) for flag, genre in zip(flags, genres, strict=True)]
    categories = pl.concat_list(named).list.drop_nulls()
    return rows, _items(table.select("item", "title", categories=categories))


MOVIES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
"""Each edition's file of ratings, and of movies."""

EDITIONS = {"ratings.csv": _read_csv, "ratings.dat": _read_dat, "u.data": _read_100k}


def _table(
    path: Path,
    reading: Reading,
    fields: Mapping[str, Field],
    dialect: Dialect | None = None,
    header: list[str] | None = None,
) -> pl.DataFrame:
    """The rows of a file with a header of its own, or its edition's: 100K and 1M are Latin-1, 10M is UTF-8."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the items with --items")
    encoding = encoding_of(path) if header else None
    names = header
    if names is None or dialect is None:
        names, dialect = read_header(path, reading, ",")
    named = [name for name in names if not name.startswith("flag ")]
    reading.take(path, {role: field.key for role, field in fields.items()}, named)
    rows = read_delimited(path, reading, fields, dialect, header=header, encoding=encoding)
    return gather(rows, path, reading, "rows")


def _items(table: pl.DataFrame) -> pl.DataFrame:
    genres = pl.col("categories").list.filter(~pl.element().is_in([NO_GENRES, "unknown", ""]))
    return last_values(
        table.with_columns(categories=genres)
        .with_columns(
            description=pl.when(pl.col("categories").list.len() > 0).then(
                pl.concat_list(pl.col("categories").list.join(", "))
            ),
            brand=pl.lit(None, pl.String),
        )
        .select(list(ITEMS))
    )
