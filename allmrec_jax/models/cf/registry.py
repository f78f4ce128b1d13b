"""The CF models by name. A model of one's own is added by :func:`register_cf_model`, without a change here.

Nothing heavy is imported before a model is asked for.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from allmrec_jax.errors import UserError
from allmrec_jax.registry import Registry, named

if TYPE_CHECKING:
    from allmrec_jax.models.cf.architecture import CFArchitecture, CFSettings


@dataclasses.dataclass(frozen=True)
class CFEntry:
    """A CF model by name: its architecture, or the ``"module:name"`` of it."""

    name: str
    architecture: "str | CFArchitecture"

    def load(self) -> "CFArchitecture":
        """The architecture, imported where it is not yet."""
        return named(self.architecture) if isinstance(self.architecture, str) else self.architecture


CF_MODELS = Registry(
    "CF model",
    [
        CFEntry("sasrec", "allmrec_jax.models.cf.sasrec:MODEL"),
        CFEntry("nextitnet", "allmrec_jax.models.cf.nextitnet:MODEL"),
        CFEntry("gru4rec", "allmrec_jax.models.cf.gru4rec:MODEL"),
        CFEntry("ncf", "allmrec_jax.models.cf.ncf:MODEL"),
    ],
)
"""What ``allmrec train cf`` trains, in the order in which ``--help`` lists them."""

BASELINES = {
    "ctrl": "allmrec_jax.models.cf.ctrl:CTRLCF",
    "recformer": "allmrec_jax.models.recformer:RecformerCF",
}
"""Classes of the models that have trainings of their own (:mod:`allmrec_jax.baselines`), by the name in ``cf.json``."""


def register_cf_model(architecture: "CFArchitecture") -> "CFArchitecture":
    """Adds a CF model and returns it: it can then be trained, loaded and compared like the others.

    Raises:
        UserError: the name is taken.
    """
    if architecture.name in BASELINES:
        raise UserError(f"there is a CF model {architecture.name!r} already; give the new one another name")
    CF_MODELS.register(CFEntry(architecture.name, architecture))
    return architecture


def known_cf_models() -> tuple[str, ...]:
    """The names of all models that can be loaded."""
    return *CF_MODELS, *BASELINES


def cf_class(name: str) -> Any:
    """The class that loads what the training of a known model exported, by the model's name in ``cf.json``."""
    return named(BASELINES[name]) if name in BASELINES else CF_MODELS[name].load().cf


class _Presets(Mapping[str, "Mapping[str, CFSettings]"]):
    def __getitem__(self, name: str) -> "Mapping[str, CFSettings]":
        return CF_MODELS[name].load().presets

    def __iter__(self) -> Iterator[str]:
        return iter(CF_MODELS)

    def __len__(self) -> int:
        return len(CF_MODELS)


CF_PRESETS: "Mapping[str, Mapping[str, CFSettings]]" = _Presets()
"""Settings by model and preset, of every model in :data:`CF_MODELS`."""
