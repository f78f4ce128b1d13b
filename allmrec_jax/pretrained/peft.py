"""LoRA adapters of a language model to and from the directory format of Hugging Face's PEFT."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from allmrec_jax.checking import checked
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import LMConfig
from allmrec_jax.models.llm.lora import Adapter
from allmrec_jax.pretrained.schemas import AdapterFile, read_object
from allmrec_jax.pretrained.weights import open_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False}


class LoRA(NamedTuple):
    """An adapter with what its files say about it.

    Attributes:
        adapter: the low-rank terms, see :mod:`allmrec_jax.models.llm.lora`.
        alpha: their scale times the rank.
    """

    adapter: Adapter
    alpha: float

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / next(iter(self.adapter.values()))["a"].shape[-1]


def save_adapter(path: Path | str, config: LMConfig, lora: LoRA, *, dropout: float, base_model: str) -> None:
    """Write the directory that ``peft.PeftModel.from_pretrained`` reads beside the model; replaced as a whole.

    Args:
        path: the directory.
        config: of the language model.
        lora: the adapter.
        dropout: of training, as a record.
        base_model: name or path of the language model, as a record.
    """
    from safetensors.numpy import save_file

    adapter, keys = lora.adapter, _keys(config)
    arrays = {
        keys[name].format(layer=layer, part=part.upper()): np.ascontiguousarray(np.asarray(matrix).T, np.float32)
        for name, low in adapter.items()
        for part in ("a", "b")
        for layer, matrix in enumerate(low[part])
    }
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": int(next(iter(adapter.values()))["a"].shape[-1]),
        "lora_alpha": lora.alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(adapter),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic_path(path) as directory:
        directory.mkdir()
        (directory / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        save_file(arrays, directory / WEIGHTS, metadata={"format": "pt"})


def _keys(config: LMConfig) -> dict[str, str]:
    """PEFT's keys of each projection that may be adapted, with ``{layer}`` and ``{part}`` in them."""
    family = family_of(config)
    stored = {leaf.path[1]: leaf.key for leaf in family.layout(config) if leaf.is_kernel}
    modules = {name: family.written(stored[name]).removesuffix(".weight") for name in family.adapts}
    return {name: f"base_model.model.{module}.lora_{{part}}.weight" for name, module in modules.items()}


def load_adapter(path: Path | str, config: LMConfig) -> LoRA:
    """An adapter that :func:`save_adapter` or PEFT wrote, for a language model of this configuration.

    Raises:
        UserError: a file is missing or damaged, the adapter is no plain LoRA of projections that the family adapts, or
            a weight is missing, unknown or of another shape, as those of another model are.
    """
    path = Path(path)
    keys = _keys(config)
    about = checked(path / CONFIG, read_object(path / CONFIG, AdapterFile), AdapterFile)
    for key, value in _PLAIN.items():
        if (found := getattr(about, key)) != value:
            raise UserError(f"{path / CONFIG}: {key} is {found!r}; only plain LoRA ({key} {value!r}) is supported")
    if unknown := sorted(set(about.target_modules) - set(keys)):
        raise UserError(f"{path / CONFIG}: target module {unknown[0]!r} is not supported; known: {', '.join(keys)}")
    rank, projections = about.r, family_of(config).projections(config)
    adapter: Adapter = {}
    arrays = {stored.key: stored for stored in open_file(path / WEIGHTS)}
    for name in sorted(set(about.target_modules)):
        adapter[name] = {}
        inputs, outputs = projections[name]
        for part, shape in (("a", (rank, inputs)), ("b", (outputs, rank))):
            matrices = []
            for layer in range(config.num_hidden_layers):
                key = keys[name].format(layer=layer, part=part.upper())
                if key not in arrays:
                    raise UserError(f"{path / WEIGHTS}: weight {key!r} is missing")
                matrix = arrays.pop(key)
                if matrix.shape != shape:
                    raise UserError(f"{path / WEIGHTS}: {key!r} has shape {matrix.shape}, expected {shape}")
                matrices.append(matrix.read(()).T)
            adapter[name][part] = jnp.asarray(np.stack(matrices), jnp.float32)
    if arrays:
        raise UserError(f"{path / WEIGHTS}: unknown weight {next(iter(arrays))!r}")
    return LoRA(adapter, about.lora_alpha)
