"""MovieLens: 100K (``u.data``), 1M and 10M (``ratings.dat``), latest, 20M and later (``ratings.csv``)."""

from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, gather, read_delimited
from allmrec_jax.errors import UserError

NO_GENRES = "(no genres listed)"

RATINGS = {
    "user": Field("userId", "id"),
    "item": Field("movieId", "id"),
    "rating": Field("rating", "number"),
    "time": Field("timestamp", "number"),
}
MOVIES = {"item": Field("movieId", "id"), "title": Field("title", "text"), "categories": Field("genres", "texts")}


def read_movielens(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read the directory of any MovieLens edition, or its file of ratings.

    The editions have no descriptions: the genres, joined by commas, stand in for one, so that an item has a text.

    Raises:
        UserError: a file is missing or bad; see :mod:`allmrec_jax.data.readers.reading`.
    """
    directory = path if path.is_dir() else path.parent
    editions = {
        "ratings.csv": ("movies.csv", _read_csv),
        "ratings.dat": ("movies.dat", _read_dat),
        "u.data": ("u.item", _read_100k),
    }
    ratings = next((name for name in editions if (directory / name).is_file()), None)
    if ratings is None:
        raise UserError(f"{directory}: no MovieLens ratings here ({', '.join(editions)})")
    movies, read = editions[ratings]
    movies_path = items or directory / movies
    interactions, movie_table = read(directory / ratings, movies_path, reading)

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        return movie_table.filter(pl.col("item").is_in(wanted.implode()))

    return Source(directory.resolve().name, "movielens", [directory / ratings, movies_path], interactions, read_items)


def _read_csv(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    return (
        gather(read_delimited(ratings, reading, RATINGS), ratings, "ratings"),
        _items(gather(read_delimited(movies, reading, MOVIES), movies, "movies")),
    )


def _read_dat(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    names = [column.key for column in RATINGS.values()]
    rows = read_delimited(ratings, reading, RATINGS, separator="::", header=names, quoted=False)
    movie_rows = read_delimited(
        movies,
        reading,
        MOVIES,
        separator="::",
        header=["movieId", "title", "genres"],
        quoted=False,
        encoding=_encoding(movies),
    )
    return gather(rows, ratings, "ratings"), _items(gather(movie_rows, movies, "movies"))


def _read_100k(ratings: Path, movies: Path, reading: Reading) -> tuple[pl.DataFrame, pl.DataFrame]:
    names = [column.key for column in RATINGS.values()]
    rows = read_delimited(ratings, reading, RATINGS, separator="\t", header=names, quoted=False)
    genre_rows = read_delimited(
        movies.with_name("u.genre"),
        reading,
        {"genre": Field("genre", "text"), "index": Field("index", "number")},
        separator="|",
        header=["genre", "index"],
        quoted=False,
    )
    genres = gather(genre_rows, movies.with_name("u.genre"), "genres").sort("index")["genre"].to_list()
    flags = [f"flag {index}" for index in range(len(genres))]
    fields = {"item": Field("movieId", "id"), "title": Field("title", "text")}
    movie_rows = read_delimited(
        movies,
        reading,
        fields | {flag: Field(flag, "text") for flag in flags},
        separator="|",
        header=["movieId", "title", "released", "video", "url", *flags],
        quoted=False,
        encoding=_encoding(movies),
    )
    named = [pl.when(pl.col(flag) == "1").then(pl.lit(genre)) for flag, genre in zip(flags, genres, strict=True)]
    table = gather(movie_rows, movies, "movies")
    categories = pl.concat_list(named).list.drop_nulls()
    return gather(rows, ratings, "ratings"), _items(table.select("item", "title", categories=categories))


def _items(table: pl.DataFrame) -> pl.DataFrame:
    genres = pl.col("categories").list.filter(~pl.element().is_in([NO_GENRES, "unknown", ""]))
    return (
        table.with_columns(categories=genres)
        .with_columns(
            description=pl.when(pl.col("categories").list.len() > 0).then(
                pl.concat_list(pl.col("categories").list.join(", "))
            ),
            brand=pl.lit(None, pl.String),
        )
        .select(list(ITEMS))
        .unique("item", keep="last", maintain_order=True)
    )


def _encoding(path: Path) -> str:
    """The 100K and 1M editions are Latin-1, 10M is UTF-8."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the items with --items") from error
    return "utf-8"
