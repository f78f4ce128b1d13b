"""One CPU, both sides in one run: a stage-1 step, a stage-2 step, generation and ranking against PyTorch.

One decoder layer alone, forward and with its gradient, says how much of a difference lies within the layers; a layer's
dense products alone, how much of that is the matrix libraries'.

Both sides compute in float32 with the same weights, on the same inputs, with as many threads as there are cores and
with large blocks in huge pages, as the command line asks for; their results are compared before anything is timed, and
calls of the two sides alternate. The peer is PyTorch with transformers as one would write it to be fast: SDPA, logits
at the answers only, no gradients of frozen weights, a key-value cache, and for ranking one shared prefix whose
cache serves all 20 candidates. Our first call, with compilation, is reported apart.

    python benchmarks/cpu_peers.py                                         # opt-125m and DistilBERT's shape
    python benchmarks/cpu_peers.py --hidden 48 --layers 2 --out tiny.json  # a trial
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import torch
from full_size_world import LATENT_DIM, TITLE, USER_DIM, NoTokenizer
from torch import nn
from torch.nn import functional
from transformers import DistilBertConfig, DistilBertModel, OPTConfig, OPTForCausalLM

from allmrec_jax.cli import in_huge_pages
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.inference.llm import SoftTokens, respond
from allmrec_jax.inference.rank import pack_answers
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.llm.opt import OPT, Block
from allmrec_jax.models.llm.stack import unstacked
from allmrec_jax.models.projectors import init_params as init_projectors
from allmrec_jax.models.text_encoder import SentenceEncoder, TextEncoder, TextEncoderConfig
from allmrec_jax.models.text_encoder import init_params as init_encoder
from allmrec_jax.pretrained.llm import load_checkpoint
from allmrec_jax.prompts import ITEM_SLOT, STYLES, USER_SLOT, TitleTable, build_prompts
from allmrec_jax.runs import versions
from allmrec_jax.training import stage1, stage1_batches, stage1_settings, stage2, stage2_batches, stage2_settings
from allmrec_jax.training.state import CountedState, TrainState

ITEMS = 500
NEW_TOKENS = 32


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds: our first call, compilation included, and the medians of calls that take turns."""
    start = time.perf_counter()
    jax.block_until_ready(ours())
    first = time.perf_counter() - start
    theirs()
    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(repeats):
        for name, call in (("ours", ours), ("torch", theirs)):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    medians = {name: round(float(np.median(values)), 4) for name, values in seconds.items()}
    return {
        "ours_first": round(first, 3),
        **medians,
        "torch_over_ours": round(medians["torch"] / medians["ours"], 3),
        "all": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


def agree(name: str, ours: Any, theirs: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Both sides must compute the same before they are timed."""
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


class Projectors(nn.Module):
    """The two projectors in PyTorch, with our parameters."""

    def __init__(self, params: Any) -> None:
        super().__init__()
        self.user = self._mlp(params, "user", nn.LeakyReLU(0.01))
        self.item = self._mlp(params, "item", nn.GELU())

    def _mlp(self, params: Any, name: str, activation: nn.Module) -> nn.Sequential:
        layers = []
        for part in (f"{name}_in", f"{name}_out"):
            kernel, bias = (torch.tensor(np.asarray(params[part][key])) for key in ("kernel", "bias"))
            linear = nn.Linear(*kernel.shape)
            linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
            layers.append(linear)
        return nn.Sequential(layers[0], nn.LayerNorm(layers[0].out_features), activation, layers[1])


class LanguageModel:
    """The language model on both sides, and prompts of ten history titles and twenty candidates for it."""

    def __init__(self, hidden: int, layers: int, heads: int, vocabulary: int, batch: int) -> None:
        torch.manual_seed(0)
        config = OPTConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * hidden,
            word_embed_proj_dim=hidden,
            vocab_size=vocabulary,
            attn_implementation="sdpa",
        )
        self.torch = OPTForCausalLM(config).eval().requires_grad_(False)
        with tempfile.TemporaryDirectory() as directory:
            self.torch.save_pretrained(directory)
            ours, self.params = load_checkpoint(directory)
        self.model = OPT(ours)
        rng = np.random.default_rng(0)
        tokens = rng.integers(200, vocabulary, ITEMS * TITLE).astype(np.int32)
        titles = TitleTable(tokens, np.concatenate([[0], np.arange(ITEMS + 1) * TITLE]), 0, 0)
        self.tables = NoTokenizer(None, titles, ours.max_position_embeddings)
        self.histories = rng.integers(1, ITEMS + 1, (batch, 10)).astype(np.int32)
        self.candidates = np.stack([1 + rng.choice(ITEMS, 20, replace=False) for _ in range(batch)]).astype(np.int32)
        self.users = rng.normal(size=(batch, USER_DIM)).astype(np.float32)
        self.latents = rng.random((ITEMS + 1, LATENT_DIM)).astype(np.float32)
        self.projectors = init_projectors(hidden, USER_DIM, LATENT_DIM, jax.random.key(1))

    def prompts(self, targets: np.ndarray | None = None) -> Any:
        """Of all users."""
        style = STYLES["neutral"]
        return build_prompts(self.tables, style, self.histories, self.candidates, targets, soft=True)

    def embed(self, projectors: Projectors, prompts: Any) -> torch.Tensor:
        """Word embeddings and soft tokens, on the side of PyTorch; without our padding."""
        length = int(prompts.lengths.max())
        ids, slot, index = (
            torch.tensor(np.asarray(a)[:, :length], dtype=torch.long)
            for a in (prompts.ids, prompts.slot, prompts.slot_index)
        )
        embeds = self.torch.get_input_embeddings()(ids)
        items = projectors.item(torch.tensor(self.latents)[torch.tensor(prompts.items, dtype=torch.long)])
        placed = torch.gather(items, 1, index[..., None].expand(-1, -1, items.shape[-1]))
        users = projectors.user(torch.tensor(self.users))[:, None]
        embeds = torch.where((slot == ITEM_SLOT)[..., None], placed, embeds)
        return torch.where((slot == USER_SLOT)[..., None], users, embeds)


def stage2_step(world: LanguageModel, repeats: int) -> dict[str, Any]:
    """A training step of the projectors: forward, gradients through the frozen model, Adam."""
    prompts = world.prompts(world.candidates[:, 0])
    optimizer = stage2.make_optimizer(stage2_settings.PRESETS["paper"], 1000)
    step = stage2.make_step(world.model, optimizer)
    frozen = stage2.Frozen(world.params, jnp.asarray(world.latents))
    state = TrainState(jax.tree.map(jnp.copy, world.projectors), optimizer.init(world.projectors))
    losses: list[Any] = []

    def ours() -> Any:
        nonlocal state
        state, metrics = step(state, frozen, stage2_batches.Stage2Batch(prompts, jnp.asarray(world.users)))
        losses.append(metrics["loss"])
        return state

    projectors = Projectors(world.projectors)
    adam = torch.optim.Adam(projectors.parameters(), lr=1e-4, betas=(0.9, 0.98))
    before = torch.tensor(prompts.target_start)[:, None] - 1 + torch.arange(prompts.targets.shape[1])[None]
    targets = torch.tensor(prompts.targets, dtype=torch.long)
    mask = torch.tensor(prompts.target_mask)
    peer: list[torch.Tensor] = []

    def theirs() -> None:
        hidden = world.torch.model(inputs_embeds=world.embed(projectors, prompts)).last_hidden_state
        places = before.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        logits = world.torch.lm_head(torch.gather(hidden, 1, places.long()))
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        loss = (losses * mask).sum() / mask.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        peer.append(loss)

    found = alternate(ours, theirs, repeats)
    for one, other in zip(losses[:2], peer[:2], strict=True):
        agree("stage-2 loss", one, other)
    return {**found, "prompt_tokens": int(prompts.lengths.max()), "prompts": len(prompts.ids)}


def one_layer(world: LanguageModel, repeats: int) -> dict[str, dict[str, Any]]:
    """A decoder layer on all prompts' columns, forward and with the gradient of its input."""
    block, params = Block(world.model.config), unstacked(world.params["layers"])[0]
    layer = world.torch.model.decoder.layers[0]
    shape = (*world.prompts().ids.shape, world.model.config.hidden_size)
    x, g = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return block.apply({"params": params}, x, None, None, jnp.asarray(0))[0]

    forward = jax.jit(apply)
    gradient = jax.jit(lambda params, x, g: jax.vjp(lambda x: apply(params, x), x)[1](g)[0])
    read, given = torch.tensor(x, requires_grad=True), torch.tensor(g)

    def peer() -> torch.Tensor:
        out = layer(read)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def peer_forward() -> torch.Tensor:
        return peer()

    def peer_gradient() -> torch.Tensor:
        return torch.autograd.grad(peer(), read, given)[0]

    agree("a layer", forward(params, x), peer())
    agree("a layer's gradient", gradient(params, x, g), peer_gradient())
    return {
        "one layer, forward": alternate(lambda: forward(params, x), peer_forward, repeats),
        "one layer, gradient": alternate(lambda: gradient(params, x, g), peer_gradient, repeats),
    }


def dense_products(tokens: int, hidden: int, repeats: int, *, trained: bool) -> dict[str, Any]:
    """A layer's six products with kernels and those of its gradients, the kernels' own only where it is trained."""
    rng = np.random.default_rng(2)
    shapes = [(hidden, hidden)] * 4 + [(hidden, 4 * hidden), (4 * hidden, hidden)]
    arrays = [
        [rng.normal(size=size).astype(np.float32) for size in ((tokens, m), (m, n), (tokens, n))] for m, n in shapes
    ]

    @jax.jit
    def products(arrays: Any) -> Any:
        found = [(x @ kernel, g @ kernel.T) for x, kernel, g in arrays]
        return found, [x.T @ g for x, _, g in arrays] if trained else None

    # Each side has the kernel as it stores it: [in, out] here, [out, in] there.
    given = [(torch.tensor(x), torch.tensor(kernel.T.copy()), torch.tensor(g)) for x, kernel, g in arrays]

    @torch.inference_mode()
    def peer() -> Any:
        found = [(functional.linear(x, weight), g @ weight) for x, weight, g in given]
        return found, [g.T @ x for x, _, g in given] if trained else None

    ours = jax.device_put(arrays)
    for one, other in zip(jax.tree.leaves(products(ours)[0]), jax.tree.leaves(peer()[0]), strict=True):
        agree("dense products", one, other)
    work = 2 * tokens * sum(m * n for m, n in shapes) * (3 if trained else 2)
    found = alternate(lambda: products(ours), peer, repeats)
    return {**found, "gflops": {side: round(work / found[side] / 1e9, 1) for side in ("ours", "torch")}}


def inference(world: LanguageModel, repeats: int) -> dict[str, dict[str, Any]]:
    """Ranking of 20 candidates and generation of up to 32 tokens."""
    prompts, soft = world.prompts(), SoftTokens(world.projectors, jnp.asarray(world.latents))
    answers = pack_answers(world.tables, world.candidates)
    decode = DecodeSettings(max_new_tokens=NEW_TOKENS)
    projectors = Projectors(world.projectors)
    count = world.candidates.shape[1]
    read = torch.tensor(
        np.stack([[world.tables.answer(item) for item in row] for row in world.candidates]), dtype=torch.long
    ).flatten(0, 1)

    def ask(rank: bool) -> Any:
        given = (answers, None) if rank else (None, decode)
        return respond(world.model, world.params, soft, prompts, world.users, *given)[0 if rank else 1]

    @torch.inference_mode()
    def rank() -> torch.Tensor:
        prefix = world.torch.model(inputs_embeds=world.embed(projectors, prompts), use_cache=True)
        cache = prefix.past_key_values
        cache.batch_repeat_interleave(count)
        hidden = world.torch.model(input_ids=read[:, :-1], past_key_values=cache, use_cache=True).last_hidden_state
        last = prefix.last_hidden_state[:, -1:].repeat_interleave(count, dim=0)
        logits = world.torch.lm_head(torch.cat([last, hidden], dim=1)).log_softmax(-1)
        return torch.gather(logits, 2, read[..., None]).sum((1, 2)).reshape(-1, count)

    @torch.inference_mode()
    def generate() -> torch.Tensor:
        embeds = world.embed(projectors, prompts)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return world.torch.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )

    agree("ranking", ask(rank=True), rank())
    written = generate()
    agree("generation", ask(rank=False)[:, : written.shape[1]], written)
    return {
        "ranking": alternate(lambda: ask(rank=True), rank, repeats),
        "generation": alternate(lambda: ask(rank=False), generate, repeats),
    }


def stage1_step(hidden: int, layers: int, heads: int, samples: int, length: int, repeats: int) -> dict[str, Any]:
    """A training step of the sentence encoder and the autoencoders; without dropout, so that the losses agree."""
    torch.manual_seed(0)
    config = TextEncoderConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    params = init_encoder(config, jax.random.key(0))
    settings = stage1_settings.Stage1Settings(batch_size=samples)
    encoder = SentenceEncoder(TextEncoder(config), params, None, {}, length)  # type: ignore[arg-type]
    model = stage1.Stage1Model(Alignment(USER_DIM, hidden, settings.latent_dim), encoder, settings)
    rng = np.random.default_rng(0)
    items, users = (rng.normal(size=(n, USER_DIM)).astype(np.float32) for n in (2 * samples, samples))
    ids = rng.integers(1000, config.vocab_size, (2 * samples, length)).astype(np.int32)
    lengths = np.sort(rng.integers(length // 2, length + 1, 2 * samples)).astype(np.int32)
    shapes = (items[:1], np.zeros((1, hidden), np.float32))
    alignment = model.alignment.init(jax.random.key(2), *shapes)["params"]
    state_params = {"alignment": alignment, "encoder": params}
    optimizer = stage1.make_optimizer(settings, 1000)
    state = CountedState(jax.tree.map(jnp.copy, state_params), optimizer.init(state_params), jnp.zeros((), jnp.int32))
    rows = np.arange(samples, dtype=np.int32)
    part = stage1_batches.Stage1Batch(
        items, ids, lengths, None, users, rows, rows + samples, np.ones(samples, np.float32)
    )
    batch = stage1_batches.Stage1Batch(*(None if array is None else array[None] for array in part))
    step = stage1.make_step(model, optimizer, 0)
    losses: list[Any] = []

    def ours() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        return state

    peer = DistilBertModel(DistilBertConfig(**_distil(config), attn_implementation="sdpa"))
    _copy_encoder(peer, params, layers)
    linears = {name: _linear(alignment[name]) for name in alignment}
    trained = [*peer.parameters(), *(p for linear in linears.values() for p in linear.parameters())]
    adam = torch.optim.Adam(trained, lr=1e-4, betas=(0.9, 0.98))
    tokens = torch.tensor(ids, dtype=torch.long)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    vectors, seen = torch.tensor(items), torch.tensor(users)
    theirs_losses: list[torch.Tensor] = []

    def theirs() -> None:
        hidden_states = peer(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        texts = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        e, q = torch.sigmoid(linears["item_encoder"](vectors)), torch.sigmoid(linears["text_encoder"](texts))
        rebuilt, text_again = linears["item_decoder"](e), linears["text_decoder"](q)

        def error(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).square().mean(-1)[:samples].mean()

        positive, negative = (seen * rebuilt[:samples]).sum(-1), (seen * rebuilt[samples:]).sum(-1)
        rec = functional.softplus(-positive).mean() + functional.softplus(negative).mean()
        loss = error(e, q) + 0.5 * error(rebuilt, vectors) + 0.5 * error(text_again, texts) + rec
        adam.zero_grad()
        loss.backward()
        adam.step()
        theirs_losses.append(loss)

    found = alternate(ours, theirs, repeats)
    for one, other in zip(losses[:2], theirs_losses[:2], strict=True):
        agree("stage-1 loss", one, other)
    return {**found, "texts": 2 * samples, "text_tokens": length}


def _distil(config: TextEncoderConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}


def _linear(params: Any) -> nn.Linear:
    kernel, bias = (torch.tensor(np.asarray(params[key])) for key in ("kernel", "bias"))
    linear = nn.Linear(*kernel.shape)
    linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
    return linear


def _copy_encoder(peer: DistilBertModel, params: Any, layers: int) -> None:
    """Our encoder's parameters into transformers' module."""

    def copy(module: nn.Module, ours: Any) -> None:
        names = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
        for name, value in ours.items():
            array = np.array(value)
            getattr(module, names[name]).data = torch.tensor(array.T.copy() if name == "kernel" else array)

    copy(peer.embeddings.word_embeddings, params["word_embeddings"])
    copy(peer.embeddings.position_embeddings, params["position_embeddings"])
    copy(peer.embeddings.LayerNorm, params["embedding_norm"])
    for number in range(layers):
        layer, ours = peer.transformer.layer[number], params[f"layer_{number}"]
        for theirs, name in (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v"), ("out_lin", "out")):
            copy(getattr(layer.attention, theirs), ours[name])
        copy(layer.sa_layer_norm, ours["attention_norm"])
        copy(layer.ffn.lin1, ours["up"])
        copy(layer.ffn.lin2, ours["down"])
        copy(layer.output_layer_norm, ours["output_norm"])


@click.command()
@click.option("--hidden", default=768, show_default=True)
@click.option("--layers", default=12, show_default=True, help="Of the language model; the encoder has half as many.")
@click.option("--heads", default=12, show_default=True)
@click.option("--vocabulary", default=50272, show_default=True)
@click.option("--batch", default=2, show_default=True, help="Prompts at once.")
@click.option("--samples", default=32, show_default=True, help="Of a stage-1 step, with two texts each.")
@click.option("--text-tokens", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default: benchmarks/results/cpu_peers.json")
def main(
    hidden: int,
    layers: int,
    heads: int,
    vocabulary: int,
    batch: int,
    samples: int,
    text_tokens: int,
    repeats: int,
    out: Path | None,
) -> None:
    """Time both sides and write what was measured."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    world = LanguageModel(hidden, layers, heads, vocabulary, batch)
    load_before = os.getloadavg()[0]
    result = {
        "shape": {"hidden": hidden, "layers": layers, "heads": heads, "vocabulary": vocabulary, "batch": batch},
        "peer": "PyTorch + transformers, float32: SDPA, logits at the answers only, shared-prefix cache",
        "seconds": {
            "stage-1 step": stage1_step(hidden, max(1, layers // 2), heads, samples, text_tokens, repeats),
            "stage-2 step": stage2_step(world, repeats),
            **inference(world, repeats),
            **one_layer(world, repeats),
            "one layer's dense products, gradient": dense_products(
                world.prompts().ids.size, hidden, repeats, trained=False
            ),
            "one encoder layer's dense products, gradient": dense_products(
                2 * samples * text_tokens, hidden, repeats, trained=True
            ),
        },
        "threads": torch.get_num_threads(),
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "platform": platform.platform(),
        "versions": {**versions(), "torch": torch.__version__},
    }
    path = out or Path(__file__).parent / "results" / "cpu_peers.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    in_huge_pages()
    main()
