"""What passes through a model of the clone: candidates, token ids, soft tokens and logits.

Works under transformers 4.32.1, which the clone pins, as well as under 5.
"""

import contextlib
from typing import Any
from unittest import mock

import numpy as np
import torch

from allmrec_jax.parity import cases
from allmrec_jax.parity.reference import Prompts, empty_prompts, item_slot, user_slots
from allmrec_jax.parity.torch_parts import array


class Watch:
    """Records what passes through a model of the clone, by hooks and by wrapping bound methods.

    Args:
        model: the clone's.
        quote_asked: whether the answer's opening quote is taken for a part of the prompt, as in ours.
    """

    def __init__(self, model: Any, *, quote_asked: bool = False) -> None:
        self.model, self.llm, self.quote_asked = model, model.llm, quote_asked
        self.candidates: list[np.ndarray] = []
        self.item_tokens: list[torch.Tensor] = []
        self.user_tokens: Any = None
        self.ids: Any = None
        self.mask: Any = None
        self.answer_starts: list[int] | None = None
        self.logits: Any = None
        self.positions: Any = None
        self.generated: Any = None

    def __enter__(self) -> "Watch":
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
        lengths = [int(length) + self.quote_asked for length in lengths]
        self.answer_starts = lengths
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
