"""Which column of a table is what: as the user said, under its default name, or under one that leaves no doubt."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from allmrec_jax.data.readers.reading import Reading
from allmrec_jax.errors import UserError

COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "rating": "rating",
    "time": "timestamp",
    "key": "item_id",
    "title": "title",
    "description": "description",
    "brand": "brand",
    "categories": "categories",
}
"""What each column is called unless the user says otherwise; ``key`` is the item id in a table of items of its own."""

INTERACTION_ROLES = ("user", "item", "rating", "time")

ITEM_ROLES = ("key", "title", "description", "brand", "categories")

_ITEM_IDS = (
    "item product_id product parent_asin asin movie_id book_id isbn business_id sku article_id news_id song_id "
    "track_id artist_id game_id app_id video_id anime_id recipe_id gmap_id place_id listing_id content_id iid"
)

OTHER_NAMES = {
    "user": "user uid username user_name customer_id customer reviewer_id reviewer visitor_id member_id profile_id "
    "account_id person_id client_id reader_id",
    "item": _ITEM_IDS,
    "rating": "ratings stars star_rating score overall book_rating user_rating review_rating review_score rate",
    "time": "time unix_time unix_timestamp unix_review_time timestamp_ms date datetime date_time ts event_time "
    "created_at review_time review_date rated_at time_stamp",
    "key": "id " + _ITEM_IDS,
    "title": "name item_name item_title product_title product_name movie_title movie_name book_title app_name "
    "business_name song_name track_name headline",
    "description": "item_description product_description desc abstract overview synopsis plot",
    "brand": "brand_name store manufacturer publisher",
    "categories": "category genres genre class",
}
"""Other names under which a column is taken where it is the only one; case, blanks and punctuation do not count."""

OF_PEOPLE = ("name",)
"""Names that are a user's as well where interactions and items share one table."""

LABELS = ("label", "click", "clicked", "is_click", "liked", "is_like")
"""Names of a column of 0 and 1 that says whether an interaction was positive."""


def choose_columns(
    path: Path,
    present: list[str],
    roles: Iterable[str],
    named: Mapping[str, str],
    reading: Reading,
    *,
    not_of_people: bool = False,
) -> dict[str, str]:
    """The column of each role that the file has.

    Args:
        present: the file's columns.
        roles: keys of :data:`COLUMNS`.
        named: role → column as the user said.
        not_of_people: leave :data:`OF_PEOPLE` aside.

    Raises:
        UserError: a named column is missing; or that of users or items is, or could be several.
    """
    chosen: dict[str, str] = {}
    for role in roles:
        if role in named:
            if named[role] not in present:
                raise UserError(
                    f"{path}: no column {named[role]!r} (--columns {role}={named[role]}); found: {_listed(present)}"
                )
            chosen[role] = named[role]
    for role in roles:
        if role in chosen:
            continue
        candidates = [column for column in present if column not in chosen.values()]
        exact = [column for column in candidates if column == COLUMNS[role]]
        alike = [column for column in candidates if _plain(column) == _plain(COLUMNS[role])]
        known = {_plain(name) for name in OTHER_NAMES[role].split() if not (not_of_people and name in OF_PEOPLE)}
        found = exact or alike or [column for column in candidates if _plain(column) in known]
        if len(found) == 1:
            chosen[role] = found[0]
        elif role in ("user", "item", "key"):
            raise UserError(f"{path}: {_undecided(role, present, found)}; say which one it is with --columns {role}=…")
        elif found and role in ("rating", "time", "title"):
            reading.warn(
                path, f"{_listed(found)} could each be the {role}: none is taken; say which with --columns {role}=…"
            )
    return chosen


def _undecided(role: str, present: list[str], found: list[str]) -> str:
    what = {"user": "user", "item": "item", "key": "item"}[role]
    if found:
        return f"{_listed(found)} could each be the column of {what} ids"
    return f"no column {COLUMNS[role]!r} nor another of {what} ids; found: {_listed(present)}"


def _listed(columns: list[str]) -> str:
    text = ", ".join(columns)
    return (text if len(text) <= 200 else text[:199] + "…") or "an empty file"


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.casefold())
