"""How far two float32 computations of the same thing may lie apart, and why. Nothing else decides a verdict.

The distance of two tensors is max |a - b| / max |b|; that of trained parameters is the relative L2 norm of a - b.
"""

from typing import Literal, NamedTuple

Kind = Literal["forward", "gradient", "curve", "final", "exact"]
"""What a tensor is; the first part of its name."""


class Tolerance(NamedTuple):
    """A bound and its reason."""

    value: float
    reason: str


TOLERANCES: dict[Kind, Tolerance] = {
    "forward": Tolerance(
        1e-5,
        "float32 has 6e-8 of rounding an operation; sums of some hundred terms in another order, through a few layers "
        "that normalise, stay two orders below this, and a wrong epsilon or position is far above",
    ),
    "gradient": Tolerance(
        1e-4, "a gradient is a sum over the whole batch with cancellation: about ten times the forward rounding"
    ),
    "curve": Tolerance(
        1e-3, "the losses of a training whose parameters may differ by the bound on final parameters, in size alike"
    ),
    "final": Tolerance(
        1e-3,
        "Adam divides by the root of the squared gradient, so rounding in small gradients moves parameters by a share "
        "of the learning rate at each step; relative L2 norm over a tensor after all steps",
    ),
    "exact": Tolerance(0.0, "token ids, positions, slots, hits, batches, settings"),
}

EXCLUDED = ("k_lin.bias",)
"""Parameters whose gradients and final values are not compared, by the end of their names. A key's bias shifts all
logits of a softmax alike: its true gradient is zero, what is computed is rounding, and Adam blows that up to steps of
the learning rate. No output depends on it."""

KEY_PART_OF_PACKED_BIAS = "in_proj_bias"
"""The packed bias of torch's attention; its middle third is the key's, left out of the final parameters."""
