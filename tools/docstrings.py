"""Docstrings as mkdocstrings reads them: a Griffe extension that ``zensical.toml`` names.

The sources write ``Example:`` and Sphinx's ``:func:`name```, which editors and ``help()`` show well. In the site an
example is a block of code, and a name is set as code.
"""

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`")
EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Griffe calls it with every module, class, function and attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda found: f"`{found[1].removeprefix('allmrec_jax.')}`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", text)
