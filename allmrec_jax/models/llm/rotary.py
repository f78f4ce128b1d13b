"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), and the scalings that stretch them to longer texts.

Shapes: B batch, T tokens, H heads, Dh width of a head.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

THETA = 10000.0
"""The base where a configuration names none."""


class Rotation(NamedTuple):
    """Cosines and sines of the angles of each position, float32."""

    cos: Float[Array, "B T Dh/2"]
    sin: Float[Array, "B T Dh/2"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """The frequencies that positions are turned by.

    Attributes:
        rope_theta: the base: pair i of a head of width Dh turns by ``rope_theta ** (-2 i / Dh)`` a position.
        rope_type: ``default``; ``linear`` (Chen et al. 2023, arXiv 2306.15595), which divides all frequencies by
            ``factor``; ``llama3`` (Llama 3.1), which divides the low ones and blends those between; or ``yarn`` (Peng
            et al. 2023, arXiv 2309.00071), which blends by the turns within the original length and raises the
            rotated vectors' norm. ``dynamic`` changes nothing up to ``max_position_embeddings``, and no more is read.
        factor: how many times longer texts may be.
        original_max_position_embeddings: the length before the scaling.
        low_freq_factor: of ``llama3``: longer wavelengths than the original length over it are divided.
        high_freq_factor: of ``llama3``: shorter wavelengths than the original length over it stay.
        beta_fast: of ``yarn``: pairs with more turns stay.
        beta_slow: of ``yarn``: pairs with fewer turns are divided.
        attention_factor: of ``yarn``: what cosines and sines are multiplied by; computed if not given.
        mscale: of ``yarn``: enters the computed ``attention_factor``, with ``mscale_all_dim``.
        mscale_all_dim: see ``mscale``.
        truncate: of ``yarn``: whole pairs bound the blend.
    """

    rope_theta: float = THETA
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], theta: float, length: int) -> Self:
        """From ``rope_scaling`` or ``rope_parameters`` of a ``config.json``.

        Args:
            given: the object, empty where there is none.
            theta: the base where the object names none.
            length: ``max_position_embeddings``, the original length where the object names none.

        Raises:
            ValueError: a scaling that is not computed here, or a value that it cannot have.
        """
        values: dict[str, Any] = {"rope_theta": theta, "original_max_position_embeddings": length}
        values |= {key: value for key, value in given.items() if value is not None}
        kind = values.pop("type", "default")
        values.setdefault("rope_type", kind)
        if values["rope_type"] not in ("default", "linear", "dynamic", "llama3", "yarn"):
            raise ValueError(
                f"rope_type {values['rope_type']!r} is not computed; known are default, linear, dynamic, llama3, yarn"
            )
        if values.pop("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("partial_rotary_factor must be 1: only whole heads are rotated")
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in fields:
                raise ValueError(f"{key!r} belongs to no scaling of rotary positions that is computed here")
            number = not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf
            if key not in ("rope_type", "truncate") and not number:
                raise ValueError(f"{key} of the rotary positions is {value!r}; it must be a number above zero")
        return cls(values["rope_theta"]) if values["rope_type"] == "default" else cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The object of a ``config.json``'s ``rope_scaling``; empty where nothing is scaled."""
        if self.rope_type == "default":
            return {}
        changed = {key: value for key, value in dataclasses.asdict(self).items() if value != getattr(Rope, key)}
        changed.pop("rope_theta", None)
        if self.rope_type == "llama3":
            changed |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        return {**changed, "factor": self.factor}

    def rotation(self, positions: Int[Array, "B T"], width: int) -> Rotation:
        """The angles of positions for heads of a width."""
        frequencies, scale = self.frequencies(width)
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]
        return Rotation(jnp.cos(angles) * scale, jnp.sin(angles) * scale)

    def frequencies(self, width: int) -> tuple[np.ndarray, float]:
        """Radians that a position turns each pair of a head by [Dh/2], and the factor of cosines and sines."""
        plain = self.rope_theta ** (-np.arange(0, width, 2) / width)
        match self.rope_type:
            case "linear":
                return plain / self.factor, 1.0
            case "llama3":
                return self._llama3(plain), 1.0
            case "yarn":
                return self._yarn(plain), self._yarn_scale()
        return plain, 1.0

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return kept * plain + (1 - kept) * plain / self.factor

    def _yarn(self, plain: np.ndarray) -> np.ndarray:
        width, length = 2 * len(plain), self.original_max_position_embeddings

        def pair(turns: float) -> float:
            """The pair, not a whole number, that turns so often within the original length."""
            return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(self.rope_theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        divided = np.clip((np.arange(len(plain)) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
        return divided * plain / self.factor + (1 - divided) * plain

    def _yarn_scale(self) -> float:
        def grown(by: float) -> float:
            return 0.1 * by * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)


UNSCALED = Rope()
"""The positions of a configuration that says nothing of them."""


def rotated(x: Float[Array, "B H T Dh"], rotation: Rotation) -> Float[Array, "B H T Dh"]:
    """Queries or keys turned by their positions; the two numbers of a pair stand half a head apart."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(part[:, None], first.shape) for part in rotation)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
