"""Registries: records by name, to which a package of others adds its own.

An installed package adds to a registry through the entry-point group ``allmrec_jax.plugins``; each of its entries names
a module, whose import registers what it brings. They are imported when a registry is first read.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from allmrec_jax.errors import UserError

PLUGINS = "allmrec_jax.plugins"
"""The entry-point group."""


class Named(Protocol):
    """A record of a registry."""

    @property
    def name(self) -> str:
        """What it is found by."""


R = TypeVar("R", bound=Named)


class Registry(Mapping[str, R]):
    """Records by their name, in the order in which they were added.

    Args:
        what: what a record is, for messages, e.g. ``"system"``.
        records: those that the product brings.
        derived: those that follow from another registry, e.g. a system from each CF model; asked for at each read.
            They stand behind the others; where a name is in ``records`` already, that record counts.
    """

    def __init__(self, what: str, records: Iterable[R] = (), derived: Callable[[], Iterable[R]] = lambda: ()) -> None:
        self.what, self.derived = what, derived
        self.records: dict[str, R] = {}
        for record in records:
            self.register(record)

    def register(self, record: R) -> R:
        """Adds a record and returns it.

        Raises:
            UserError: the name is taken.
        """
        if record.name in self.records:
            raise UserError(f"there is a {self.what} {record.name!r} already; give the new one another name")
        self.records[record.name] = record
        return record

    def find(self, name: str) -> R:
        """The record of a name, whatever its case.

        Raises:
            UserError: there is none; the message lists the known names.
        """
        for known, record in self.items():
            if known.casefold() == name.casefold():
                return record
        raise UserError(f"unknown {self.what} {name!r}; known: {'; '.join(self)}")

    def _complete(self) -> dict[str, R]:
        load_plugins()
        more = {record.name: record for record in self.derived() if record.name not in self.records}
        return {**self.records, **more}

    def __getitem__(self, name: str) -> R:
        return self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())


_loading = False


def load_plugins() -> None:
    """Imports every installed plugin, once in a process.

    Raises:
        UserError: a plugin cannot be imported; the message names it.
    """
    global _loading
    if _loading:  # a plugin may read a registry that it adds to
        return
    _loading = True
    try:
        for plugin in importlib.metadata.entry_points(group=PLUGINS):
            try:
                plugin.load()
            except Exception as error:
                raise UserError(f"the plugin {plugin.value} cannot be loaded: {error}; mend or uninstall it") from error
    except BaseException:
        _loading = False
        raise


def named(reference: str) -> Any:
    """The object that ``"module:name"`` names; its module is imported when it is first asked for."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
