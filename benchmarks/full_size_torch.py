"""PyTorch's sides of full_size.py: the language model of transformers with random weights, and the two projectors.

``best=False`` is as the official code runs it, in bfloat16: eager attention, padding to the longest prompt of a batch,
the loss from logits at all positions, and ranking by reading prompt and answer of each candidate. ``best=True`` is what
one would write to be fast.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from full_size_world import LATENT_DIM, USER_DIM, World
from torch import nn
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM

from allmrec_jax.prompts import ITEM_SLOT, USER_SLOT

Rows = Sequence[np.ndarray]


def mlp(inputs: int, width: int, activation: nn.Module) -> nn.Sequential:
    """A projector."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), activation, nn.Linear(width, width))


class Peer:
    """The language model and the projectors on the device.

    Args:
        world: the prompts.
        dtype: of the language model; the projectors are float32.
        best: see above.
        new_tokens: to generate.
    """

    def __init__(self, world: World, dtype: str, *, best: bool, new_tokens: int) -> None:
        self.world, self.best, self.new_tokens = world, best, new_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))
        with self.device:
            config = OPTConfig(**world.config.to_dict(), attn_implementation="sdpa" if best else "eager")
            self.llm = OPTForCausalLM(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        with self.device:
            width = world.config.word_embed_proj_dim
            self.user, self.item = mlp(USER_DIM, width, nn.LeakyReLU(0.01)), mlp(LATENT_DIM, width, nn.GELU())
        self.body: Any = torch.compile(self.llm.model, dynamic=True) if best else self.llm.model
        parameters = [*self.user.parameters(), *self.item.parameters()]
        self.adam = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.98))

    @property
    def device_name(self) -> str:
        """Of the accelerator."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def peak_gib(self) -> float | None:
        """Of the process so far."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.device.type == "cuda" else None

    def put(self, array: np.ndarray) -> torch.Tensor:
        """On the device; whole numbers as indices."""
        kind = torch.long if np.issubdtype(array.dtype, np.integer) else torch.float32
        return torch.tensor(array, dtype=kind, device=self.device)

    def embed(self, rows: np.ndarray, prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Word embeddings with the soft tokens in place, and the attention mask; right-padded to the longest prompt."""
        length = int(prompts.lengths.max())
        ids, slot, index = (self.put(a[:, :length]) for a in (prompts.ids, prompts.slot, prompts.slot_index))
        words = self.llm.get_input_embeddings()(ids)
        items = self.item(self.put(self.world.latents[prompts.items])).to(words.dtype)
        placed = torch.gather(items, 1, index[..., None].expand(-1, -1, items.shape[-1]))
        users = self.user(self.put(self.world.users[rows])).to(words.dtype)[:, None]
        words = torch.where((slot == ITEM_SLOT)[..., None], placed, words)
        words = torch.where((slot == USER_SLOT)[..., None], users, words)
        return words, (torch.arange(length, device=self.device)[None] < self.put(prompts.lengths)[:, None]).long()

    def train(self, batches: Rows) -> None:
        """A step for each batch."""
        for rows in batches:
            prompts = self.world.prompts(rows, answers=True)
            embeds, mask = self.embed(rows, prompts)
            loss = self._target_loss(embeds, mask, prompts) if self.best else self._full_loss(embeds, mask, prompts)
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        self.wait()

    def _full_loss(self, embeds: torch.Tensor, mask: torch.Tensor, prompts: Any) -> torch.Tensor:
        places = torch.arange(embeds.shape[1], device=self.device)[None]
        answer = (places >= self.put(prompts.target_start)[:, None]) & (mask > 0)
        labels = torch.where(answer, self.put(prompts.ids[:, : embeds.shape[1]]), -100)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss

    def _target_loss(self, embeds: torch.Tensor, mask: torch.Tensor, prompts: Any) -> torch.Tensor:
        # Padding on the right: under causal attention no token sees it, and SDPA keeps its fast kernel without a mask.
        hidden = self.body(inputs_embeds=embeds, use_cache=False).last_hidden_state
        before = (
            self.put(prompts.target_start)[:, None] - 1 + torch.arange(prompts.targets.shape[1], device=self.device)
        )
        places = before.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.llm.lm_head(torch.gather(hidden, 1, places)).float()
        losses = functional.cross_entropy(logits.transpose(1, 2), self.put(prompts.targets), reduction="none")
        weights = self.put(prompts.target_mask)
        return (losses * weights).sum() / weights.sum()

    @torch.inference_mode()
    def rank(self, batches: Rows) -> None:
        """The likelihoods of every user's 20 candidates."""
        for rows in batches:
            if self.best:
                self._rank_behind_prefix(rows)
            else:
                for column in range(self.world.candidates.shape[1]):
                    self._rank_whole(rows, column)
        self.wait()

    def _rank_whole(self, rows: np.ndarray, column: int) -> None:
        prompts = self.world.prompts(rows, answers=False)
        embeds, _ = self.embed(rows, prompts)
        read = self._answers(rows, [column])[:, 0]
        words = self.llm.get_input_embeddings()(read)
        logits = self.llm(inputs_embeds=torch.cat([embeds, words], dim=1)).logits.log_softmax(-1)
        torch.gather(logits[:, -1 - read.shape[1] : -1], 2, read[..., None]).sum((1, 2))

    def _rank_behind_prefix(self, rows: np.ndarray) -> None:
        count = self.world.candidates.shape[1]
        prompts = self.world.prompts(rows, answers=False)
        embeds, mask = self.embed(rows, prompts)
        # Padding on the left, so that every answer follows its prompt.
        embeds, mask = self._pad_left(embeds, mask)
        prefix = self.llm.model(inputs_embeds=embeds, attention_mask=mask, use_cache=True)
        cache = prefix.past_key_values
        cache.batch_repeat_interleave(count)
        read = self._answers(rows, range(count)).flatten(0, 1)
        seen = torch.cat([mask.repeat_interleave(count, dim=0), torch.ones_like(read[:, :-1])], dim=1)
        hidden = self.llm.model(
            input_ids=read[:, :-1], attention_mask=seen, past_key_values=cache, use_cache=True
        ).last_hidden_state
        last = prefix.last_hidden_state[:, -1:].repeat_interleave(count, dim=0)
        logits = self.llm.lm_head(torch.cat([last, hidden], dim=1)).log_softmax(-1)
        torch.gather(logits, 2, read[..., None]).sum((1, 2))

    def _answers(self, rows: np.ndarray, columns: Any) -> torch.Tensor:
        """Tokens of candidates' answers [B, K, A], padded to the longest."""
        answers = [[self.world.tables.answer(self.world.candidates[row, k]) for k in columns] for row in rows]
        longest = max(len(answer) for each in answers for answer in each)
        padded = [[np.resize(answer, longest) for answer in each] for each in answers]
        return self.put(np.asarray(padded))

    def _pad_left(self, embeds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift = (mask.shape[1] - mask.sum(1, keepdim=True)) % mask.shape[1]
        places = (torch.arange(mask.shape[1], device=self.device)[None] - shift) % mask.shape[1]
        return torch.gather(embeds, 1, places[..., None].expand_as(embeds)), torch.gather(mask, 1, places)

    @torch.inference_mode()
    def generate(self, batches: Rows) -> None:
        """Titles of so many tokens for every user."""
        for rows in batches:
            embeds, mask = self._pad_left(*self.embed(rows, self.world.prompts(rows, answers=False)))
            self.llm.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                do_sample=False,
            )
        self.wait()

    def wait(self) -> None:
        """Until the device has done it all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
