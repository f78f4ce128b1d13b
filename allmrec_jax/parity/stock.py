"""The reference without a clone: stock PyTorch modules, put together from the description of the official code.

Nothing here is the official code; names of parameters are its, so that checkpoints and weights are named alike.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from allmrec_jax.parity import cases
from allmrec_jax.parity.directories import write_sentence_encoder
from allmrec_jax.parity.reference import (
    DRAWN,
    NEW_TOKENS,
    Drawn,
    DrawnStep,
    Outputs,
    Prompts,
    RefusedError,
    Source,
    empty_prompts,
    item_slot,
    user_slots,
)
from allmrec_jax.parity.torch_parts import fill, opt_outputs
from allmrec_jax.parity.torch_reference import Stage2Answer, TorchReference


class FeedForward(torch.nn.Module):
    """Convolutions of width one with dropout, ReLU and a residual."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv1d(dim, dim, 1), torch.nn.Conv1d(dim, dim, 1)
        self.dropout1, self.dropout2 = torch.nn.Dropout(dropout), torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to the same."""
        h = torch.relu(self.dropout1(self.conv1(x.mT)))
        return x + self.dropout2(self.conv2(h)).mT


class SASRec(torch.nn.Module):
    """SASRec out of ``MultiheadAttention``, ``Conv1d`` and ``LayerNorm``."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        dim, nn = cases.DIM, torch.nn
        self.item_emb = nn.Embedding(cases.ITEMS + 1, dim, padding_idx=0)
        self.pos_emb = nn.Embedding(cases.LENGTH, dim)
        self.emb_dropout = nn.Dropout(dropout)
        blocks = range(cases.BLOCKS)
        self.attention_layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in blocks)
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(dim, cases.HEADS, dropout) for _ in blocks)
        self.forward_layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in blocks)
        self.forward_layers = nn.ModuleList(FeedForward(dim, dropout) for _ in blocks)
        self.last_layernorm = nn.LayerNorm(dim, eps=1e-8)

    def hidden(self, items: np.ndarray) -> torch.Tensor:
        """[B, T] to [B, T, D]."""
        ids = torch.from_numpy(items).long()
        real = (ids != 0)[..., None]
        time = ids.shape[1]
        later = torch.triu(torch.ones(time, time, dtype=torch.bool), 1)
        x = self.item_emb(ids) * self.item_emb.embedding_dim**0.5 + self.pos_emb.weight[:time]
        x = self.emb_dropout(x) * real
        for norm, attention, forward_norm, forward in zip(
            self.attention_layernorms, self.attention_layers, self.forward_layernorms, self.forward_layers, strict=True
        ):
            keys = x.transpose(0, 1)
            query = norm(keys)
            x = forward_norm((query + attention(query, keys, keys, attn_mask=later)[0]).transpose(0, 1))
            x = forward(x) * real
        return self.last_layernorm(x)

    def forward(self, users: np.ndarray, items: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> Any:
        """Logits of positives and negatives, [B, T] each."""
        hidden = self.hidden(items)
        return tuple((hidden * self.item_emb(torch.from_numpy(x).long())).sum(-1) for x in (positives, negatives))


class Autoencoder(torch.nn.Module):
    """Linear, sigmoid: the latent; linear: the reconstruction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(width, cases.LATENT), torch.nn.Linear(cases.LATENT, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent and reconstruction."""
        latent = torch.sigmoid(self.fc1(x))
        return latent, self.fc2(latent)


def projector(inputs: int, activation: torch.nn.Module) -> torch.nn.Sequential:
    """Linear, LayerNorm, activation, linear."""
    width, nn = cases.OPT["hidden_size"], torch.nn
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), activation, nn.Linear(width, width))


class Model(torch.nn.Module):
    """The parts of A-LLMRec that a stage needs."""

    def __init__(self, stage: int, *, dropout: bool) -> None:
        super().__init__()
        self.recsys = torch.nn.Module()
        self.recsys.model = SASRec(cases.DROPOUT).requires_grad_(False)
        self.mlp = Autoencoder(cases.DIM)
        if stage == 1:
            self.sbert = sentence_transformer(dropout=dropout)
            self.mlp2 = Autoencoder(cases.TEXT_ENCODER["dim"])
        else:
            self.mlp.requires_grad_(False)
            self.log_emb_proj = projector(cases.DIM, torch.nn.LeakyReLU())
            self.item_emb_proj = projector(cases.LATENT, torch.nn.GELU())
            self.llm = torch.nn.Module()
            self.llm.llm_model = fill_opt(transformers.OPTForCausalLM(transformers.OPTConfig(**cases.OPT)))
            self.llm.llm_model.resize_token_embeddings(cases.TOKENS)
            self.llm.requires_grad_(False)


def fill_opt(llm: Any) -> Any:
    """OPT with the case's weights."""
    return fill(llm).eval()


def sentence_transformer(*, bert: bool = False, dropout: bool = False) -> Any:
    """A sentence-transformers model of the case's DistilBERT or BERT, with mean pooling, saved to disk and loaded.

    Its attention is spelt out: in the fused one nothing outside could say what dropout keeps.
    """
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as directory:
        write_sentence_encoder(Path(directory), bert=bert, dropout=dropout)
        return SentenceTransformer(directory, device="cpu", model_kwargs={"attn_implementation": "eager"})


