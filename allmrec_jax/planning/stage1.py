"""What a stage-1 step, and a run of them, takes on each device of a mesh, before anything is run.

Weights and optimizer are exact: every device holds all of them. FLOPs and exchanged bytes are formulas of the program
that is compiled. Activations and temporaries are a model of what XLA keeps, fitted to compiled programs
(docs/sharding.md), and are labelled as estimates.

Symbols: L layers, D hidden size, F feed-forward units, H heads of the sentence encoder, M texts of a device's batch, T
tokens of each.
"""

import dataclasses
import math
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from allmrec_jax.errors import UserError
from allmrec_jax.models import text_encoder
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.text_encoder import TextEncoderConfig
from allmrec_jax.planning.devices import LATENT_DIM, USER_DIM, Device, Exchange, Plan, bounded, described
from allmrec_jax.sharding import MeshShape


@dataclasses.dataclass(frozen=True)
class Stage1Work:
    """What is to be run: steps that train the autoencoders and the sentence encoder, without accumulation.

    Attributes:
        encoder: its configuration; the default's is that of nq-distilbert-base-v1.
        mesh: the devices; each holds everything, and a batch is split over all of them.
        batch: samples of a step in all, a user with a positive and a negative item each; rounded up to what the mesh
            divides.
        length: tokens of a text, padding included.
        dtype: of the sentence encoder's computation; weights are float32.
        samples: of an epoch.
        epochs: of the run.
    """

    encoder: TextEncoderConfig
    mesh: MeshShape
    batch: int = 32
    length: int = 128
    dtype: str = "float32"
    samples: int = 100_000
    epochs: int = 10

    @property
    def texts(self) -> int:
        """M, at most: items of a batch are encoded once, and no two need be the same."""
        return 2 * math.ceil(self.batch / self.mesh.size)

    @property
    def tokens(self) -> int:
        """Of a device's texts."""
        return self.texts * self.length

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.epochs * math.ceil(self.samples / self.batch)

    @property
    def kernels(self) -> int:
        """Weights of the layers' kernels."""
        cfg = self.encoder
        return cfg.num_hidden_layers * (4 * cfg.hidden_size**2 + 2 * cfg.hidden_size * cfg.intermediate_size)

    @property
    def tables(self) -> int:
        """Weights of the words, positions and token types."""
        cfg = self.encoder
        return (cfg.vocab_size + cfg.max_position_embeddings + cfg.type_vocab_size) * cfg.hidden_size

    @cached_property
    def trained(self) -> int:
        """Parameters, all of them trained."""
        key, width = jax.random.key(0), self.encoder.hidden_size
        vectors = (jnp.zeros((1, USER_DIM)), jnp.zeros((1, width)))
        shapes = (
            jax.eval_shape(partial(text_encoder.init_params, self.encoder), key),
            jax.eval_shape(Alignment(USER_DIM, width, LATENT_DIM).init, key, *vectors),
        )
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def memory(work: Stage1Work) -> dict[str, int]:
    """Bytes on each device by kind: weights and optimizer exact, activations and temporaries estimates."""
    width, ratio = work.encoder.hidden_size, work.encoder.intermediate_size / work.encoder.hidden_size
    scores = work.encoder.num_attention_heads * work.length
    # A trained layer keeps the inputs of its matrices. Of the feed-forward units it keeps four arrays, for the exact
    # GELU; of the attention weights four, for softmax and dropout; the rest is as wide as the layer.
    layer = (13 + 4 * ratio) * width + 4 * scores
    return {
        "weights": 4 * work.trained,
        "optimizer": 8 * work.trained,  # Adam's two moments, float32
        "activations": int(work.tokens * work.encoder.num_hidden_layers * layer) * jnp.dtype(work.dtype).itemsize,
        # What embeds the tokens and what one layer turns back. Of the gradients the tables' are made first, as zeros;
        # most of the kernels' take room that activations have left.
        "temporaries": 9 * work.tokens * width * jnp.dtype(work.dtype).itemsize + 4 * (work.tables + work.kernels // 6),
    }


def flops(work: Stage1Work) -> int:
    """Floating-point operations of a step on all devices, by formula: six for each weight and token, for the weights'
    gradients are computed too; attention."""
    texts, tokens = work.texts * work.mesh.size, work.tokens * work.mesh.size
    attention = 12 * work.encoder.num_hidden_layers * work.length * work.encoder.hidden_size
    autoencoders = 2 * LATENT_DIM * (USER_DIM + work.encoder.hidden_size)
    return tokens * (6 * work.kernels + attention) + 6 * texts * autoencoders


def memory_traffic(work: Stage1Work) -> int:
    """Bytes that a device must at least move: its kernels in two passes; gradients written, and read by Adam with the
    weights and two moments, which are written again."""
    return 4 * (2 * work.kernels + 8 * work.trained)


def exchanges(work: Stage1Work) -> list[Exchange]:
    """The collectives of one step. Positions beyond a text's get no gradient; the whole table of words does."""
    size, cfg = work.mesh.size, work.encoder
    summed = work.trained - (cfg.max_position_embeddings - work.length) * cfg.hidden_size
    sent = int(2 * (size - 1) / size * 4 * summed)
    return [Exchange("all-reduce of gradients, once", "all axes", 1, sent)] if size > 1 else []


def make_plan(work: Stage1Work, device: Device) -> Plan[Stage1Work]:
    """What ``work`` takes on such devices.

    Raises:
        UserError: texts are longer than the encoder's positions.
    """
    most = work.encoder.max_position_embeddings
    if work.length > most:
        raise UserError(f"the sentence encoder reads {most} tokens of a text at most; lower --length to {most}")
    return bounded(
        work, device, work.mesh, memory(work), flops(work), exchanges(work), memory_traffic=memory_traffic(work)
    )


def as_json(plan: Plan[Stage1Work]) -> dict[str, Any]:
    """Everything of a plan, bytes and seconds; of a run its steps, one after the other."""
    found = described(plan) | {"steps": plan.work.steps, "nearest": nearest_choices(plan)}
    found["seconds_at_least"]["run"] = plan.work.steps * plan.floor
    return found


def nearest_choices(plan: Plan[Stage1Work]) -> list[str]:
    """The largest batch that fits where the plan's does not, of halves, quarters and so on."""
    if plan.fits:
        return []
    sizes = (plan.work.batch >> power for power in range(1, plan.work.batch.bit_length()))
    plans = (make_plan(dataclasses.replace(plan.work, batch=size), plan.device) for size in sizes)
    return [f"--batch {other.work.batch}" for other in plans if other.fits][:1]
