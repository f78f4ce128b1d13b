"""A mesh for a language model, chosen from its configuration alone before anything is loaded."""

import jax

from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import published
from allmrec_jax.models.llm.family import LMConfig
from allmrec_jax.models.llm.room import GIB, device_memory, make_room, weight_bytes
from allmrec_jax.pretrained.llm import load_config
from allmrec_jax.sharding import MeshShape


def choose_mesh(llm: str | None) -> MeshShape:
    """A mesh of all devices there are: ``tensor`` only as far as the language model needs it to fit, the rest ``data``.

    Raises:
        UserError: it fits on no such mesh.
    """
    devices = jax.device_count()
    if llm is None:
        return MeshShape(data=devices)
    config = read_config(llm)
    limit = device_memory()
    for tensor in (count for count in range(1, devices + 1) if devices % count == 0):
        mesh = MeshShape(data=devices // tensor, tensor=tensor)
        if config.num_attention_heads % tensor == 0 and (
            limit is None or make_room(weight_bytes(config, mesh, 2)) <= limit
        ):
            return mesh
    raise UserError(
        f"{llm} has {weight_bytes(config, MeshShape(), 2) / GIB:.1f} GiB of weights; {devices} devices of "
        f"{(limit or 0) / GIB:.0f} GiB do not hold them: use more devices"
    )


def read_config(name_or_path: str) -> LMConfig:
    """The configuration of a language model: a published one's by its name, without network, or a directory's."""
    return published().get(name_or_path) or load_config(name_or_path)
