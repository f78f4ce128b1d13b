"""Weights go from the disk to their shards: no process reads what it does not hold, none holds a file in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm
from safetensors.numpy import load_file, save_file

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_text
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.pretrained import weights as weight_files
from allmrec_jax.pretrained.llm import load_checkpoint, save_checkpoint
from allmrec_jax.pretrained.weights import Stored
from allmrec_jax.sharding import MeshShape, use_mesh

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "ffn_dim": 1024, "word_embed_proj_dim": 256}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory with six layers in three files, about 6.3 MB each, and its parameters."""
    config: OPTConfig = tiny_llm.config(**SIZES, num_hidden_layers=6)
    params = init_params(config, jax.random.key(0))
    path = tmp_path_factory.mktemp("llm") / "llm"
    save_checkpoint(path, config, params, tiny_llm.tokenizer())
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    layer = {key: int(key.split(".")[3]) if ".layers." in key else 0 for key in weights}
    index = {key: f"model-{1 + layer[key] // 2:05}-of-00003.safetensors" for key in weights}
    for name in set(index.values()):
        save_file({key: weights[key] for key in weights if index[key] == name}, path / name)
    write_text(path / "model.safetensors.index.json", json.dumps({"weight_map": index}))
    return path, params


@pytest.mark.parametrize("mesh", [None, MeshShape(tensor=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_shard_holds_its_slice(checkpoint: tuple[Path, Any], mesh: MeshShape | None) -> None:
    path, params = checkpoint
    with use_mesh(mesh):
        _, found = load_checkpoint(path)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(wanted)[shard.index])
    kernel = found["layers"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes * (1 if mesh is None else mesh.fsdp * mesh.tensor) == kernel.nbytes


def test_reads_each_slice_once(checkpoint: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kernel split eight ways, an eighth is read for each device; of a copy on each device, it is read once."""
    path, params = checkpoint
    sizes: list[int] = []
    plain = weight_files._open_safetensors

    def counting(file: Path) -> list[Stored]:
        def counted(stored: Stored) -> Stored:
            def read(index: tuple[slice, ...]) -> np.ndarray:
                array = stored.read(index)
                sizes.append(array.size)
                return array

            return stored._replace(read=read)

        return [counted(stored) for stored in plain(file)]

    monkeypatch.setattr(weight_files, "_open_safetensors", counting)
    with use_mesh(MeshShape(fsdp=4, tensor=2)):
        load_checkpoint(path)
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert max(sizes) == 514 * 256 // 4  # of the positions, which only fsdp splits


def test_host_memory(checkpoint: tuple[Path, Any]) -> None:
    """What the host allocates beside the devices' own memory stays far below one of the files.

    The files are memory-mapped, and on the CPU the devices' memory is JAX's own: neither is counted by tracemalloc.
    """
    path, _ = checkpoint
    with use_mesh(MeshShape(tensor=4)):
        load_checkpoint(path, jnp.bfloat16)  # compiled
        tracemalloc.start()
        try:
            load_checkpoint(path, jnp.bfloat16)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    shard_file = min(file.stat().st_size for file in path.glob("*.safetensors"))
    assert shard_file > 6e6
    assert peak < shard_file / 4


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    """A directory without weights."""
    write_text(tmp_path / "config.json", json.dumps(tiny_llm.config(num_attention_heads=2).to_dict()))
    return tmp_path


def test_heads_are_checked_before_any_weight(config_alone: Path) -> None:
    message = r"the 2 attention heads of .*: --mesh data=2,tensor=2"
    with use_mesh(MeshShape(tensor=4)), pytest.raises(UserError, match=message):
        load_checkpoint(config_alone)


def test_room_is_checked_before_any_weight(config_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allmrec_jax.models.llm.room.device_memory", lambda: 70_000)
    with pytest.raises(UserError, match=r"GiB of weights on each device of mesh data=1, which has .*no mesh is wide"):
        load_checkpoint(config_alone)
    monkeypatch.setattr("allmrec_jax.models.llm.room.make_room", lambda weights: weights)
    with pytest.raises(UserError, match=r"nearest: --mesh tensor=2$"):
        load_checkpoint(config_alone)
