"""The compiled training step holds no gradient of the frozen model's weights: its matrix products are counted."""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import flax.linen
import jax
import pytest
from test_plan_stage2 import compiled_step, config, step_inputs

from allmrec_jax.models.llm import opt
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.planning.stage2 import Work
from allmrec_jax.sharding import MeshShape
from allmrec_jax.training.stage2 import answer_loss

HIDDEN, FFN, WORDS, VOCABULARY = 256, 1024, 96, 1024

FROZEN = {
    (HIDDEN, HIDDEN),
    *((HIDDEN, FFN), (FFN, HIDDEN)),
    *((HIDDEN, WORDS), (WORDS, HIDDEN)),
    *((VOCABULARY, WORDS), (WORDS, VOCABULARY)),
}
"""Shapes of the frozen matrices. None of the projectors', 96 wide, is one of them."""


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def work(layers: int) -> Work:
    """Prompts short beside the width, as real ones are: of attention there are four products backward, not two."""
    cfg = dataclasses.replace(config(HIDDEN, 4, layers, VOCABULARY), word_embed_proj_dim=WORDS)
    return Work(cfg, MeshShape(), batch=2, length=64, dtype="float32", fused=False)


class Product(NamedTuple):
    """A matrix product of a compiled program: the result's shape, FLOPs, and the operation that it comes from."""

    shape: tuple[int, ...]
    flops: int
    name: str


def products(program: Any) -> list[Product]:
    """All of a compiled program."""
    found, shapes = [], dict[str, list[int]]()
    for line in program.as_text().splitlines():
        named = re.match(r"\s*(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]", line)
        if named is None:
            continue
        shape = [int(size) for size in named[2].split(",") if size]
        shapes[named[1]] = shape
        if product := re.search(r" dot\(%([^,]+), .*lhs_contracting_dims=\{([\d,]+)\}.*op_name=\"([^\"]+)\"", line):
            summed = math.prod(shapes[product[1]][int(axis)] for axis in product[2].split(","))
            found.append(Product(tuple(shape), 2 * math.prod(shape) * summed, product[3]))
    return found


def test_two_unrolled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opt.nn, "scan", functools.partial(flax.linen.scan, unroll=2))
    model, (state, frozen, batch) = OPT(work(2).llm), step_inputs(work(2))
    step = compiled_step(work(2))
    loss: Any = jax.jit(functools.partial(answer_loss, model)).lower(state.params, frozen, batch).compile()
    counted = products(step)
    assert sum("fc1" in product.name for product in counted) == 4  # of two layers, forward and back: no loop is left
    assert not [product for product in counted if product.shape in FROZEN]
    forward = sum(product.flops for product in products(loss))
    assert 2 * forward < sum(product.flops for product in counted) <= 2.1 * forward
    # XLA's own count, which has everything but matrix products beside.
    assert step.cost_analysis()["flops"] <= 2.1 * loss.cost_analysis()["flops"]

    # The same search finds them where they are: in the gradient by the frozen weights.
    whole = jax.jit(jax.grad(lambda frozen, params, batch: answer_loss(model, params, frozen, batch)[0]))
    found = products(whole.lower(frozen, state.params, batch).compile())
    assert {product.shape for product in found} >= {(HIDDEN, FFN), (FFN, HIDDEN)}


def test_bodies_of_the_scans() -> None:
    counted = products(compiled_step(work(3)))
    bodies: dict[str, list[Product]] = {"jvp": [], "transpose": []}
    for product in counted:
        if inner := re.search(r"/(jvp|transpose)\((?:jvp\()?OPT\)+/while/body/", product.name):
            bodies[inner[1]].append(product)
    forward, backward = (sum(product.flops for product in body) for body in bodies.values())
    assert len(bodies["jvp"]) == 8  # four projections, two products of attention, two feed-forward
    assert len(bodies["transpose"]) == 10  # two more of attention
    assert not [product for product in counted if product.shape in FROZEN]
    assert forward < backward <= 1.1 * forward
