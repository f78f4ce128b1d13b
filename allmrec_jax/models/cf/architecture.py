"""What a CF model must bring to be trained, loaded and compared: one :class:`CFArchitecture` in a file of its own.

Shapes: B batch, T time, D model, N items.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import jax
from jaxtyping import Array, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class ValidationSettings:
    """Who is asked in a validation, and among how many items.

    Attributes:
        max_length: items of history at most, the latest.
        users: a seeded sample where there are more.
        negatives: of each validation item.
    """

    max_length: int
    users: int
    negatives: int


class Trainable(Protocol):
    """The network of a CF model, as training sees it. It is hashable: a static argument of jitted functions.

    :class:`allmrec_jax.models.cf.sequential.SequenceModel` has all of this for a Flax module that turns histories into
    hidden states.

    Attributes:
        config: with ``num_items`` at least.
        reads_history: whether an item is predicted from the items before it, so that a user needs two training items to
            be learnt from; otherwise it is predicted from the user alone.
    """

    @property
    def config(self) -> Any: ...  # noqa: D102
    @property
    def reads_history(self) -> bool: ...  # noqa: D102

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Initial parameters."""
        ...

    def states(
        self, params: Any, users: Int[Array, "B"] | None, items: Int[Array, "B T"], key: jax.Array | None
    ) -> Float[Array, "B T D"]:
        """What the items are scored against.

        Args:
            params: of the network.
            users: indices in the data set; ``None`` for unknown users.
            items: left-padded with 0.
            key: for dropout; ``None`` for none.

        Returns:
            A state after each item of a history, or [B, 1, D] from a network that reads no history.
        """
        ...

    def scores(
        self, params: Any, states: Float[Array, "B T D"], items: Int[Array, "B T"] | None, key: jax.Array | None
    ) -> Float[Array, "B T"]:
        """The score of each of ``items`` after the state beside it; for ``None`` those of all items [B, T, N]."""
        ...


@dataclasses.dataclass(frozen=True)
class CFSettings(abc.ABC):
    """What decides a CF model's numbers, whichever model it is; subclasses add their own and a ``module``."""

    model: str = setting("", "which CF model")
    dim: int = setting(50, "width of item and user vectors; NCF has as much for its GMF and for its MLP")
    max_length: int = setting(50, "items of history at most, the latest")
    learning_rate: float = setting(1e-3, "Adam's learning rate")
    beta2: float = setting(0.98, "Adam's second moment decay")
    batch_size: int = setting(128, "users in a batch, with all of their positions")
    epochs: int = setting(200, "epochs at most")
    loss: Literal["bce", "softmax"] = setting(
        "bce", "binary cross-entropy with one uniform negative per position, or cross-entropy over all items"
    )
    sampling: Literal["each-once", "with-replacement"] = setting(
        "each-once", "users of an epoch: each once, or drawn with replacement as the official code does"
    )
    buckets: int = setting(3, "length buckets in training; 1 is max_length for all")
    choose: Literal["best", "last"] = setting("best", "export the epoch best on validation, or the last one")
    evaluate_every: int = setting(5, "epochs between validations")
    patience: int = setting(4, "validations without improvement before training stops; 0 is never")
    validation_users: int = setting(10_000, "users in a validation, a seeded sample where there are more")
    validation_negatives: int = setting(100, "negatives of each validation item")

    def __post_init__(self) -> None:
        counts = ("batch_size", "epochs", "buckets", "evaluate_every", "validation_users", "validation_negatives")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"CF training: {name} is {getattr(self, name)}; it must be at least 1")
        if self.patience < 0 or self.learning_rate <= 0 or not 0 <= self.beta2 < 1:
            raise UserError("CF training: patience is at least 0, learning_rate above 0, beta2 in [0, 1)")

    @property
    def validation(self) -> ValidationSettings:
        """Of the validations that choose the epoch."""
        return ValidationSettings(self.max_length, self.validation_users, self.validation_negatives)

    @abc.abstractmethod
    def module(self, num_users: int, num_items: int) -> Trainable:
        """The network for a data set of so many users and items."""


SMALL: dict[str, Any] = dict(learning_rate=3e-3, loss="softmax", buckets=2, epochs=20, evaluate_every=2, patience=3)
"""What the presets ``small`` share: the embedded data in half a minute."""


@dataclasses.dataclass(frozen=True)
class CFArchitecture:
    """A CF model: everything that the product asks of it. :mod:`allmrec_jax.models.cf.registry` lists them.

    Attributes:
        name: as in ``allmrec train cf --model NAME``, in runs and in ``cf.json``.
        title: as in tables.
        about: what it is, in a sentence.
        presets: its settings by preset: ``small`` for the embedded data and two cores, ``paper`` the paper's values.
        cf: the class behind :class:`allmrec_jax.models.cf.protocol.CFModel`: made of a network's configuration, its
            parameters and an identity, and by ``from_export(directory, config, identity)`` of what training exported.
    """

    name: str
    title: str
    about: str
    presets: Mapping[str, CFSettings]
    cf: Any
