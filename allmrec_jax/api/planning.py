"""What a step takes on a mesh of devices, before it is run."""

from typing import Any, Literal

from allmrec_jax.api.table import Table
from allmrec_jax.errors import UserError

GIB = 2**30


class Plan(Table[tuple[str, int]]):
    """Memory, work, exchange and least time of a step: the rows are kinds of memory on each device.

    Attributes:
        facts: all of it, as JSON.
    """

    def __init__(self, title: str, facts: dict[str, Any]):
        super().__init__(list(facts["bytes_per_device"].items()), title)
        self.facts = facts

    @property
    def fits(self) -> bool:
        """Whether each device has room for it."""
        return self.facts["fits"]

    def record(self, row: tuple[str, int]) -> dict[str, Any]:
        """A kind of memory."""
        kind, count = row
        if kind == "total":
            note = f"of {self.facts['device']['memory']:g}, {'fits' if self.fits else 'does not fit'}"
        else:
            note = "estimate" if kind in self.facts["estimates"] else "exact"
        return {"on each device": kind, "GiB": f"{count / GIB:.2f}", "": note}


def plan(
    llm: str = "facebook/opt-6.7b",
    *,
    mesh: str = "data=1",
    device: str = "a6000",
    batch: int = 4,
    length: int = 1024,
    train: bool = True,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    llm_weights: Literal["dtype", "int8"] = "dtype",
    remat: bool = False,
    new_tokens: int = 64,
) -> Plan:
    """Plans a stage-2 step, or ranking and generation, without weights or network.

    Args:
        llm: a published model's name, or a directory.
        mesh: axes ``data``, ``fsdp`` and ``tensor`` with their sizes.
        device: the kind of device; a wrong one lists them.
        batch: prompts in all.
        length: tokens of a prompt.
        train: a training step, or else ranking and generation.
        dtype: of the language model's weights and arithmetic.
        llm_weights: the layers' kernels in ``dtype``, or in int8.
        remat: recompute layers in the backward pass.
        new_tokens: generated at most.

    Raises:
        UserError: an unknown model or device, or a mesh that the model's heads do not divide over.

    Example:
        >>> ar.plan("facebook/opt-6.7b", mesh="tensor=4", device="a6000").fits
    """
    from allmrec_jax.planning import stage2
    from allmrec_jax.planning.preflight import read_config
    from allmrec_jax.sharding import check_heads, parse_mesh

    shape = parse_mesh(mesh)
    config, int8 = read_config(llm), llm_weights == "int8"
    known = _device(device)
    check_heads(shape, config, llm)
    work = stage2.Work(config, shape, batch, length, train, dtype, remat, new_tokens=new_tokens, int8=int8)
    what = "stage-2 training step" if train else "ranking and generation"
    types = f"{dtype}, kernels int8" if int8 else dtype
    title = f"{llm}, {what}, mesh {shape} of {device}, {batch} prompts of {length} tokens, {types}"
    return Plan(title, stage2.as_json(stage2.make_plan(work, known)))


def plan_stage1(
    *,
    mesh: str = "data=1",
    device: str = "a6000",
    batch: int = 32,
    length: int = 128,
    dtype: Literal["bfloat16", "float32"] = "float32",
    samples: int = 100_000,
    epochs: int = 10,
) -> Plan:
    """Plans a step and a run of stage 1 with nq-distilbert-base-v1.

    Args:
        mesh: see :func:`plan`.
        device: the kind of device.
        batch: samples in all.
        length: tokens of a text.
        dtype: of the encoder's arithmetic.
        samples: of an epoch.
        epochs: of the run.
    """
    from allmrec_jax.models.text_encoder import TextEncoderConfig
    from allmrec_jax.planning import stage1
    from allmrec_jax.sharding import parse_mesh

    shape = parse_mesh(mesh)
    work = stage1.Stage1Work(TextEncoderConfig(), shape, batch, length, dtype, samples, epochs)
    title = f"stage-1 training step, mesh {shape} of {device}, {batch} samples, texts of {length} tokens, {dtype}"
    return Plan(title, stage1.as_json(stage1.make_plan(work, _device(device))))


def _device(name: str) -> Any:
    from allmrec_jax.planning.devices import DEVICES

    if name not in DEVICES:
        raise UserError(f"--device {name}: unknown; known: {', '.join(DEVICES)}")
    return DEVICES[name]
