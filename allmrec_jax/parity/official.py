"""The user's own clone of the official repository as a reference: imported as it is, nothing of it changed.

What it cannot have here is stood in for from outside: packages that it imports and never calls, pretrained weights (the
case's small models of the same classes take their place), bitsandbytes' 8-bit loading, and ``torch.load``'s newer
default. The components concerned say so.

Works under transformers 4.32.1, which the clone pins, as well as under 5.
"""

import argparse
import contextlib
import hashlib
import io
import os
import re
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from allmrec_jax.errors import UserError
from allmrec_jax.parity import cases, conversion, official_defaults
from allmrec_jax.parity import official_draws as draws
from allmrec_jax.parity.directories import sasrec_arguments, write_official
from allmrec_jax.parity.official_clone import import_clone
from allmrec_jax.parity.official_watch import Watch
from allmrec_jax.parity.reference import NEW_TOKENS, DrawnStep, Outputs, Source, inputs
from allmrec_jax.parity.torch_parts import fill
from allmrec_jax.parity.torch_reference import Stage2Answer, TorchReference

FILES = {
    "sasrec": "pre_train/sasrec/model.py",
    "model": "models/a_llmrec_model.py",
    "llm": "models/llm4rec.py",
    "recsys": "models/recsys_model.py",
    "eval": "eval.py",
    "pretraining": "pre_train/sasrec/main.py",
    "training": "train_model.py",
    "arguments": "main.py",
}

_NAMES = {
    "pre_train.sasrec.model": ("SASRec",),
    "models.a_llmrec_model": ("A_llmrec_model", "two_layer_mlp"),
    "models.llm4rec": ("llm4rec",),
    "pre_train.sasrec.utils": ("data_partition", "SeqDataset", "sample_function"),
    "eval": ("get_answers_predictions", "evaluate"),
}
"""Modules of the clone and what is used of them."""

SLOW = int(transformers.__version__.split(".")[0]) < 5
"""Whether this transformers has the slow tokenizer and the generation loop that the official code was written for."""

EIGHT_BIT = "8-bit weights of OPT-6.7B and half precision (bitsandbytes, CUDA): a small OPT in float32"
TOKENIZER = "OPT's vocabulary: the 4,096 tokens of opt-nano's byte-pair encoding"
FAST_TOKENIZER = "the slow tokenizer of transformers 4: the fast one of transformers 5"
TRUST = "torch.load's default before PyTorch 2.6, which loads an argparse.Namespace: a permission for that class"
ENCODER = "nq-distilbert-base-v1's weights and words: a small DistilBERT of the same class, letters as words"


