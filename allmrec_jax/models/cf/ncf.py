"""NCF in its form NeuMF (He et al. 2017): a product of embeddings and an MLP of others, joined by one dense layer.

    GMF  p_u ∘ q_i                          MLP  ReLU(W₂ ReLU(W₁ [p'_u; q'_i]))          score  w · [GMF; MLP] + b

A user's vector is ``[p_u; p'_u]``, an item's ``[q_i; q'_i]``: these are what later stages read. NeuMF knows its users
by index. One whom it does not know has the mean of the history's item vectors for a vector.

Shapes: B batch, T time, D model (GMF and MLP embeddings side by side), K candidates, N items, U users.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import load_arrays
from allmrec_jax.models.cf.architecture import SMALL, CFArchitecture, CFSettings
from allmrec_jax.models.cf.sequential import Dropout, torch_uniform
from allmrec_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class NCFConfig:
    """Everything that decides NeuMF's computation; the defaults are RecBole's but for the paper's ``dim``.

    Attributes:
        dim: of the GMF and of the MLP embeddings each.
        hidden: width of the MLP's first layer; the second is half of it.
    """

    num_users: int
    num_items: int
    dim: int = 50
    hidden: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"NCF: dropout {self.dropout} is not in [0, 1)")
        if min(self.num_users, self.num_items, self.dim, self.hidden // 2) < 1:
            raise UserError("NCF: users, items and dim must be at least 1, hidden at least 2")


class NeuMF(nn.Module):
    """The score of a user's and an item's vector; the tables of vectors lie beside its parameters."""

    config: NCFConfig
    reads_history: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, users: Float[Array, "*S D"], items: Float[Array, "*S D"], deterministic: bool = True
    ) -> Float[Array, "*S"]:
        """Scores of ``users`` for the ``items`` beside them; ``deterministic=False`` needs an rng named ``dropout``."""
        cfg = self.config
        gmf = users[..., : cfg.dim] * items[..., : cfg.dim]
        h = jnp.concatenate([users[..., cfg.dim :], items[..., cfg.dim :]], axis=-1)
        for layer, width in enumerate((cfg.hidden, cfg.hidden // 2)):
            h = Dropout(cfg.dropout, name=f"dropout_{layer}")(h, deterministic)
            uniform = torch_uniform(h.shape[-1])
            h = nn.relu(nn.Dense(width, kernel_init=uniform, bias_init=uniform, name=f"mlp_{layer}")(h))
        joined = jnp.concatenate([gmf, h], axis=-1)
        uniform = torch_uniform(joined.shape[-1])
        return nn.Dense(1, kernel_init=uniform, bias_init=uniform, name="score")(joined)[..., 0]

    @nn.nowrap
    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Initial parameters, as RecBole draws them: N(0, 0.01) embeddings, torch's dense layers."""
        user_key, item_key, tower_key = jax.random.split(key, 3)
        width = 2 * self.config.dim
        nothing = jnp.zeros((1, width))
        return {
            "user_embedding": 0.01 * jax.random.normal(user_key, (self.config.num_users, width)),
            "item_embedding": 0.01 * jax.random.normal(item_key, (self.config.num_items + 1, width)),
            "tower": jax.jit(self.init)(tower_key, nothing, nothing)["params"],
        }

    @nn.nowrap
    def states(self, params: Any, users: Int[Array, "B"], items: Any, key: Any) -> Float[Array, "B 1 D"]:
        """The users' vectors; ``items`` and ``key`` are not used."""
        return params["user_embedding"][users][:, None]

    @nn.nowrap
    def scores(
        self, params: Any, states: Float[Array, "B 1 D"], items: Int[Array, "B T"] | None, key: jax.Array | None
    ) -> Float[Array, "B T"]:
        """Scores of ``items`` for the users of :meth:`states`; for ``None`` those of all items [B, 1, N].

        Args:
            params: tables and tower.
            states: the users' vectors.
            items: a row for each user.
            key: for dropout; ``None`` for none.
        """
        vectors = params["item_embedding"][1:][None] if items is None else params["item_embedding"][items]
        shape = (len(states), *vectors.shape[1:])
        rngs = None if key is None else {"dropout": key}
        pair = jnp.broadcast_to(states, shape), jnp.broadcast_to(vectors, shape)
        found = jnp.asarray(self.apply({"params": params["tower"]}, *pair, deterministic=key is None, rngs=rngs))
        return found[:, None] if items is None else found