class Stock(TorchReference):
    """PyTorch's, transformers' and sentence-transformers' own modules."""

    name = "stock PyTorch"

    def __init__(self) -> None:
        super().__init__()
        import sentence_transformers

        torch_version, hugging = f"torch {torch.__version__}", f"transformers {transformers.__version__}"
        encoders = f"sentence-transformers {sentence_transformers.__version__}"
        self._sources = dict.fromkeys((*self.rows(), *DRAWN), torch_version)
        for component in self._sources:
            if component.startswith("Sentence encoder"):
                self._sources[component] = encoders
            elif component.startswith("Stage 1"):
                self._sources[component] = f"{torch_version}, {encoders}"
            elif component.startswith(("OPT", "Stage 2", "Generation")):
                self._sources[component] = hugging
        self._sequences = read_sequences()

    def source(self, component: str) -> Source:
        """The library and its version."""
        return Source(self._sources[component], stood_in=stood_in(component))

    def rows(self) -> dict[str, Callable[[], Outputs]]:
        """Also BERT, another shape of OPT, and plain greedy generation."""
        return super().rows() | {
            "Sentence encoder, BERT": self._bert,
            "OPT-350m's shape": self._opt_350m,
            "Generation": self._generation,
        }

    def make_sasrec(self, dropout: float) -> Any:
        """SASRec out of stock parts."""
        return SASRec(dropout)

    def make_model(self, stage: int, *, dropout: bool = False) -> Any:
        """A-LLMRec out of stock parts."""
        return Model(stage, dropout=dropout)

    def replay(self, component: str, drawn: Drawn) -> Outputs:
        """What is compared of a component in which the product draws."""
        return self.select(super().replay(component, drawn))

    def select(self, outputs: Outputs) -> Outputs:
        """All but the prompts, which stock parts cannot put together and take as they are."""
        return {name: value for name, value in outputs.items() if not name.startswith("exact/prompt ")}

    def cf_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The latest T items but the last, and the item after each."""
        items, positives = (np.zeros((len(users), cases.LENGTH), np.int32) for _ in range(2))
        for row, user in enumerate(users):
            training = self._sequences[user - 1]
            if len(training) < 2:
                raise RefusedError(f"user {user} has nothing to learn from")
            length = min(len(training) - 1, cases.LENGTH)
            items[row, cases.LENGTH - length :] = training[-length - 1 : -1]
            positives[row, cases.LENGTH - length :] = training[-length:]
            if met := set(training) & set(negatives[row].tolist()):
                raise RefusedError(f"user {user} has met items {met}, drawn as negatives")
        return cases.Sequences(users, items, positives, np.where(positives > 0, negatives, 0))

    def stage_batch(self, users: np.ndarray, negatives: np.ndarray) -> cases.Sequences:
        """The same; only the last column of the negatives is read."""
        last = np.zeros((len(users), cases.LENGTH), np.int32)
        last[:, -1] = negatives
        return self.cf_batch(users, last)

    def learnable(self) -> np.ndarray:
        """Users with two training items."""
        return np.flatnonzero([len(training) >= 2 for training in self._sequences]) + 1

    def stage1_losses(self, model: Any, batch: cases.Sequences, optimizer: Any) -> dict[str, float]:
        """The official form: sums over positive and negative item, mean logits, targets of texts detached."""
        optimizer.zero_grad()
        table = model.recsys.model.item_emb.weight
        users = model.recsys.model.hidden(batch.items)[:, -1]
        losses: dict[str, Any] = dict.fromkeys(("rec", "match", "item_recon", "text_recon"), 0.0)
        mse = torch.nn.functional.mse_loss
        for items, label in ((batch.positives[:, -1], 1.0), (batch.negatives[:, -1], 0.0)):
            vectors = table[torch.from_numpy(items).long()]
            tokens = model.sbert.tokenize([official_text(item) for item in items.tolist()])
            tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            texts = model.sbert(tokens)["sentence_embedding"]
            (e, item_output), (q, text_output) = model.mlp(vectors), model.mlp2(texts)
            logits = (users * item_output).mean(-1)
            losses["rec"] += torch.nn.functional.binary_cross_entropy_with_logits(
                logits, torch.full_like(logits, label)
            )
            losses["match"] += mse(e, q)
            losses["item_recon"] += mse(item_output, vectors)
            losses["text_recon"] += mse(text_output, texts.detach())
        total = losses["rec"] + losses["match"] + 0.5 * losses["item_recon"] + 0.2 * losses["text_recon"]
        total.backward()
        optimizer.step()
        return {name: value.item() for name, value in (losses | {"total": total}).items()}

    def stage2_answer(
        self, model: Any, batch: cases.Sequences, optimizer: Any, drawn: DrawnStep | None = None
    ) -> Stage2Answer:
        """Random ids with slots and answers, or the product's, through Hugging Face's OPT with labels."""
        optimizer.zero_grad()
        prompts = random_prompts(batch) if drawn is None else drawn.prompts
        if prompts is None:
            raise RefusedError("no prompts")
        with torch.no_grad():
            users = model.recsys.model.hidden(batch.items)[:, -1]
            table, _ = model.mlp(model.recsys.model.item_emb.weight)
        user_tokens = model.log_emb_proj(users)
        user_tokens.retain_grad()
        width = int(prompts.lengths.max())
        embeds = model.llm.llm_model.get_input_embeddings()(torch.from_numpy(prompts.ids[:, :width]).long())
        item_tokens = []
        for row in range(cases.PROMPTS):
            items = torch.from_numpy(prompts.items[row]).long()
            for part in (items[: cases.HISTORY][items[: cases.HISTORY] > 0], items[cases.HISTORY :]):
                tokens = model.item_emb_proj(table[part])
                tokens.retain_grad()
                item_tokens.append(tokens)
            joined = torch.cat(item_tokens[-2:])
            first = int((items == 0).sum())
            columns = torch.from_numpy(np.flatnonzero(prompts.slot[row] == 2))
            embeds = embeds.index_put((torch.tensor(row), columns), joined[prompts.slot_index[row, columns] - first])
        embeds = torch.cat([user_tokens[:, None], embeds[:, 1:]], dim=1)
        columns = np.arange(width)[None]
        inside = (columns >= prompts.target_start[:, None]) & (columns < prompts.lengths[:, None])
        labels = torch.from_numpy(np.where(inside, prompts.ids[:, :width], -100)).long()
        mask = torch.from_numpy((columns < prompts.lengths[:, None]).astype(np.int64))
        answer = model.llm.llm_model(inputs_embeds=embeds, attention_mask=mask, labels=labels)
        answer.loss.backward()
        optimizer.step()
        return Stage2Answer(answer.loss.item(), prompts, user_tokens, item_tokens, answer.logits, np.zeros(0))

    def _bert(self) -> Outputs:
        texts = [official_text(item) for item in (1, 2, 3, 9)]
        vectors = sentence_transformer(bert=True).encode(texts, show_progress_bar=False)
        return {"forward/vectors": np.asarray(vectors, np.float32)}

    def _opt_350m(self) -> Outputs:
        llm = transformers.OPTForCausalLM(transformers.OPTConfig(**cases.OPT_350M))
        return opt_outputs(fill_opt(llm), left=False)

    def _generation(self) -> Outputs:
        llm = self._model(2).llm.llm_model
        rng = cases.random("generation")
        ids = rng.randint(5, 4000, (3, 12))
        with torch.no_grad():
            tokens = llm.generate(
                inputs_embeds=llm.get_input_embeddings()(torch.from_numpy(ids).long()),
                attention_mask=torch.ones(ids.shape, dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=2,
            )
        return {"input/plain ids": ids.astype(np.int32), "exact/tokens": tokens.numpy()}


SMALL_OPT = "OPT's pretrained weights: a small OPT with random ones"
SMALL_ENCODER = (
    "a sentence encoder's pretrained weights and words: a small one with random weights and letters as words"
)
RANDOM_WORDS = "prompts in words: random ids, or what the product's tokenizer made"


def stood_in(component: str) -> str:
    """What pretrained part is replaced."""
    if component.startswith(("Sentence encoder", "Stage 1")):
        return SMALL_ENCODER
    if component.startswith("OPT"):
        return SMALL_OPT
    return f"{SMALL_OPT}; {RANDOM_WORDS}" if component.startswith(("Stage 2", "Generation")) else ""


def official_text(item: int) -> str:
    """An item's text as the official code writes it."""
    titles, descriptions = cases.texts()
    return f'"{titles.get(item, "No Title")}, {descriptions.get(item, "No Description")}"'


