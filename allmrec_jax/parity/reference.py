"""The PyTorch side: what every reference computes, whoever's modules it is built from.

A reference answers a component with named arrays. The first part of a name says what the array is: ``input`` for what
the reference chose (prompts, candidates), else a kind of :mod:`allmrec_jax.parity.tolerances`. PyTorch is imported when
a reference is made; JAX is not needed.

Shapes: B batch, T time, S prompt length, P items of a prompt, E word width, V vocabulary, M new tokens.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from unittest import mock

import numpy as np
import torch

from allmrec_jax.parity import cases
from allmrec_jax.prompts import ITEM_SLOT, USER_SLOT

Outputs = dict[str, np.ndarray]

COMPONENTS = (
    "SASRec",
    "SASRec with dropout",
    "SASRec training",
    "Autoencoders",
    "Sentence encoder",
    "Sentence encoder, BERT",
    "Stage 1",
    "Stage 1 training",
    "Prompts",
    "Projectors",
    "OPT, right-padded",
    "OPT, left-padded",
    "OPT-350m's shape",
    "Stage 2",
    "Stage 2 training",
    "Generation",
    "Generation, official settings",
    "Hit@1 of eval.py",
    "Conversion",
)
"""In the order of the table."""

ONLY_A_CLONE = ("Conversion",)
"""Components that stock parts and recorded numbers cannot have."""

CF_RATE, STAGE1_RATE, STAGE2_RATE, BETA2 = 1e-3, 1e-3, 1e-3, 0.98
"""Adam's settings in the compared trainings. The stages' rates are ten times the published ones, so that 100 steps move
the parameters far enough for a wrong optimizer to show."""

NEW_TOKENS = 24
"""M of the generation with our own settings."""


class Steps(NamedTuple):
    """Lengths of the compared trainings."""

    cf: int = 200
    stage1: int = 100
    stage2: int = 100


class Source(NamedTuple):
    """Where a component of a reference comes from.

    Attributes:
        file: of the clone, or a library and its version.
        sha256: of that file; empty for a library.
        stood_in: what of the reference was replaced by something else, and why; empty where nothing was.
    """

    file: str
    sha256: str = ""
    stood_in: str = ""


class Reference(Protocol):
    """What the comparison asks of a reference."""

    name: str

    def components(self) -> Sequence[str]:
        """Those that it has, in the order of :data:`COMPONENTS`."""
        ...

    def source(self, component: str) -> Source:
        """Where one comes from."""
        ...

    def outputs(self, component: str) -> Outputs:
        """The named arrays of one; computed once."""
        ...

    def select(self, outputs: Outputs) -> Outputs:
        """Of our arrays, what the reference's are compared with."""
        ...


class Prompts(NamedTuple):
    """Prompts with answers as the reference made them; right-padded with 1, which also stands at slots.

    As in :class:`allmrec_jax.prompts.PromptBatch`; ``items`` holds history (left-padded with 0) and candidates.
    """

    ids: np.ndarray
    slot: np.ndarray
    slot_index: np.ndarray
    items: np.ndarray
    lengths: np.ndarray
    target_start: np.ndarray


def empty_prompts(rows: int) -> Prompts:
    """Prompts of no token, of the case's width."""
    size = (rows, cases.PROMPT_LENGTH)
    items = np.zeros((rows, cases.HISTORY + cases.CANDIDATES), np.int32)
    slot, slot_index = np.zeros(size, np.int32), np.zeros(size, np.int32)
    lengths, target_start = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    return Prompts(np.full(size, 1, np.int32), slot, slot_index, items, lengths, target_start)


def inputs(prompts: Prompts) -> Outputs:
    """As named arrays."""
    return {f"input/{name}": value for name, value in prompts._asdict().items()}