@jax.jit
def _mean_of_items(table: Float[Array, "N+1 D"], items: Int[Array, "B T"]) -> Float[Array, "B D"]:
    real = (items != 0)[..., None]
    return jnp.where(real, table[items], 0.0).sum(axis=1) / jnp.maximum(real.sum(axis=1, dtype=jnp.float32), 1.0)


@partial(jax.jit, static_argnums=0)
def _scores(
    model: NeuMF, params: Any, users: Float[Array, "B D"], candidates: Int[Array, "B K"]
) -> Float[Array, "B K"]:
    return model.scores(params, users[:, None], candidates, None)


@partial(jax.jit, static_argnums=0)
def _catalogue(model: NeuMF, params: Any, users: Float[Array, "B D"]) -> Float[Array, "B N+1"]:
    """User by user: all pairs at once would need B·N rows of the MLP."""
    everything = jnp.arange(model.config.num_items + 1)[None]
    return jax.lax.map(lambda user: model.scores(params, user[None, None], everything, None)[0], users)


class NCF:
    """A trained NeuMF behind the CF protocol (:mod:`allmrec_jax.models.cf.protocol`).

    ``user_vectors`` has no dropout (NeuMF's lies behind its vectors), and a known user's vector does not depend on the
    history.
    """

    live = True
    module = NeuMF

    def __init__(self, config: NCFConfig, params: Any, identity: str = "") -> None:
        self.config = config
        self.params = jax.tree.map(jnp.asarray, params)
        self.identity = identity
        self.model = NeuMF(config)

    @classmethod
    def from_export(cls, directory: Path, config: Mapping[str, Any], identity: str) -> "NCF":
        """A model from ``params.safetensors`` in ``directory`` and its configuration in ``cf.json``.

        Raises:
            UserError: the file is missing or damaged, or a parameter is missing, unexpected or of another shape.
        """
        settled = NCFConfig(**config)
        like = jax.eval_shape(NeuMF(settled).init_params, jax.random.key(0))
        return cls(settled, load_arrays(directory / "params.safetensors", like), identity)

    @property
    def num_items(self) -> int:
        """N."""
        return self.config.num_items

    @property
    def dim(self) -> int:
        """D: twice the configuration's ``dim``."""
        return 2 * self.config.dim

    def at(self, cut: str) -> "NCF":
        """Itself."""
        return self

    def item_vectors(self) -> Float[np.ndarray, "N+1 D"]:
        """GMF and MLP embeddings side by side; row 0, padding's, was never trained."""
        return np.asarray(self.params["item_embedding"])

    def user_vectors(
        self,
        users: Int[np.ndarray, "B"] | None,
        items: Int[Array | np.ndarray, "B T"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B D"]:
        """The users' embeddings; of unknown ones (``None``) the mean of the vectors of ``items``."""
        if users is None:
            return _mean_of_items(self.params["item_embedding"], jnp.asarray(items))
        return self.params["user_embedding"][jnp.asarray(users)]

    def score(
        self,
        users: Int[np.ndarray, "B"] | None,
        items: Int[Array | np.ndarray, "B T"],
        candidates: Int[Array | np.ndarray, "B K"],
    ) -> Float[Array, "B K"]:
        """NeuMF's logit of each candidate."""
        return _scores(self.model, self.params, self.user_vectors(users, items), jnp.asarray(candidates))

    def score_catalogue(
        self, users: Int[np.ndarray, "B"] | None, items: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B N+1"]:
        """NeuMF's logit of every item; column 0, padding's, means nothing."""
        return _catalogue(self.model, self.params, self.user_vectors(users, items))


@dataclasses.dataclass(frozen=True)
class NCFSettings(CFSettings):
    """NCF's (NeuMF), from the same sources as GRU4Rec's. It has no use for order, so it may see longer histories."""

    model: Literal["ncf"] = setting("ncf", "which CF model")
    max_length: int = setting(200, "items of history at most, the latest")
    beta2: float = setting(0.999, "Adam's second moment decay")
    hidden: int = setting(128, "GRU4Rec: width of the GRU's state. NCF: of the MLP's first layer, twice the second's")
    dropout: float = setting(0.1, "dropout rate")

    def module(self, num_users: int, num_items: int) -> NeuMF:
        """The network."""
        config = NCFConfig(num_users, num_items, self.dim, self.hidden, self.dropout)
        return NeuMF(config)


MODEL = CFArchitecture(
    "ncf",
    "NCF",
    "A product and an MLP of user and item embeddings, in its form NeuMF (He et al. 2017)",
    {"paper": NCFSettings(), "small": NCFSettings(max_length=100, **SMALL | {"loss": "bce", "epochs": 40})},
    NCF,
)
