"""Accelerators by their published figures, and what a planned step takes of them."""

import dataclasses
from typing import Any, Generic, NamedTuple, TypeVar

from allmrec_jax.models.llm.room import GIB
from allmrec_jax.sharding import MeshShape

USABLE = 0.92
"""Share of a device's memory that arrays can take; the rest is the runtime's, and lost between them."""

USER_DIM, LATENT_DIM = 50, 128
"""Widths of the projectors' inputs: SASRec's and stage 1's defaults."""


class Device(NamedTuple):
    """Published figures of an accelerator.

    Attributes:
        memory: in GiB.
        tflops: dense bf16 matrix products.
        bandwidth: of its memory, GB/s.
        link: to its neighbours, GB/s in one direction, all links together; PCIe 4.0 where there is no other.
        fused: whether attention runs fused (cuDNN), so that no S × S matrix is stored.
    """

    memory: float
    tflops: float
    bandwidth: float
    link: float
    fused: bool = True


DEVICES = {
    "a6000": Device(48, 154.8, 768, 32),
    "rtx4090": Device(24, 165.2, 1008, 32),
    "l4": Device(24, 121, 300, 32),
    "a100-40": Device(40, 312, 1555, 300),
    "a100-80": Device(80, 312, 2039, 300),
    "h100": Device(80, 989, 3350, 450),
    "h200": Device(141, 989, 4800, 450),
    "tpu-v4": Device(32, 275, 1228, 300, fused=False),
    "tpu-v5e": Device(16, 197, 819, 200, fused=False),
    "tpu-v5p": Device(95, 459, 2765, 600, fused=False),
}
"""By the name of ``allmrec plan --device``."""


class Exchange(NamedTuple):
    """A kind of collective of one step: how many, and the bytes that each device sends for all of them."""

    what: str
    axis: str
    number: int
    bytes: int


Task = TypeVar("Task")


@dataclasses.dataclass(frozen=True)
class Plan(Generic[Task]):
    """What a step takes.

    Attributes:
        work: what is to be run.
        bytes: on each device by kind.
        flops: of all devices.
        exchanges: the collectives.
        device: its published figures.
        seconds: no step can take less, by what bounds it: ``compute``, ``memory``, ``exchange``.
    """

    work: Task
    device: Device
    bytes: dict[str, int]
    flops: int
    exchanges: list[Exchange]
    seconds: dict[str, float]

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether the device has room for them."""
        return self.total <= USABLE * self.device.memory * GIB

    @property
    def floor(self) -> float:
        """The longest of the bounds: arithmetic, memory and exchange at their published rates, fully overlapped."""
        return max(self.seconds.values())


def bounded(
    work: Task,
    device: Device,
    mesh: MeshShape,
    held: dict[str, int],
    total: int,
    moved: list[Exchange],
    *,
    memory_traffic: int,
) -> Plan[Task]:
    """The plan of bytes held, FLOPs in all, collectives, and bytes that a device's memory moves."""
    seconds = {
        "compute": total / mesh.size / (device.tflops * 1e12),
        "memory": memory_traffic / (device.bandwidth * 1e9),
        "exchange": sum(exchange.bytes for exchange in moved) / (device.link * 1e9),
    }
    return Plan(work, device, held, total, moved, seconds)


def described(plan: Plan[Any]) -> dict[str, Any]:
    """Everything of a plan but what would fit in its place."""
    return {
        "work": {**dataclasses.asdict(plan.work), "mesh": str(plan.work.mesh)},
        "device": plan.device._asdict(),
        "bytes_per_device": {**plan.bytes, "total": plan.total},
        "estimates": ["activations", "temporaries"],
        "flops": plan.flops,
        "exchanges": [exchange._asdict() for exchange in plan.exchanges],
        "seconds_at_least": {**plan.seconds, "step": plan.floor},
        "fits": plan.fits,
    }
