"""Models in the Hugging Face format: where a directory lies, and its weights one by one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from allmrec_jax.errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files that weights are read from: the first one that is there."""


def locate(name: str, what: str, patterns: Sequence[str]) -> Path:
    """The directory ``name``, or that of the model of this name on the hub, which is fetched.

    Args:
        name: of either.
        what: kind of model, for messages.
        patterns: files to fetch.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"{what} {name}: not a directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what} {name!r}: no such directory, and not fetched from the hub ({reason})") from None


def open_weights(path: Path) -> tuple[list[str], Callable[[str], np.ndarray], Path]:
    """Keys, a reader by key to float32, and the file, of ``model.safetensors`` or else ``pytorch_model.bin``.

    Raises:
        UserError: there is neither, or it is damaged or holds more than plain tensors.
    """
    safe, pickled = (path / name for name in WEIGHTS)
    if safe.exists():
        from safetensors import SafetensorError, safe_open

        try:
            # Through JAX's arrays, because NumPy has no bfloat16 of its own.
            handle = safe_open(safe, framework="flax")
        except SafetensorError as error:
            raise UserError(f"{safe}: damaged ({error})") from None
        return list(handle.keys()), lambda key: np.asarray(handle.get_tensor(key).astype(jnp.float32)), safe
    if not pickled.exists():
        raise UserError(f"{path}: neither {' nor '.join(WEIGHTS)}")
    import pickle

    import torch

    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{pickled}: not a checkpoint of plain tensors ({str(error).splitlines()[0]})") from None
    return list(state), lambda key: state[key].float().numpy(), pickled