class Stage2Answer(NamedTuple):
    """What a step of stage 2 shows: the loss, the prompts, the soft tokens and the logits of all columns."""

    loss: float
    prompts: Prompts
    user_tokens: torch.Tensor
    item_tokens: list[torch.Tensor]
    """History and candidates of each row, in turn."""
    logits: torch.Tensor
    positions: np.ndarray


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


def kind(name: str, values: Outputs) -> Outputs:
    """``values`` under a first part of their names."""
    return {f"{name}/{key}": value for key, value in values.items()}


@contextlib.contextmanager
def fed_dropout(masks: dict[str, np.ndarray]) -> Iterator[None]:
    """Lets torch's dropout keep what ``masks`` say (:func:`allmrec_jax.parity.cases.dropout_masks`), in SASRec's order.

    Not a stand-in: the masks are drawn elsewhere, the arithmetic is dropout's own.
    """
    order = [masks["embedding"]]
    for block in range(cases.BLOCKS):
        order += [masks[name][block] for name in ("attention", "dropout1", "dropout2")]
    waiting = iter(order)

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        keep = torch.from_numpy(next(waiting))
        if keep.dim() == 4:
            keep = keep.reshape(x.shape)
        elif keep.shape != x.shape:
            keep = keep.transpose(1, 2)
        return torch.where(keep, x / (1 - p), torch.zeros(()))

    with mock.patch("torch.nn.functional.dropout", dropout):
        yield
    if next(waiting, None) is not None:
        raise RuntimeError("the reference drew fewer dropout masks than SASRec has dropouts")


