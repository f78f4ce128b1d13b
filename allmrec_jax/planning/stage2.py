"""What a step with a frozen language model, training or inference, takes on each device of a mesh, before it is run.

Weights, KV cache and optimizer are exact: they come from shapes and from the rules that arrays are placed by
(:class:`allmrec_jax.models.llm.family.Family`). FLOPs and exchanged bytes are formulas of the program that is compiled.
Activations and temporaries are a model of what XLA keeps, fitted to compiled programs (docs/sharding.md), and are
labelled as estimates.

Symbols: L layers, D hidden size, Q width of all query heads, K of all key-value heads, F feed-forward units, H heads, E
word width, V vocabulary, B rows of a device's batch, S prompt tokens, A answer tokens, C columns of the candidates'
answers, N new tokens, t devices along ``tensor``.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from allmrec_jax import sharding
from allmrec_jax.errors import UserError
from allmrec_jax.models import projectors
from allmrec_jax.models.llm.attention import causal_blocks
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.family import LMConfig
from allmrec_jax.models.llm.room import local_shape, weight_bytes
from allmrec_jax.planning.devices import LATENT_DIM, USER_DIM, Device, Exchange, Plan, bounded, described
from allmrec_jax.sharding import MeshShape

ONE_DEVICE = MeshShape()

ITEMS = 30
"""Items of a prompt: ten of history and twenty candidates."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be run.

    Attributes:
        llm: its configuration.
        mesh: the devices.
        batch: prompts in all; rounded up to what the mesh divides.
        length: tokens of a prompt with its answer.
        train: a stage-2 step; else ranking of ``candidates`` and generation of ``new_tokens``.
        dtype: of weights and computation.
        int8: the layers' kernels are stored in int8.
        remat: layers are recomputed in the backward pass.
        answer: tokens of an answer.
        candidates: titles ranked.
        new_tokens: generated at most.
        fused: attention stores no S × S matrix.
    """

    llm: LMConfig
    mesh: MeshShape
    batch: int = 4
    length: int = 1024
    train: bool = True
    dtype: str = "bfloat16"
    remat: bool = False
    answer: int = 32
    candidates: int = 20
    new_tokens: int = 64
    fused: bool = True
    int8: bool = False

    @property
    def rows(self) -> int:
        """B, of one device."""
        return math.ceil(self.batch / self.mesh.batch_shards)

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def kernel_itemsize(self) -> int:
        """Bytes of a weight of a layer's kernels."""
        return 1 if self.int8 else self.itemsize

    @property
    def columns(self) -> int:
        """Tokens read to rank the candidates of a prompt."""
        return self.candidates * (self.answer // 2)

    @property
    def queries(self) -> float:
        """Width of the query heads of one device."""
        return self.llm.num_attention_heads * self.llm.head_dim / self.mesh.tensor

    @property
    def key_values(self) -> float:
        """Width of the key-value heads of one device: all of them, where ``tensor`` does not divide them."""
        heads, split = self.llm.num_key_value_heads, self.mesh.tensor
        return (heads if heads % split else heads / split) * self.llm.head_dim


# Memory.


@cache
def projector_count(width: int) -> int:
    """Trained parameters of stage 2."""
    shapes = jax.eval_shape(lambda: projectors.init_params(width, USER_DIM, LATENT_DIM, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def kv_bytes(work: Work, columns: int) -> int:
    """Bytes of keys and values of so many columns on each device, exact."""
    cfg = work.llm
    return 2 * cfg.num_hidden_layers * work.rows * columns * int(work.key_values) * work.itemsize


def memory(work: Work) -> dict[str, int]:
    """Bytes on each device by kind: weights, optimizer and KV cache exact, activations and temporaries estimates."""
    cfg = work.llm
    trained = projector_count(cfg.embed_dim)
    cache, temporaries = (0, _temporaries(work)) if work.train else _answering(work)
    return {
        "weights": weight_bytes(cfg, work.mesh, work.itemsize, int8=work.int8),
        # Parameters and Adam's two moments, float32.
        "optimizer": 12 * trained if work.train else 4 * trained,
        "kv_cache": cache,
        "activations": _activations(work) if work.train else 0,
        "temporaries": temporaries,
    }


def _activations(work: Work) -> int:
    """Kept from the forward to the backward pass.

    A frozen layer needs no inputs of its matrices. Of each token it keeps three widths of the stream and its norms,
    queries, keys, values and the units of the feed-forward part, which ``tensor`` splits. Without fused attention come
    four more, laid out by heads, and the attention weights.
    """
    cfg = work.llm
    if work.remat:
        per_token = float(cfg.hidden_size)
    else:
        by_heads = work.queries + 2 * work.key_values + (0 if work.fused else 4 * work.queries)
        units = family_of(cfg).kept_units * cfg.intermediate_size / work.mesh.tensor
        per_token = 3 * cfg.hidden_size + by_heads + units + 1.8 * _scores(work)
    return int(work.rows * work.length * cfg.num_hidden_layers * per_token * work.itemsize)


def _scores(work: Work) -> float:
    """Attention weights of a token in one layer; fused attention keeps a sum and its output instead."""
    cfg, split = work.llm, work.mesh.tensor
    if work.fused:
        return work.queries / 2
    return cfg.num_attention_heads / split * work.length * _causal_share(work)


def _causal_share(work: Work) -> float:
    """Of the S × S attention scores of a prompt, what is computed: no later keys, up to the width of a block."""
    if work.fused:
        return 0.5
    return sum((end - start) * end for start, end in causal_blocks(work.length)) / work.length**2


def _temporaries(work: Work) -> int:
    """What one layer, the head and the optimizer need while a training step runs."""
    cfg = work.llm
    tokens = work.rows * work.length
    vocabulary = cfg.vocab_size / work.mesh.tensor
    widths, scores = (26, 1.7) if work.remat else (16, 2.5)
    layer = tokens * (widths * cfg.hidden_size + scores * _scores(work))
    gradients = 12 * projector_count(cfg.embed_dim)
    head = 3 * 4 * work.rows * work.answer * vocabulary
    return int(max(layer * work.itemsize, head)) + gradients + _put_together(work)


def _answering(work: Work) -> tuple[int, int]:
    """KV caches, exact, and temporaries, while an answer takes most of both.

    The prompts' columns are copied twice, with room for the candidates and for the new tokens; XLA makes both copies
    before it ranks. In generation the scan over layers writes a second copy, which is the next token's first.
    """
    cfg, split = work.llm, work.mesh.tensor
    prompts, ranked, generated = (kv_bytes(work, work.length + more) for more in (0, work.columns, work.new_tokens))
    kernels = sum(_kernels(work, work.mesh)) * work.kernel_itemsize  # the scan's copy of a layer's
    logits = 4 * cfg.vocab_size / split
    scored = logits * work.columns  # row by row
    # The loop over a single row is none, and XLA computes its logits before it generates.
    waiting = 3 * logits * work.rows + (scored if work.rows == 1 else 0)
    reading = _layer(work, work.length, work.length * _causal_share(work))
    ranking = _layer(work, work.columns, work.length + work.columns)
    # Keys of a layer, on which columns are written; its values are as many.
    to_rank, to_generate = (cache / cfg.num_hidden_layers / 2 for cache in (ranked, generated))
    phases = [
        (prompts, kernels + reading),
        (ranked + generated + prompts // 2, 0),  # keys are copied, then values
        (ranked + generated, kernels + to_rank + ranking),
        (generated, scored),
        (2 * generated, kernels + 3 * to_generate + waiting),
    ]
    cache, temporaries = max(phases, key=sum)
    return cache, int(temporaries) + _put_together(work)


def _layer(work: Work, tokens: int, keys: float) -> float:
    """Bytes of a layer while it reads so many tokens of each row, each of which meets so many keys: in attention the
    stream, queries, output and float32 scores, in the feed-forward part the stream, its norm and the units twice."""
    cfg, split = work.llm, work.mesh.tensor
    scores = 0 if work.fused else 1.25 * 4 * cfg.num_attention_heads / split * keys
    attention = (cfg.hidden_size + 2 * work.queries) * work.itemsize + scores
    feed_forward = 2 * (cfg.hidden_size + cfg.intermediate_size / split) * work.itemsize
    return work.rows * tokens * max(attention, feed_forward)


def _put_together(work: Work) -> int:
    """Weights made ready for use: gathered over ``fsdp``, of a layer and the next and the tables; and a kernel of int8
    in the type that it is multiplied in."""
    gathered = work.mesh._replace(fsdp=1)
    found = max(_kernels(work, gathered)) * work.itemsize if work.int8 else 0
    if work.mesh.fsdp > 1:
        family = family_of(work.llm)
        rules = family.rules_on(work.llm, work.mesh)
        specs = {leaf: sharding.spec_of(rules, "/".join(leaf.path)) for leaf in family.layout(work.llm)}
        tables = [
            math.prod(local_shape(leaf.shape, spec, gathered))
            for leaf, spec in specs.items()
            if "fsdp" in spec and not leaf.in_layers
        ]
        found += 2 * sum(_kernels(work, gathered)) * work.kernel_itemsize + sum(tables) * work.itemsize
    return found


def _kernels(work: Work, mesh: MeshShape = ONE_DEVICE) -> list[int]:
    """Weights of each kernel of a layer on a device of a mesh."""
    family = family_of(work.llm)
    rules = family.rules_on(work.llm, mesh)
    return [
        math.prod(local_shape(leaf.stacked_shape(work.llm)[1:], sharding.spec_of(rules, "/".join(leaf.path))[1:], mesh))
        for leaf in family.layout(work.llm)
        if leaf.is_kernel
    ]


# Work and exchange.


def flops(work: Work) -> int:
    """Floating-point operations of a step on all devices, by formula: two for each weight and token forward, two more
    backward, for the weights' own gradients are not computed; attention; the head at the answers' positions only."""
    cfg = work.llm
    rows = work.rows * work.mesh.batch_shards
    layers = cfg.num_hidden_layers * sum(_kernels(work))
    width = cfg.num_hidden_layers * cfg.num_attention_heads * cfg.head_dim
    words = cfg.vocab_size * cfg.embed_dim

    def read(tokens: int, columns: float) -> int:
        return int(rows * tokens * (2 * layers + 4 * width * columns))

    causal = work.length * _causal_share(work)
    if work.train:
        embed = cfg.embed_dim
        projected = rows * (USER_DIM * embed + embed**2 + ITEMS * (LATENT_DIM * embed + embed**2))
        body = read(work.length, causal)
        attention = int(rows * work.length * 4 * width * causal)  # backward it is four products, not two
        total = (3 if work.remat else 2) * body + attention + 4 * rows * work.answer * words + 6 * projected
        return total
    prompt = read(work.length, causal)
    ranked = read(work.columns, work.length + work.columns) + 2 * rows * (work.columns + 1) * words
    written = work.new_tokens * (read(1, work.length + work.new_tokens) + 2 * rows * words)
    return prompt + ranked + written


def memory_traffic(work: Work) -> int:
    """Bytes that a device must at least read: its weights once in each pass, and in generation the cache each token."""
    weights = weight_bytes(work.llm, work.mesh, work.itemsize, int8=work.int8)
    if work.mesh.fsdp > 1:
        weights *= work.mesh.fsdp
    if work.train:
        return (3 if work.remat else 2) * weights
    return (2 + work.new_tokens) * weights + work.new_tokens * kv_bytes(work, work.length)


def exchanges(work: Work) -> list[Exchange]:
    """The collectives of one step, those that a test counts in the compiled program."""
    cfg, mesh, item = work.llm, work.mesh, work.itemsize
    passes = 2 if work.train else 1
    layers = cfg.num_hidden_layers
    found = []
    if mesh.tensor > 1:
        tokens = [work.length] if work.train else [work.length, work.columns, *[1] * work.new_tokens]
        size = work.rows * cfg.hidden_size * item
        sent = 2 * (mesh.tensor - 1) / mesh.tensor
        count = 2 * passes * layers * len(tokens)
        total = int(2 * passes * layers * sum(tokens) * size * sent)
        found.append(Exchange("all-reduce of activations, two per layer and pass", "tensor", count, total))
    if mesh.fsdp > 1:
        runs = (3 if work.remat else 2) if work.train else 2 + work.new_tokens
        share = (mesh.fsdp - 1) / mesh.fsdp
        kernels = _kernels(work, mesh._replace(fsdp=1))
        size = layers * sum(kernels) * work.kernel_itemsize
        found.append(
            Exchange(
                f"all-gather of kernels, {len(kernels)} per layer and pass",
                "fsdp",
                len(kernels) * layers * runs,
                int(runs * size * share),
            )
        )
    if work.train and mesh.size > 1 and mesh.batch_shards > 1:
        shards = mesh.batch_shards
        size = 4 * projector_count(cfg.embed_dim)
        found.append(Exchange("all-reduce of gradients, once", "data, fsdp", 1, int(2 * (shards - 1) / shards * size)))
    return found


# Does it fit, and how fast can it be at best.


def make_plan(work: Work, device: Device) -> Plan[Work]:
    """What ``work`` takes on such devices.

    Raises:
        UserError: the mesh does not divide the heads, or the prompt is longer than the model's positions.
    """
    sharding.check_heads(work.mesh, work.llm, "this model")
    most = work.llm.max_position_embeddings
    needed = work.length + (0 if work.train else max(work.new_tokens, work.answer))
    if needed > most:
        raise UserError(
            f"{needed} tokens are more than the model's {most} positions; lower --length by {needed - most}"
        )
    work = dataclasses.replace(work, fused=device.fused and work.dtype == "bfloat16")
    return bounded(
        work, device, work.mesh, memory(work), flops(work), exchanges(work), memory_traffic=memory_traffic(work)
    )


def nearest_fit(plan: Plan[Work]) -> Plan[Work] | None:
    """The nearest thing that fits with the same numbers: remat, then more devices along tensor and fsdp, then a smaller
    batch; each without remat first."""
    work = plan.work
    tried = [work]
    for times in (2, 4, 8, 16, 32):
        splits = [(times // part, part) for part in (1, 2, 4, 8, 16, 32) if part <= times]
        for tensor, fsdp in splits if work.mesh.fsdp == 1 else splits[::-1]:
            mesh = work.mesh._replace(tensor=work.mesh.tensor * tensor, fsdp=work.mesh.fsdp * fsdp)
            if work.llm.num_attention_heads % mesh.tensor == 0:
                tried.append(dataclasses.replace(work, mesh=mesh))
        if work.batch >= 2 * times:
            tried.append(dataclasses.replace(work, batch=work.batch // times))
    return _first_fit(plan.device, tried)


def int8_fit(plan: Plan[Work]) -> Plan[Work] | None:
    """What fits the same devices and batch with kernels in int8, which changes numbers."""
    if plan.work.int8:
        return None
    return _first_fit(plan.device, [dataclasses.replace(plan.work, int8=True)])


def _first_fit(device: Device, works: Sequence[Work]) -> Plan[Work] | None:
    both = [other for work in works for other in (work, dataclasses.replace(work, remat=work.train))]
    return next((plan for plan in (make_plan(work, device) for work in both) if plan.fits), None)


def as_json(plan: Plan[Work]) -> dict[str, Any]:
    """Everything of a plan, bytes and seconds."""
    return described(plan) | {"nearest": nearest_choices(plan)}


def nearest_choices(plan: Plan[Work]) -> list[str]:
    """The options that make a plan fit that does not: with the same numbers, and on the same devices in int8."""
    found = [] if plan.fits else [nearest_fit(plan), int8_fit(plan)]
    return [difference(plan.work, other.work) for other in found if other is not None]


def difference(work: Work, other: Work) -> str:
    """The options that lead from one to the other, e.g. ``--mesh tensor=4``."""
    named = {
        "--mesh": (str(work.mesh), str(other.mesh)),
        "--batch": (work.batch, other.batch),
        "--remat": (work.remat, other.remat),
        "--llm-weights int8": (work.int8, other.int8),
    }
    changed = [(option, new) for option, (old, new) in named.items() if old != new]
    return " ".join(option if new is True else f"{option} {new}" for option, new in changed)
