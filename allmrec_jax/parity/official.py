"""The user's own clone of the official repository as a reference: imported as it is, nothing of it changed.

What it cannot have here is stood in for from outside: packages that it imports and never calls, pretrained weights (the
case's small models of the same classes take their place), bitsandbytes' 8-bit loading, and ``torch.load``'s newer
default. The components concerned say so.

Works under transformers 4.32.1, which the clone pins, as well as under 5.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import pickle
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from allmrec_jax.errors import UserError
from allmrec_jax.parity import cases, conversion
from allmrec_jax.parity.reference import (
    NEW_TOKENS,
    Outputs,
    Prompts,
    Source,
    Stage2Answer,
    Steps,
    TorchReference,
    array,
    empty_prompts,
    fill,
    inputs,
    item_slot,
    user_slots,
)

FILES = {
    "sasrec": "pre_train/sasrec/model.py",
    "model": "models/a_llmrec_model.py",
    "llm": "models/llm4rec.py",
    "recsys": "models/recsys_model.py",
    "eval": "eval.py",
}

_NAMES = {
    "pre_train.sasrec.model": ("SASRec",),
    "models.a_llmrec_model": ("A_llmrec_model", "two_layer_mlp"),
    "models.llm4rec": ("llm4rec",),
    "pre_train.sasrec.utils": ("data_partition",),
    "eval": ("get_answers_predictions", "evaluate"),
}
"""Modules of the clone and what is used of them."""

SLOW = int(transformers.__version__.split(".")[0]) < 5
"""Whether this transformers has the slow tokenizer and the generation loop that the official code was written for."""

EIGHT_BIT = "8-bit weights of OPT-6.7B and half precision (bitsandbytes, CUDA): a small OPT in float32"
FAST_TOKENIZER = "the slow tokenizer of transformers 4: the fast one of transformers 5"
TRUST = "torch.load's default before PyTorch 2.6, which loads an argparse.Namespace: a permission for that class"
ENCODER = "nq-distilbert-base-v1's weights: a small DistilBERT of the same class"


class Official(TorchReference):
    """The clone at ``path``.

    Raises:
        UserError: it is not a clone of the official repository, or cannot be imported.
    """

    name = "official code"

    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__(steps)
        self.path = path
        for file in FILES.values():
            if not (path / file).is_file():
                raise UserError(f"{path} is not a clone of the official repository: it has no {file}")
        self.modules = import_clone(path)
        self.directory = tempfile.TemporaryDirectory(prefix="allmrec-parity-")
        self._write_files(Path(self.directory.name))

    def source(self, component: str) -> Source:
        """File, its SHA-256 and what was stood in."""
        file, stood_in = self._file(component)
        return Source(file, hashlib.sha256((self.path / file).read_bytes()).hexdigest(), stood_in)

    def _file(self, component: str) -> tuple[str, str]:
        if component.startswith("SASRec"):
            return FILES["sasrec"], ""
        if component == "Hit@1 of eval.py":
            return FILES["eval"], ""
        if component.startswith(("OPT", "Stage 2")):
            return FILES["llm"], EIGHT_BIT
        if component.startswith("Generation"):
            return FILES["model"], EIGHT_BIT
        if component == "Prompts":
            return FILES["model"], "" if SLOW else FAST_TOKENIZER
        if component == "Conversion":
            return FILES["model"], f"{EIGHT_BIT}; {ENCODER}; {TRUST}"
        if component == "Sentence encoder" or component.startswith("Stage 1"):
            return FILES["model"], ENCODER
        return FILES["model"], ""

    def rows(self) -> dict[str, Callable[[], Outputs]]:
        """Also prompts, both generations, and ``eval.py``."""
        return super().rows() | {
            "Prompts": self._prompts,
            "Generation": lambda: self._generation(official=False),
            "Generation, official settings": lambda: self._generation(official=True),
            "Hit@1 of eval.py": self._hits,
            "Conversion": self._conversion,
        }

    def outputs(self, component: str) -> Outputs:
        """Computed once; but not what holds a part of ours, which the self-test alters."""
        return self._conversion() if component == "Conversion" else super().outputs(component)

    def make_sasrec(self, dropout: float) -> Any:
        """The clone's ``SASRec``."""
        return self.modules["pre_train.sasrec.model"].SASRec(cases.ITEMS, cases.ITEMS, cf_arguments(dropout))

    def make_model(self, stage: int) -> Any:
        """The clone's ``A_llmrec_model``, which reads its data and CF checkpoint from files here."""
        with self._at_home():
            model = self.modules["models.a_llmrec_model"].A_llmrec_model(model_arguments(stage))
        if stage == 2:
            # As after load_model, which reads this from a checkpoint.
            model.mlp.requires_grad_(False)
        return model

    def stage1_losses(self, model: Any, batch: cases.Sequences, optimizer: Any) -> dict[str, float]:
        """The clone's ``pre_train_phase1``; its losses are read from the line that it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            model(list(batch), optimizer=optimizer, batch_iter=[1, 1, 0, 1], mode="phase1")
        values = [float(value) for value in re.findall(r": (-?[\d.]+(?:e-?\d+)?)", printed.getvalue())]
        return dict(zip(("total", "rec", "match", "item_recon", "text_recon"), values, strict=True))

    def stage2_answer(self, model: Any, step: int, optimizer: Any) -> Stage2Answer:
        """The clone's ``pre_train_phase2``, watched."""
        batch = cases.sequences(step, cases.PROMPTS)
        with _Watch(model) as seen, contextlib.redirect_stdout(io.StringIO()) as printed:
            _seed(step)
            model(list(batch), optimizer=optimizer, batch_iter=[1, 1, 0, 1], mode="phase2")
        loss = float(printed.getvalue().rsplit(": ", 1)[1])
        prompts = seen.prompts(batch.items)
        return Stage2Answer(loss, prompts, seen.user_tokens, seen.item_tokens, seen.logits, seen.positions)

    def _prompts(self) -> Outputs:
        answer = self.stage2_answer(self._model(2), 0, mock.Mock())
        prompts = answer.prompts
        real = np.arange(prompts.ids.shape[1])[None] < prompts.lengths[:, None]
        positions = np.zeros_like(prompts.ids)
        positions[:, : answer.positions.shape[1]] = answer.positions
        items = np.take_along_axis(prompts.items, prompts.slot_index, axis=1) * (prompts.slot == 2)
        return inputs(prompts) | {
            "input/strips": np.asarray(SLOW),
            "input/targets": cases.sequences(0, cases.PROMPTS).positives[:, -1],
            "exact/ids": prompts.ids,
            "exact/slots": prompts.slot,
            "exact/slot items": items,
            "exact/positions": positions * real,
            "exact/answer starts": prompts.target_start,
            "exact/lengths": prompts.lengths,
        }

    def _generation(self, *, official: bool) -> Outputs:
        """``generate`` of the clone on left-padded prompts; or with our settings on the same embeddings."""
        model, batch = self._model(2), cases.sequences(0, cases.PROMPTS)
        with _Watch(model) as seen, self._at_home(), contextlib.redirect_stdout(io.StringIO()):
            _seed(0)
            model([batch.users, batch.items, batch.positives[:, -1], batch.negatives, 0], mode="generate")
            (embeds, mask, tokens) = seen.generated
            if not official:
                with torch.no_grad():
                    tokens = model.llm.llm_model.generate(
                        inputs_embeds=embeds,
                        attention_mask=mask,
                        do_sample=False,
                        max_new_tokens=NEW_TOKENS,
                        pad_token_id=2,
                    )
        prompts = seen.prompts(batch.items)
        width, rows = embeds.shape[1], tokens.numpy()
        if SLOW:
            rows = rows[:, 1:]  # the beginning-of-text token that starts the history there
        return inputs(prompts) | {
            "input/penalizes end": np.asarray(SLOW),
            "input/new tokens": np.asarray(511 if SLOW else 512 - width),
            "exact/tokens": rows,
        }

    def _hits(self) -> Outputs:
        program, hits = self.modules["eval"], []
        for title, text in cases.OUTPUTS:
            file = Path(self.directory.name) / "output.txt"
            file.write_text(f'prompt\n\nAnswer: "{title}"\n\nLLM: {text}\n\n')
            with contextlib.redirect_stdout(io.StringIO()):
                answers, predictions = program.get_answers_predictions(str(file))
                hits.append(program.evaluate(answers, predictions, k=1)[1] > 0)
        return {"exact/hits": np.asarray(hits)}

    def _conversion(self) -> Outputs:
        """The clone's checkpoints of the case's weights, through our conversion both ways and loaded by the clone."""
        home, module = Path(self.directory.name), self.modules["models.a_llmrec_model"]
        conversion.write_official(home, [self._model(1), self._model(2)], model_arguments, self._at_home())
        args = model_arguments(1, inference=True)
        with (
            tempfile.TemporaryDirectory(prefix="allmrec-parity-") as work,
            self._at_home(conversion.through_ours(home, Path(work))),
        ):
            return conversion.loaded(module.A_llmrec_model(args), args, self.modules["pre_train.sasrec.utils"])

    def _write_files(self, home: Path) -> None:
        """The data and the CF checkpoint that ``A_llmrec_model`` opens."""
        titles, descriptions = cases.texts()
        data, checkpoint = home / "data" / "amazon", home / "pre_train" / "sasrec" / cases.DATA_NAME
        data.mkdir(parents=True)
        checkpoint.mkdir(parents=True)
        names = {"title": titles, "description": descriptions}
        (data / f"{cases.DATA_NAME}_text_name_dict.json.gz").write_bytes(pickle.dumps(names))
        module = fill(self.make_sasrec(0.0))
        torch.save([module.kwargs, module.state_dict()], checkpoint / "sasrec.pth")

    @contextlib.contextmanager
    def _at_home(self, home: Path | None = None) -> Iterator[None]:
        """In the directory of the files (or another one), with the stand-ins for weights."""
        module, llm = self.modules["models.a_llmrec_model"], self.modules["models.llm4rec"]
        before = os.getcwd()
        os.chdir(home or self.directory.name)
        try:
            with (
                mock.patch.object(module, "SentenceTransformer", lambda name: _sentence_transformer()),
                mock.patch.object(llm, "OPTForCausalLM", types.SimpleNamespace(from_pretrained=_opt)),
                mock.patch.object(llm, "AutoTokenizer", types.SimpleNamespace(from_pretrained=self._tokenizer)),
                _trusting_torch_load(),
            ):
                yield
        finally:
            os.chdir(before)

    def _tokenizer(self, name: str, **kwargs: Any) -> Any:
        """``opt-nano``'s byte-pair encoding as the tokenizer that the clone asks for: with OPT's special tokens."""
        import json

        vocabulary, merges = cases.tokenizer_parts()
        folder = Path(self.directory.name)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
        if SLOW:
            return transformers.GPT2Tokenizer(
                str(folder / "vocab.json"), str(folder / "merges.txt"), add_bos_token=True, **special
            )
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", 2)])
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def import_clone(path: Path, wanted: Mapping[str, tuple[str, ...]] = _NAMES) -> dict[str, Any]:
    """The modules of the clone that are ``wanted``, by name, each with what is used of it.

    Their names (``models``, ``utils``) are too general to stay importable: afterwards they are forgotten again.

    Raises:
        UserError: a module cannot be imported or lacks what is used of it.
    """
    roots = ("models", "pre_train", "utils", "eval")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in roots}
    stubs: dict[str, Any] = {}
    if importlib.util.find_spec("pytz") is None:
        # Imported for a name that nothing calls.
        stubs["pytz"] = types.ModuleType("pytz")
        stubs["pytz"].timezone = None
    if importlib.util.find_spec("sentence_transformers") is None:
        # In the environment of the recorded generation, which has no use for sentence encoders.
        stubs["sentence_transformers"] = types.ModuleType("sentence_transformers")
        stubs["sentence_transformers"].SentenceTransformer = None
    found = {}
    try:
        sys.modules.update(stubs)
        with mock.patch.object(sys, "path", [str(path), *sys.path]):
            importlib.invalidate_caches()
            for name, used in wanted.items():
                try:
                    found[name] = importlib.import_module(name)
                except Exception as error:  # whatever a stranger's module raises
                    raise UserError(f"{path}: {name} cannot be imported ({type(error).__name__}: {error})") from error
                for attribute in used:
                    if not hasattr(found[name], attribute):
                        raise UserError(f"{path}: {name} has no {attribute}: not the official repository")
    finally:
        for name in [name for name in sys.modules if name in stubs or name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(hidden)
    return found


def cf_arguments(dropout: float) -> argparse.Namespace:
    """What the clone's ``SASRec`` reads of its arguments."""
    return argparse.Namespace(
        device="cpu",
        hidden_units=cases.DIM,
        maxlen=cases.LENGTH,
        num_blocks=cases.BLOCKS,
        num_heads=cases.HEADS,
        dropout_rate=dropout,
    )


def model_arguments(stage: int, *, inference: bool = False) -> argparse.Namespace:
    """What the clone's ``A_llmrec_model`` reads of its arguments; with ``inference`` stage 2's parts too."""
    return argparse.Namespace(
        rec_pre_trained_data=cases.DATA_NAME,
        recsys="sasrec",
        device="cpu",
        llm="opt",
        maxlen=cases.LENGTH,
        pretrain_stage1=stage == 1,
        pretrain_stage2=stage == 2,
        inference=inference,
    )


class _Watch:
    """Records what passes through a model of the clone, by hooks and by wrapping bound methods."""

    def __init__(self, model: Any) -> None:
        self.model, self.llm = model, model.llm
        self.candidates: list[np.ndarray] = []
        self.item_tokens: list[torch.Tensor] = []
        self.user_tokens: Any = None
        self.ids: Any = None
        self.mask: Any = None
        self.answer_starts: list[int] | None = None
        self.logits: Any = None
        self.positions: Any = None
        self.generated: Any = None

    def __enter__(self) -> "_Watch":
        model, llm = self.model, self.llm
        self.patches = contextlib.ExitStack()
        for owner, name, wrapper in (
            (model, "make_candidate_text", self._candidates),
            (llm, "concat_text_input_output", self._joined),
            (llm, "replace_hist_candi_token", self._replaced),
            (llm.llm_model, "generate", self._generate),
        ):
            original = getattr(owner, name)
            self.patches.enter_context(
                mock.patch.object(owner, name, lambda *a, f=original, w=wrapper, **k: w(f, *a, **k))
            )
        hooks = [
            model.log_emb_proj.register_forward_hook(self._user),
            model.item_emb_proj.register_forward_hook(self._item),
            llm.llm_model.register_forward_hook(self._answered),
            llm.llm_model.model.decoder.embed_positions.register_forward_hook(self._positioned),
        ]
        for hook in hooks:
            self.patches.callback(hook.remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self.patches.close()

    def _candidates(self, original: Any, *args: Any) -> Any:
        text, ids = original(*args)
        self.candidates.append(ids)
        return text, ids

    def _joined(self, original: Any, *args: Any) -> Any:
        tokens, lengths = original(*args)
        self.answer_starts = [int(length) for length in lengths]
        return tokens, lengths

    def _replaced(self, original: Any, tokens: Any, *args: Any) -> Any:
        self.ids, self.mask = tokens["input_ids"].numpy().copy(), tokens["attention_mask"].numpy().copy()
        return original(tokens, *args)

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        self.generated = (kwargs["inputs_embeds"], kwargs["attention_mask"], found.clone())
        return found

    def _user(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.user_tokens = output
        if output.requires_grad:
            output.retain_grad()

    def _item(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.item_tokens.append(output)
        if output.requires_grad:
            output.retain_grad()

    def _answered(self, module: Any, args: Any, output: Any) -> None:
        self.logits = output.logits

    def _positioned(self, module: Any, args: Any, output: torch.Tensor) -> None:
        if self.positions is None:
            table = array(module.weight)
            rows = {row.tobytes(): index for index, row in enumerate(table)}
            self.positions = np.asarray([[rows[x.tobytes()] - 2 for x in row] for row in array(output)])

    def prompts(self, items: np.ndarray) -> Prompts:
        """What the language model read, right-padded and by slot."""
        prompts = empty_prompts(len(items))
        user_slots(prompts)
        history_id, candidate_id = (
            self.llm.llm_tokenizer.convert_tokens_to_ids(token) for token in ("[HistoryEmb]", "[CandidateEmb]")
        )
        for row, sequence in enumerate(items):
            history = sequence[sequence > 0][-cases.HISTORY :]
            prompts.items[row, cases.HISTORY - len(history) : cases.HISTORY] = history
            prompts.items[row, cases.HISTORY :] = self.candidates[row]
            ids = self.ids[row][self.mask[row] > 0]
            length = len(ids) + 1
            prompts.lengths[row] = length
            prompts.target_start[row] = length if self.answer_starts is None else self.answer_starts[row] + 1
            prompts.ids[row, 1:length] = np.where((ids == history_id) | (ids == candidate_id), 1, ids)
            for slot_id, first in ((history_id, cases.HISTORY - len(history)), (candidate_id, cases.HISTORY)):
                for index, column in enumerate(np.flatnonzero(ids == slot_id)):
                    item_slot(prompts, row, int(column) + 1, first + index)
        return prompts


def _seed(step: int) -> None:
    """The generators that the clone draws candidates from."""
    import random

    random.seed(step)
    np.random.seed(step)


def _sentence_transformer() -> Any:
    from allmrec_jax.parity.stock import sentence_transformer

    return sentence_transformer()


def _opt(name: str, **kwargs: Any) -> Any:
    """The case's OPT in place of the one that ``kwargs`` ask for in 8 bits."""
    return fill(transformers.OPTForCausalLM(transformers.OPTConfig(**cases.OPT))).eval()


@contextlib.contextmanager
def _trusting_torch_load() -> Iterator[None]:
    """``torch.load`` refuses an ``argparse.Namespace`` by default since version 2.6; the file is our own."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        yield