class TorchReference(abc.ABC):
    """The components out of modules that a subclass makes.

    Args:
        steps: lengths of the trainings.
    """

    name: str

    def __init__(self, steps: Steps) -> None:
        torch.set_num_threads(1)  # the tensors are tiny
        self.steps = steps
        self._known: dict[str, Outputs] = {}

    @abc.abstractmethod
    def make_sasrec(self, dropout: float) -> Any:
        """SASRec with the official code's interface and parameter names, untrained."""

    @abc.abstractmethod
    def make_model(self, stage: int) -> Any:
        """A-LLMRec for a stage, with the official code's names of parts, untrained."""

    @abc.abstractmethod
    def stage1_losses(self, model: Any, batch: cases.Sequences, optimizer: Any) -> dict[str, float]:
        """One step of stage 1: ``total``, ``rec``, ``match``, ``item_recon``, ``text_recon``."""

    @abc.abstractmethod
    def stage2_answer(self, model: Any, step: int, optimizer: Any) -> Stage2Answer:
        """One step of stage 2 on the case's sequences of that step."""

    def rows(self) -> dict[str, Callable[[], Outputs]]:
        """How each component is computed; a subclass adds its own."""
        return {
            "SASRec": lambda: self._sasrec(),
            "SASRec with dropout": lambda: self._sasrec(cases.dropout_masks()),
            "SASRec training": self._sasrec_training,
            "Autoencoders": self._autoencoders,
            "Sentence encoder": self._sentence_encoder,
            "Stage 1": self._stage1,
            "Stage 1 training": self._stage1_training,
            "Projectors": self._projectors,
            "OPT, right-padded": lambda: self._opt(left=False),
            "OPT, left-padded": lambda: self._opt(left=True),
            "Stage 2": self._stage2,
            "Stage 2 training": self._stage2_training,
        }

    def components(self) -> list[str]:
        """Those that it has."""
        return [name for name in COMPONENTS if name in self.rows()]

    def outputs(self, component: str) -> Outputs:
        """The named arrays of one; computed once."""
        if component not in self._known:
            self._known[component] = self.rows()[component]()
        return self._known[component]

    def select(self, outputs: Outputs) -> Outputs:
        """All."""
        return outputs

    # What they all compute.

    def _sasrec_step(self, module: Any, batch: cases.Sequences) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of a batch, as the official training program computes it, and the logits."""
        positive, negative = module(*batch)
        real = np.where(batch.positives != 0)
        criterion = torch.nn.BCEWithLogitsLoss()
        loss = criterion(positive[real], torch.ones(len(real[0])))
        return loss + criterion(negative[real], torch.zeros(len(real[0]))), positive, negative

    def _sasrec(self, masks: dict[str, np.ndarray] | None = None) -> Outputs:
        module, batch = self.make_sasrec(0.0 if masks is None else cases.DROPOUT), cases.sequences()
        module = fill(module).eval() if masks is None else fill(module).train()
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda *args, i=i: seen.update({f"block {i}": args[2]}))
            for i, layer in enumerate(module.forward_layers)
        ]
        hooks.append(module.last_layernorm.register_forward_hook(lambda *args: seen.update({"hidden": args[2]})))
        with contextlib.nullcontext() if masks is None else fed_dropout(masks):
            loss, positive, negative = self._sasrec_step(module, batch)
        loss.backward()
        for hook in hooks:
            hook.remove()
        real = torch.from_numpy(batch.items != 0)[..., None]
        # The official code zeroes padding behind the block.
        hidden = {name: array(value if name == "hidden" else value * real) for name, value in seen.items()}
        hidden |= {"loss": array(loss), "positive logits": array(positive), "negative logits": array(negative)}
        hidden["user vectors"] = hidden["hidden"][:, -1]
        return kind("forward", hidden) | kind("gradient", parameters(module, gradient=True))

    def _sasrec_training(self) -> Outputs:
        module = fill(self.make_sasrec(0.0)).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=CF_RATE, betas=(0.9, BETA2))
        losses = []
        for step in range(self.steps.cf):
            optimizer.zero_grad()
            loss, _, _ = self._sasrec_step(module, cases.sequences(step))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return {"curve/loss": np.asarray(losses, np.float32)} | kind("final", parameters(module))

    def _model(self, stage: int) -> Any:
        """A-LLMRec with the case's weights, dropout off."""
        model = self.make_model(stage)
        fill(model.recsys.model)
        fill(model.mlp, "mlp.")
        if stage == 1:
            fill(model.mlp2, "mlp2.")
            fill(model.sbert, strip=encoder_prefix(model.sbert))
        else:
            fill(model.log_emb_proj, "log_emb_proj.")
            fill(model.item_emb_proj, "item_emb_proj.")
        return model.eval()

    def _stage1_parameters(self, model: Any, *, gradient: bool = False) -> Outputs:
        found = parameters(model.mlp, "mlp.", gradient=gradient) | parameters(model.mlp2, "mlp2.", gradient=gradient)
        prefix = encoder_prefix(model.sbert)
        encoder = parameters(model.sbert, gradient=gradient)
        return found | {"sbert." + name.removeprefix(prefix): value for name, value in encoder.items()}

    def _autoencoders(self) -> Outputs:
        model, rng = self._model(1), cases.random("autoencoders")
        outputs: Outputs = {}
        for name, mlp, width in (("item", model.mlp, cases.DIM), ("text", model.mlp2, cases.TEXT_ENCODER["dim"])):
            vectors = rng.standard_normal((cases.USERS, width)).astype(np.float32)
            latent, reconstruction = mlp(torch.from_numpy(vectors))
            outputs |= {f"input/{name}": vectors}
            outputs |= kind("forward", {f"{name} latent": array(latent), f"{name} output": array(reconstruction)})
        return outputs

    def _sentence_encoder(self) -> Outputs:
        model = self._model(1)
        titles, descriptions = cases.texts()
        batch = model.sbert.tokenize([f'"{titles[i]}, {descriptions[i]}"' for i in (1, 2, 3, 9)])
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            vectors = model.sbert(batch)["sentence_embedding"]
        return {"forward/vectors": array(vectors)}

    def _stage1(self) -> Outputs:
        model = self._model(1)
        losses = self.stage1_losses(model, cases.sequences(), NoStep(list(model.parameters())))
        forward = {name: np.asarray(value, np.float32) for name, value in losses.items()}
        return kind("forward", forward) | kind("gradient", self._stage1_parameters(model, gradient=True))

    def _stage1_training(self) -> Outputs:
        model = self._model(1)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=STAGE1_RATE, betas=(0.9, BETA2))
        losses = [
            self.stage1_losses(model, cases.sequences(step), optimizer)["total"] for step in range(self.steps.stage1)
        ]
        return {"curve/loss": np.asarray(losses, np.float32)} | kind("final", self._stage1_parameters(model))

    def _projectors(self) -> Outputs:
        model, rng = self._model(2), cases.random("projectors")
        outputs: Outputs = {}
        for name, module, width in (
            ("user", model.log_emb_proj, cases.DIM),
            ("item", model.item_emb_proj, cases.LATENT),
        ):
            vectors = rng.standard_normal((cases.USERS, width)).astype(np.float32)
            outputs |= {f"input/{name}": vectors, f"forward/{name}": array(module(torch.from_numpy(vectors)))}
        return outputs

    def _opt(self, *, left: bool) -> Outputs:
        return opt_outputs(self._model(2).llm.llm_model, left=left)

    def _stage2(self) -> Outputs:
        model = self._model(2)
        answer = self.stage2_answer(model, 0, NoStep(list(model.parameters())))
        outputs = inputs(answer.prompts)
        logits, spans = array(answer.logits), target_spans(answer.prompts)
        outputs["forward/loss"] = np.asarray(answer.loss, np.float32)
        outputs["forward/logits"] = np.concatenate([logits[b, first - 1 : last - 1] for b, first, last in spans])
        tokens = np.zeros((*answer.prompts.items.shape, logits_width(model)), np.float32)
        for row in range(len(tokens)):
            history, candidates = (array(x.grad) for x in answer.item_tokens[2 * row : 2 * row + 2])
            tokens[row, cases.HISTORY - len(history) : cases.HISTORY] = history
            tokens[row, cases.HISTORY :] = candidates
        outputs |= {"gradient/user tokens": array(answer.user_tokens.grad), "gradient/item tokens": tokens}
        return outputs | kind("gradient", self._projector_parameters(model, gradient=True))

    def _projector_parameters(self, model: Any, *, gradient: bool = False) -> Outputs:
        users = parameters(model.log_emb_proj, "log_emb_proj.", gradient=gradient)
        return users | parameters(model.item_emb_proj, "item_emb_proj.", gradient=gradient)

    def _stage2_training(self) -> Outputs:
        model = self._model(2)
        trained = [*model.log_emb_proj.parameters(), *model.item_emb_proj.parameters()]
        optimizer = torch.optim.Adam(trained, lr=STAGE2_RATE, betas=(0.9, BETA2))
        answers = [self.stage2_answer(model, step, optimizer) for step in range(self.steps.stage2)]
        stacked = Prompts(*(np.stack(values) for values in zip(*(answer.prompts for answer in answers), strict=True)))
        losses = np.asarray([answer.loss for answer in answers], np.float32)
        return inputs(stacked) | {"curve/loss": losses} | kind("final", self._projector_parameters(model))


def encoder_prefix(sbert: Any) -> str:
    """What sentence-transformers puts before Hugging Face's names: ``0.auto_model.``, since version 6 ``0.model.``."""
    first = next(iter(sbert.state_dict()))
    return first[: first.index("embeddings.")]


def logits_width(model: Any) -> int:
    """Width of a soft token."""
    return int(model.llm.llm_model.config.hidden_size)


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


def user_slots(prompts: Prompts) -> None:
    """Marks the first column of every row as the user's."""
    prompts.slot[:, 0] = USER_SLOT


def item_slot(prompts: Prompts, row: int, column: int, index: int) -> None:
    """Marks a column as that of the row's item ``index``."""
    prompts.slot[row, column], prompts.slot_index[row, column] = ITEM_SLOT, index