class Official(TorchReference):
    """The clone at ``path``.

    Raises:
        UserError: it is not a clone of the official repository, or cannot be imported.
    """

    name = "official code"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        for file in FILES.values():
            if not (path / file).is_file():
                raise UserError(f"{path} is not a clone of the official repository: it has no {file}")
        self.modules = import_clone(path, _NAMES)
        self.directory = tempfile.TemporaryDirectory(prefix="allmrec-parity-")
        home = Path(self.directory.name)
        write_official(home)
        utils = self.modules["pre_train.sasrec.utils"]
        data = home / "data" / "amazon" / f"{cases.DATA_NAME}.txt"
        self._training, _, _, self._users_there, self._items_there = utils.data_partition(cases.DATA_NAME, str(data))
        with contextlib.redirect_stdout(io.StringIO()):
            self._stage_data = utils.SeqDataset(self._training, self._users_there, self._items_there, cases.LENGTH)

    def source(self, component: str) -> Source:
        """File, its SHA-256 and what was stood in."""
        file, stood_in = self._file(component)
        return Source(file, hashlib.sha256((self.path / file).read_bytes()).hexdigest(), stood_in)

    def _file(self, component: str) -> tuple[str, str]:
        tokenizer = TOKENIZER if SLOW else f"{TOKENIZER}; {FAST_TOKENIZER}"
        if component == "Presets":
            return FILES["arguments"], ""
        if component.startswith("SASRec"):
            return FILES["sasrec"], ""
        if component == "Hit@1 of eval.py":
            return FILES["eval"], ""
        if component.startswith("OPT"):
            return FILES["llm"], EIGHT_BIT
        if component.startswith("Stage 2"):
            return FILES["llm"], f"{EIGHT_BIT}; {tokenizer}"
        if component.startswith("Generation"):
            return FILES["model"], f"{EIGHT_BIT}; {tokenizer}"
        if component == "Prompts":
            return FILES["model"], tokenizer
        if component == "Conversion":
            return FILES["model"], f"{EIGHT_BIT}; {ENCODER}; {TRUST}"
        if component == "Sentence encoder" or component.startswith("Stage 1"):
            return FILES["model"], ENCODER
        return FILES["model"], ""

    def rows(self) -> dict[str, Callable[[], Outputs]]:
        """Also presets, prompts, both generations, and ``eval.py``."""
        return super().rows() | {
            "Presets": lambda: official_defaults.read(self.path, FILES),
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
        return self.modules["pre_train.sasrec.model"].SASRec(cases.ITEMS, cases.ITEMS, sasrec_arguments(dropout))

    def make_model(self, stage: int, *, dropout: bool = False) -> Any:
        """The clone's ``A_llmrec_model``, which reads its data and CF checkpoint from files here."""
        with self._at_home(dropout=dropout):
            model = self.modules["models.a_llmrec_model"].A_llmrec_model(model_arguments(stage))
        if stage == 2:
            # As after load_model, which reads this from a checkpoint.
            model.mlp.requires_grad_(False)
        return model

    def cf_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The clone's ``sample_function``, its users and negatives drawn by us."""
        return draws.sampled(
            self.modules["pre_train.sasrec.utils"].sample_function,
            (self._training, self._users_there, self._items_there, len(users), cases.LENGTH),
            users,
            negatives,
        )

    def stage_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The clone's ``SeqDataset``, the last position's negatives drawn by us."""
        return draws.listed(self._stage_data, users, negatives)

    def learnable(self) -> np.ndarray:
        """Users with two training items."""
        return np.sort([user for user, items in self._training.items() if len(items) > 1])

    def stage1_losses(self, model: Any, batch: cases.Sequences, optimizer: Any) -> dict[str, float]:
        """The clone's ``pre_train_phase1``; its losses are read from the line that it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            model(list(batch), optimizer=optimizer, batch_iter=[1, 1, 0, 1], mode="phase1")
        values = [float(value) for value in re.findall(r": (-?[\d.]+(?:e-?\d+)?)", printed.getvalue())]
        return dict(zip(("total", "rec", "match", "item_recon", "text_recon"), values, strict=True))

    def stage2_answer(
        self, model: Any, batch: cases.Sequences, optimizer: Any, drawn: DrawnStep | None = None
    ) -> Stage2Answer:
        """The clone's ``pre_train_phase2``, watched, on seeded candidates or on those drawn."""
        drawing = draws.seeded(0) if drawn is None else draws.candidates(batch, drawn.candidates, self._items_there)
        with (
            Watch(model, quote_asked=drawn is not None) as seen,
            contextlib.redirect_stdout(io.StringIO()) as printed,
            drawing,
        ):
            model(list(batch), optimizer=optimizer, batch_iter=[1, 1, 0, 1], mode="phase2")
        loss = float(printed.getvalue().rsplit(": ", 1)[1])
        prompts = seen.prompts(batch.items)
        return Stage2Answer(loss, prompts, seen.user_tokens, seen.item_tokens, seen.logits, seen.positions)

    def _prompts(self) -> Outputs:
        answer = self.stage2_answer(self._model(2), cases.sequences(0, cases.PROMPTS), mock.Mock())
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
        with Watch(model) as seen, self._at_home(), contextlib.redirect_stdout(io.StringIO()), draws.seeded(0):
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
        conversion.save_stages([self._model(1), self._model(2)], model_arguments, self._at_home())
        args = model_arguments(1, inference=True)
        with (
            tempfile.TemporaryDirectory(prefix="allmrec-parity-") as work,
            self._at_home(conversion.through_ours(home, Path(work))),
        ):
            return conversion.loaded(module.A_llmrec_model(args), args, self.modules["pre_train.sasrec.utils"])

    @contextlib.contextmanager
    def _at_home(self, home: Path | None = None, *, dropout: bool = False) -> Iterator[None]:
        """In the directory of the files (or another one), with the stand-ins for weights."""
        module, llm = self.modules["models.a_llmrec_model"], self.modules["models.llm4rec"]
        before = os.getcwd()
        os.chdir(home or self.directory.name)
        try:
            with (
                mock.patch.object(module, "SentenceTransformer", lambda name: _sentence_transformer(dropout)),
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


def _sentence_transformer(dropout: bool) -> Any:
    from allmrec_jax.parity.stock import sentence_transformer

    return sentence_transformer(dropout=dropout)


def _opt(name: str, **kwargs: Any) -> Any:
    """The case's OPT in place of the one that ``kwargs`` ask for in 8 bits."""
    return fill(transformers.OPTForCausalLM(transformers.OPTConfig(**cases.OPT))).eval()


@contextlib.contextmanager
def _trusting_torch_load() -> Iterator[None]:
    """``torch.load`` refuses an ``argparse.Namespace`` by default since version 2.6; the file is our own."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        yield
