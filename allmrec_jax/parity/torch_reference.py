"""The PyTorch side: what every reference computes, whoever's modules it is built from.

PyTorch is imported with this module; JAX is not needed.

Shapes: B batch, T time, P items of a prompt, E word width.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from allmrec_jax.parity import cases
from allmrec_jax.parity.reference import (
    BETA2,
    CF_RATE,
    COMPONENTS,
    DRAWN,
    STAGE1_RATE,
    STAGE2_RATE,
    Drawn,
    DrawnStep,
    Outputs,
    Prompts,
    batches,
    inputs,
    kind,
)
from allmrec_jax.parity.torch_parts import (
    NoStep,
    array,
    encoder_prefix,
    fed_dropout,
    fill,
    load,
    opt_outputs,
    parameters,
    target_spans,
)


class Stage2Answer(NamedTuple):
    """What a step of stage 2 shows: the loss, the prompts, the soft tokens and the logits of all columns."""

    loss: float
    prompts: Prompts
    user_tokens: torch.Tensor
    item_tokens: list[torch.Tensor]
    """History and candidates of each row, in turn."""
    logits: torch.Tensor
    positions: np.ndarray


class TorchReference(abc.ABC):
    """The components out of modules that a subclass makes."""

    name: str

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the tensors are tiny
        self._known: dict[str, Outputs] = {}

    @abc.abstractmethod
    def make_sasrec(self, dropout: float) -> Any:
        """SASRec with the official code's interface and parameter names, untrained."""

    @abc.abstractmethod
    def make_model(self, stage: int, *, dropout: bool = False) -> Any:
        """A-LLMRec for a stage, with the official code's names of parts, untrained; SASRec has its dropout, the
        sentence encoder where it is asked for."""

    @abc.abstractmethod
    def cf_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The batch of SASRec's training for these users, from the reference's own reading of the data.

        Raises:
            RefusedError: a negative may not be drawn.
        """

    @abc.abstractmethod
    def stage_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The batch of the stages for these users; ``negatives`` [B] are those of the last position, 0 for any."""

    @abc.abstractmethod
    def learnable(self) -> np.ndarray:
        """The users, from 1, that have a training item and one before it."""

    @abc.abstractmethod
    def stage1_losses(self, model: Any, batch: cases.Sequences, optimizer: Any) -> dict[str, float]:
        """One step of stage 1: ``total``, ``rec``, ``match``, ``item_recon``, ``text_recon``."""

    @abc.abstractmethod
    def stage2_answer(
        self, model: Any, batch: cases.Sequences, optimizer: Any, drawn: DrawnStep | None = None
    ) -> Stage2Answer:
        """One step of stage 2, with candidates of its own or those drawn."""

    def rows(self) -> dict[str, Callable[[], Outputs]]:
        """How each component is computed; a subclass adds its own."""
        return {
            "SASRec": lambda: self._sasrec(),
            "Autoencoders": self._autoencoders,
            "Sentence encoder": self._sentence_encoder,
            "Stage 1": self._stage1,
            "Projectors": self._projectors,
            "OPT, right-padded": lambda: self._opt(left=False),
            "OPT, left-padded": lambda: self._opt(left=True),
            "Stage 2": self._stage2,
        }

    def components(self) -> list[str]:
        """Those that it has."""
        return [name for name in COMPONENTS if name in self.rows() or name in DRAWN]

    def outputs(self, component: str) -> Outputs:
        """The named arrays of one; computed once."""
        if component not in self._known:
            self._known[component] = self.rows()[component]()
        return self._known[component]

    def replay(self, component: str, drawn: Drawn) -> Outputs:
        """The named arrays of a component in which the product draws."""
        if component == "SASRec with dropout":
            return self._sasrec(drawn.steps[0].masks)
        if component.startswith("SASRec"):
            return self._train_sasrec(drawn)
        return self._train_stage1(drawn) if component.startswith("Stage 1") else self._train_stage2(drawn)

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

    def _sasrec(self, masks: Sequence[np.ndarray] | None = None) -> Outputs:
        module, batch = self.make_sasrec(cases.DROPOUT), cases.sequences()
        module = fill(module).eval() if masks is None else fill(module).train()
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda *args, i=i: seen.update({f"block {i}": args[2]}))
            for i, layer in enumerate(module.forward_layers)
        ]
        hooks.append(module.last_layernorm.register_forward_hook(lambda *args: seen.update({"hidden": args[2]})))
        with fed_dropout(masks or ()):
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

    def _train_sasrec(self, drawn: Drawn) -> Outputs:
        module = load(self.make_sasrec(cases.DROPOUT), drawn.start).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=CF_RATE, betas=(0.9, BETA2))
        losses, made = [], []
        for step in drawn.steps:
            batch = self.cf_batch(step.users, step.negatives)
            optimizer.zero_grad()
            with fed_dropout(step.masks):
                loss, _, _ = self._sasrec_step(module, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            made.append(tuple(batch))
        return self._trained(drawn, losses, made) | self._users() | kind("final", parameters(module))

    def _trained(self, drawn: Drawn, losses: list[float], made: Sequence[tuple[np.ndarray, ...]]) -> Outputs:
        """What all trainings are compared in beside their parameters."""
        means = np.asarray(losses, np.float32).reshape(-1, drawn.means).mean(axis=1)
        return {"curve/loss": means, "exact/repeats": np.zeros(4, np.int32)} | batches(made)

    def _users(self) -> Outputs:
        return {"exact/users drawn": self.learnable().astype(np.int32)}

    def _model(self, stage: int, *, dropout: bool = False) -> Any:
        """A-LLMRec with the case's weights, dropout off but where training turns it on."""
        model = self.make_model(stage, dropout=dropout)
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

    def _train_stage1(self, drawn: Drawn) -> Outputs:
        model = self._model(1, dropout=True).train()
        load(model.mlp, drawn.start, "mlp.")
        load(model.mlp2, drawn.start, "mlp2.")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=STAGE1_RATE, betas=(0.9, BETA2))
        losses, made = [], []
        for step in drawn.steps:
            batch = self.stage_batch(step.users, step.negatives)
            with fed_dropout([*step.masks, *step.text_masks]):
                losses.append(self.stage1_losses(model, batch, optimizer)["total"])
            made.append((batch.users, batch.items, batch.positives[:, -1], batch.negatives[:, -1]))
        return self._trained(drawn, losses, made) | self._users() | kind("final", self._stage1_parameters(model))

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
        batch = cases.sequences(0, cases.PROMPTS)
        answer = self.stage2_answer(model, batch, NoStep(list(model.parameters())))
        outputs = inputs(answer.prompts)
        logits, spans = array(answer.logits), target_spans(answer.prompts)
        outputs["forward/loss"] = np.asarray(answer.loss, np.float32)
        outputs["forward/logits"] = np.concatenate([logits[b, first - 1 : last - 1] for b, first, last in spans])
        tokens = np.zeros((*answer.prompts.items.shape, cases.OPT["hidden_size"]), np.float32)
        for row in range(len(tokens)):
            history, candidates = (array(x.grad) for x in answer.item_tokens[2 * row : 2 * row + 2])
            tokens[row, cases.HISTORY - len(history) : cases.HISTORY] = history
            tokens[row, cases.HISTORY :] = candidates
        outputs |= {"gradient/user tokens": array(answer.user_tokens.grad), "gradient/item tokens": tokens}
        return outputs | kind("gradient", self._projector_parameters(model, gradient=True))

    def _projector_parameters(self, model: Any, *, gradient: bool = False) -> Outputs:
        users = parameters(model.log_emb_proj, "log_emb_proj.", gradient=gradient)
        return users | parameters(model.item_emb_proj, "item_emb_proj.", gradient=gradient)

    def _train_stage2(self, drawn: Drawn) -> Outputs:
        model = self._model(2).train()
        model.llm.eval()
        load(model.log_emb_proj, drawn.start, "log_emb_proj.")
        load(model.item_emb_proj, drawn.start, "item_emb_proj.")
        trained = [*model.log_emb_proj.parameters(), *model.item_emb_proj.parameters()]
        optimizer = torch.optim.Adam(trained, lr=STAGE2_RATE, betas=(0.9, BETA2))
        losses, made, read = [], [], []
        for step in drawn.steps:
            batch = self.stage_batch(step.users, np.zeros(len(step.users), np.int32))
            with fed_dropout(step.masks):
                answer = self.stage2_answer(model, batch, optimizer, step)
            losses.append(answer.loss)
            read.append(answer.prompts)
            made.append((batch.users, batch.items, batch.positives[:, -1], step.negatives))
        fields = zip(Prompts._fields, zip(*read, strict=True), strict=True)
        told = {f"exact/prompt {name}": np.concatenate(values) for name, values in fields}
        return self._trained(drawn, losses, made) | told | kind("final", self._projector_parameters(model))
