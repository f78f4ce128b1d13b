"""What every reference in PyTorch needs: weights by name, parameters as arrays, dropout that keeps what it is told.

Shapes: B batch, T time, D model, H heads.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from allmrec_jax.parity import cases
from allmrec_jax.parity.reference import Outputs, Prompts, RefusedError, kind


class NoStep:
    """In an optimizer's place: leaves parameters alone and gradients to be read."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters

    def zero_grad(self) -> None:
        """Forgets earlier gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Nothing."""


def fill(module: torch.nn.Module, prefix: str = "", strip: str = "") -> Any:
    """Gives every parameter the case's weight of its name, less ``strip`` and after ``prefix``."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = cases.weight(prefix + name.removeprefix(strip), tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(value))
    return module


def array(tensor: torch.Tensor) -> np.ndarray:
    """A copy as float32."""
    return tensor.detach().float().numpy().copy()


def parameters(module: torch.nn.Module, prefix: str = "", *, gradient: bool = False) -> Outputs:
    """The trained parameters, or their gradients, by name; ``prefix`` takes the place of the module's own name."""
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found[prefix + name] = array(parameter.grad if gradient else parameter)
    return found


def load(module: torch.nn.Module, values: Outputs, prefix: str = "") -> Any:
    """Gives every parameter the value of its name in ``values``, where it stands behind ``prefix``."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.tensor(values[prefix + name]))
    return module


@contextlib.contextmanager
def fed_dropout(masks: Sequence[np.ndarray]) -> Iterator[None]:
    """Lets torch's dropout keep what ``masks`` say, in the order in which the modules run.

    Not a stand-in: the masks are drawn elsewhere, the arithmetic is dropout's own.

    Raises:
        RefusedError: there are more masks than dropouts, or fewer, or one is of another shape.
    """
    waiting = iter(masks)

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        keep = next(waiting, None)
        if keep is None:
            raise RefusedError("the reference has more dropouts than the product drew masks for")
        return torch.where(torch.from_numpy(fitted(keep, tuple(x.shape))), x / (1 - p), torch.zeros(()))

    with mock.patch("torch.nn.functional.dropout", dropout):
        yield
    if next(waiting, None) is not None:
        raise RefusedError("the reference has fewer dropouts than the product drew masks for")


def fitted(keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask in the shape that torch has: heads in the batch, time last in a convolution, fewer columns of padding."""
    if keep.ndim == 4 and len(shape) == 3:
        keep = keep.reshape(-1, *keep.shape[2:])
    if keep.shape == shape:
        return keep
    if keep.ndim == 3 and keep.transpose(0, 2, 1).shape == shape:
        return keep.transpose(0, 2, 1)
    if keep.ndim != len(shape) or any(have < need for have, need in zip(keep.shape, shape, strict=True)):
        raise RefusedError(f"a mask of shape {keep.shape} for a tensor of shape {shape}")
    return keep[tuple(slice(size) for size in shape)]


def encoder_prefix(sbert: Any) -> str:
    """What sentence-transformers puts before Hugging Face's names: ``0.auto_model.``, since version 6 ``0.model.``."""
    first = next(iter(sbert.state_dict()))
    return first[: first.index("embeddings.")]


def target_spans(prompts: Prompts) -> list[tuple[int, int, int]]:
    """Row, first and last-but-one column of each answer."""
    return [
        (row, int(first), int(last))
        for row, (first, last) in enumerate(zip(prompts.target_start, prompts.lengths, strict=True))
    ]


def opt_outputs(llm: Any, *, left: bool) -> Outputs:
    """Hidden states after every layer and logits, for a padded batch of ids, at real tokens; zero at padding."""
    lengths, width = np.asarray([9, 21, 14]), 21
    real = np.arange(width)[None] < lengths[:, None]
    real = real[:, ::-1].copy() if left else real
    ids = np.where(real, cases.random("opt").randint(5, 4000, real.shape), 1)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    layers = llm.model.decoder.layers
    hooks = [layer.register_forward_hook(keep(f"layer {i}")) for i, layer in enumerate(layers)]
    with torch.no_grad():
        embeds = llm.get_input_embeddings()(torch.from_numpy(ids))
        mask = torch.from_numpy(real.astype(np.int64))
        seen["logits"] = llm(inputs_embeds=embeds, attention_mask=mask).logits
    for hook in hooks:
        hook.remove()
    outputs = {name: array(value) * real[..., None] for name, value in seen.items()}
    return {"input/ids": ids.astype(np.int32), "input/real": real} | kind("forward", outputs)
