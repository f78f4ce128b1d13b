"""What the later stages ask of a collaborative-filtering model, and how to load one.

A-LLMRec needs an embedding per item and a representation of a user given a history, nothing else. A model to be trained
here is added to :mod:`allmrec_jax.models.cf.registry`; of one trained elsewhere :class:`ArrayCF` takes the vectors.

Shapes: B batch, T time, D model, K candidates, N items, U users.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax.data.dataset import CUTS, Cut, Dataset
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import check_finite, load_array, read_json
from allmrec_jax.models.cf.registry import cf_class, known_cf_models
from allmrec_jax.runs import find_upstream

CF_HISTORY = 50
"""Items of a history that stages 1 and 2 show a CF model; its own limit may be lower."""


class CFModel(Protocol):
    """A frozen CF model.

    Attributes:
        num_items: N; items are 1..N, 0 is padding.
        dim: D, free, the width of item and user vectors alike.
        live: whether it computes from any history, also with dropout. Models that do not are precomputed arrays;
            settings that need a live one (``official``'s dropout, A-LLMRec_all, bare histories) say so.
        identity: what later runs record as their upstream ``cf``.
    """

    @property
    def num_items(self) -> int: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def live(self) -> bool: ...  # noqa: D102
    @property
    def identity(self) -> str: ...  # noqa: D102

    def at(self, cut: Cut) -> "CFModel":
        """The model for histories that end at ``cut``. Live models, which read the history, return themselves.

        Callers that know the cut call this first, ``cf.at("test").user_vectors(users, items)``: precomputed arrays hold
        one user vector per cut.
        """
        ...

    def item_vectors(self) -> Float[np.ndarray, "N+1 D"]:
        """An embedding per item; row 0 is padding's and means nothing."""
        ...

    def user_vectors(
        self, users: Int[np.ndarray, "B"] | None, items: Int[Array | np.ndarray, "B T"], *, key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """A representation of each user.

        Args:
            users: indices in the data set; ``None`` for unknown users, known by their histories alone.
            items: histories, left-padded with 0. Models compile once for each shape: use a few widths and one B.
            key: for live dropout; ``None`` for none.
        """
        ...

    def score(
        self,
        users: Int[np.ndarray, "B"] | None,
        items: Int[Array | np.ndarray, "B T"],
        candidates: Int[Array | np.ndarray, "B K"],
    ) -> Float[Array, "B K"]:
        """How much each user likes each candidate: higher is better, the scale is the model's own."""
        ...

    def score_catalogue(
        self, users: Int[np.ndarray, "B"] | None, items: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B N+1"]:
        """:meth:`score` of every item; column 0, padding's, means nothing."""
        ...


def require_live(cf: CFModel, positions: str, train_mode: bool) -> None:
    """Refuses precomputed vectors where training asks for users at every position, or with dropout.

    Raises:
        UserError: the setting that needs a live model is named.
    """
    if not cf.live and (positions == "all" or train_mode):
        name = "positions all" if positions == "all" else "cf_train_mode"
        raise UserError(f"{name} needs a live CF model; precomputed user vectors have one history per user")


class ArrayCF:
    """Precomputed vectors from any CF model of the user's own; users are looked up by index, histories not read.

    Args:
        items: [N+1, D]; row 0 is ignored.
        users: [U, D] for each history cut: the user's representation before the training target, the validation item
            and the test item (see :data:`allmrec_jax.data.dataset.CUTS`). Rows of users without that cut are not read.
        identity: of the arrays.
        cut: which of ``users`` to look into; set by :meth:`at`.
    """

    live = False

    def __init__(
        self, items: np.ndarray, users: Mapping[Cut, np.ndarray], identity: str = "", cut: Cut | None = None
    ) -> None:
        self.items, self.users, self.identity, self.cut = items, users, identity, cut

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items) - 1

    @property
    def dim(self) -> int:
        """D."""
        return self.items.shape[1]

    def at(self, cut: Cut) -> "ArrayCF":
        """The same arrays, looking users up at ``cut``."""
        return ArrayCF(self.items, self.users, self.identity, cut)

    def item_vectors(self) -> Float[np.ndarray, "N+1 D"]:
        """The item array."""
        return self.items

    def user_vectors(
        self, users: Int[np.ndarray, "B"] | None, items: Int[Array | np.ndarray, "B T"], *, key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """The rows of ``users`` at the cut; ``items`` is not read.

        Raises:
            UserError: for what only a live model can do: unknown users, dropout, or no cut chosen.
        """
        if users is None:
            raise UserError(
                "precomputed user vectors know only the data set's users; a bare history needs a live model"
            )
        if key is not None:
            raise UserError("precomputed user vectors have no dropout; choose cf_train_mode off, or a live model")
        if self.cut is None:
            raise UserError(f"precomputed user vectors belong to a history cut: one of {', '.join(CUTS)}")
        return jnp.asarray(self.users[self.cut][np.asarray(users)])

    def score(
        self,
        users: Int[np.ndarray, "B"] | None,
        items: Int[Array | np.ndarray, "B T"],
        candidates: Int[Array | np.ndarray, "B K"],
    ) -> Float[Array, "B K"]:
        """Dot products of user and item vectors."""
        return jnp.einsum("bd,bkd->bk", self.user_vectors(users, items), self.items[np.asarray(candidates)])

    def score_catalogue(
        self, users: Int[np.ndarray, "B"] | None, items: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B N+1"]:
        """Dot products of user vectors with every item's."""
        return self.user_vectors(users, items) @ self.items.T


def load_cf(path: Path | str, dataset: Dataset) -> CFModel:
    """The CF model of a finished ``train cf`` run, or of a directory of the user's own arrays.

    Args:
        path: a run directory; or a directory with ``items.npy`` [N+1, D] and ``users_train.npy``, ``users_valid.npy``,
            ``users_test.npy`` [U, D], floating point, indexed as the data set is.
        dataset: what the model must belong to.

    Raises:
        UserError: there is neither at ``path``, the run is unfinished or of another data set, or a file does not fit.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        _, about = find_upstream(path.parent, "cf", dataset.name, dataset.hash, given=path)
        return load_export(path / "export", about["identity"])
    if (path / "items.npy").is_file():
        return _load_arrays(path, dataset)
    raise UserError(
        f"{path}: neither a `train cf` run (no run.json) nor a directory of your own arrays "
        "(no items.npy; beside it users_train.npy, users_valid.npy, users_test.npy)"
    )


def load_export(directory: Path, identity: str) -> CFModel:
    """The live model in a run's ``export`` directory.

    Raises:
        UserError: a file is missing or damaged.
    """
    model, config = read_card(directory / "cf.json")
    try:
        return cf_class(model).from_export(directory, config, identity)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{directory / 'cf.json'}: no configuration of {model} ({first_line(error)}); train the CF model again"
        ) from error


class _Card(TypedDict):
    model: str
    config: dict[str, Any]


def read_card(path: Path) -> tuple[str, dict]:
    """Model name and configuration from an export's ``cf.json``; :class:`UserError` if it is damaged."""
    card = read_json(path, _Card, "train the CF model again")
    if card["model"] not in known_cf_models():
        raise UserError(f"{path}: unknown CF model {card['model']!r}; known: {', '.join(known_cf_models())}")
    return card["model"], card["config"]


def _load_arrays(path: Path, dataset: Dataset) -> ArrayCF:
    items = _read_array(path / "items.npy", dataset.num_items + 1, "items and padding")
    users: dict[Cut, np.ndarray] = {}
    digest = hashlib.sha256(items.tobytes())
    for cut in get_args(Cut):
        file = path / f"users_{cut}.npy"
        users[cut] = _read_array(file, dataset.num_users, "users")
        if users[cut].shape[1] != items.shape[1]:
            width, expected = users[cut].shape[1], items.shape[1]
            raise UserError(f"{file}: vectors of width {width}, but items.npy has {expected}; they must agree")
        digest.update(users[cut].tobytes())
    return ArrayCF(items, users, digest.hexdigest())


def _read_array(path: Path, rows: int, what: str) -> np.ndarray:
    array = load_array(path, "export it again")
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) != rows:
        raise UserError(
            f"{path}: {array.dtype} array of shape {list(array.shape)}; "
            f"floating point of shape [{rows}, D] is needed, a row for each of the data set's {rows} {what}"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        single = array.astype(np.float32)
    check_finite(path, {"in float32": single}, "export it again")
    return single
