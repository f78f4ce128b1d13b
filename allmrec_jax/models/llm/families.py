"""The families of language models by Hugging Face's ``model_type``. One of one's own is added by
:func:`register_family`, without a change here.

A family's module is imported when a model of it is first asked for.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from allmrec_jax.errors import UserError
from allmrec_jax.registry import Registry, named

if TYPE_CHECKING:
    from allmrec_jax.models.llm.family import Family, LMConfig


@dataclasses.dataclass(frozen=True)
class FamilyEntry:
    """A ``model_type`` and its family, or the ``"module:name"`` of it."""

    name: str
    family: "str | Family"

    def load(self) -> "Family":
        """The family, imported where it is not yet."""
        return named(self.family) if isinstance(self.family, str) else self.family


FAMILIES = Registry(
    "language model's architecture",
    [
        FamilyEntry("opt", "allmrec_jax.models.llm.opt:FAMILY"),
        FamilyEntry("llama", "allmrec_jax.models.llm.llama:LLAMA"),
        FamilyEntry("mistral", "allmrec_jax.models.llm.llama:MISTRAL"),
        FamilyEntry("qwen2", "allmrec_jax.models.llm.qwen:QWEN2"),
        FamilyEntry("qwen3", "allmrec_jax.models.llm.qwen:QWEN3"),
        FamilyEntry("gemma2", "allmrec_jax.models.llm.gemma:GEMMA2"),
        FamilyEntry("gemma3_text", "allmrec_jax.models.llm.gemma:GEMMA3"),
    ],
)
"""By ``model_type``."""


def register_family(family: "Family") -> "Family":
    """Adds a family and returns it: its models can then be loaded, trained with and asked like the others.

    Raises:
        UserError: one of its model types is taken.
    """
    for model_type in family.model_types:
        FAMILIES.register(FamilyEntry(model_type, family))
    return family


def find_family(model_type: str, where: object) -> "Family":
    """The family of a ``model_type`` that was read from ``where``.

    Raises:
        UserError: there is none; the message lists the known ones.
    """
    if model_type not in FAMILIES:
        raise UserError(f"{where}: model_type is {model_type!r}; the architectures known here: {', '.join(FAMILIES)}")
    return FAMILIES[model_type].load()


def family_of_gguf(architecture: str, where: object) -> "Family":
    """The family of a GGUF file's architecture, which was read from ``where``.

    Raises:
        UserError: there is none; the message lists the known ones.
    """
    known = {form.architecture: family for entry in FAMILIES.values() if (form := (family := entry.load()).gguf)}
    if architecture not in known:
        raise UserError(f"{where}: its architecture is {architecture!r}; known here in GGUF files: {', '.join(known)}")
    return known[architecture]


def family_of(config: "LMConfig") -> "Family":
    """The family of a configuration."""
    return FAMILIES[config.model_type].load()


def published() -> Mapping[str, Any]:
    """The configurations of published models by their names on the hub."""
    return {name: config for entry in FAMILIES.values() for name, config in entry.load().published.items()}


def init_params(config: "LMConfig", key: jax.Array) -> dict[str, Any]:
    """Random parameters of a model, by Flax's default initialisers."""
    model = family_of(config).module(config)
    zeros = jnp.zeros((1, 1), jnp.int32)

    def run(module: Any) -> jax.Array:
        return module.logits(module(module.embed(zeros), zeros)[0])

    return nn.init(run, model)(key)["params"]