def read_sequences() -> list[list[int]]:
    """Each user's training items: all but the last two, or all where there are fewer than three."""
    return [items[:-2] if len(items) >= 3 else items for items in cases.histories()]


def random_prompts(batch: cases.Sequences) -> Prompts:
    """Prompts of random words with slots where a prompt has them, and answers of random words."""
    rng, prompts = cases.random("prompts 0"), empty_prompts(len(batch.items))
    user_slots(prompts)
    for row, sequence in enumerate(batch.items):
        history = sequence[sequence > 0][-cases.HISTORY :]
        prompts.items[row, cases.HISTORY - len(history) : cases.HISTORY] = history
        prompts.items[row, cases.HISTORY :] = rng.permutation(cases.ITEMS)[: cases.CANDIDATES] + 1
        start = 60 + 10 * len(history) + 7 * row
        length = start + 5 + row
        prompts.ids[row, 1:length] = rng.randint(5, 4000, length - 1)
        prompts.target_start[row], prompts.lengths[row] = start, length
        index = range(cases.HISTORY - len(history), cases.HISTORY + cases.CANDIDATES)
        for column, item in zip(np.sort(rng.permutation(start - 2)[: len(index)] + 2), index, strict=True):
            prompts.ids[row, column] = 1
            item_slot(prompts, row, int(column), item)
    return prompts
