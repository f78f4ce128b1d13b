"""On every mesh the language model computes what it computes on one device, and only the named exchanges take place."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_llm
from click.testing import CliRunner
from jax.sharding import PartitionSpec as P

from allmrec_jax import sharding
from allmrec_jax.cli import allmrec
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPT_RULES, PUBLISHED
from allmrec_jax.runs import Run
from allmrec_jax.sharding import MeshShape, check_devices, check_heads, parse_mesh, use_mesh
from allmrec_jax.training.stage2 import Frozen, answer_loss, make_optimizer, make_step
from allmrec_jax.training.stage2_batches import Stage2Batch, pad_batch
from allmrec_jax.training.stage2_settings import PRESETS
from allmrec_jax.training.state import TrainState

MESHES = [
    MeshShape(data, fsdp, tensor)
    for size in (1, 2, 4, 8)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    for tensor in (1, 2, 4, 8)
    if data * fsdp * tensor == size
]

ROWS = 5
"""Of a batch: no mesh divides it."""


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def frozen() -> Frozen:
    """The language model and the latents on the mesh in use.

    At a third of their size the weights are near those of a fresh model, whose gradients amplify no rounding.
    """
    params = jax.tree.map(lambda x: x / 3, sharded_llm.llm()[1])
    return Frozen(sharding.place(params, OPT_RULES), sharding.place(sharded_llm.soft().latents))


def new_state() -> TrainState:
    params = jax.tree.map(jnp.asarray, sharded_llm.soft().params)
    return sharding.place(TrainState(params, make_optimizer(PRESETS["paper"], 10).init(params)))


def batch(accumulation: int = 1) -> Stage2Batch:
    return sharding.place_batch(pad_batch(sharded_llm.batch(ROWS + accumulation - 1), accumulation))


def loss_and_gradient(mesh: MeshShape | None) -> Any:
    model, _ = sharded_llm.llm()
    loss = jax.jit(
        lambda params, frozen, batch: jax.value_and_grad(lambda p: answer_loss(model, p, frozen, batch)[0])(params)
    )
    with use_mesh(mesh):
        return jax.device_get(sharding.on_mesh(loss)(sharding.place(sharded_llm.soft().params), frozen(), batch()))


def texts(mesh: MeshShape | None) -> list[str]:
    """What is generated for seven users in batches of three."""
    model, params = sharded_llm.llm()
    with use_mesh(mesh):
        soft = sharding.place(sharded_llm.soft())
        asked = sharded_llm.recommender(model, sharding.place(params, OPT_RULES), soft, batch_size=3)
        return asked.generate(*sharded_llm.questions(7))


@pytest.fixture(scope="module")
def expected() -> Any:
    return loss_and_gradient(None)


@pytest.fixture(scope="module")
def expected_texts() -> list[str]:
    return texts(None)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_loss_and_gradient(mesh: MeshShape, expected: Any) -> None:
    # Sums over devices are taken in another order: rounding of float32, some 1e-7 of the largest term each time.
    loss, gradient = loss_and_gradient(mesh)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_generated_tokens(mesh: MeshShape, expected_texts: list[str]) -> None:
    assert texts(mesh) == expected_texts


def test_scores() -> None:
    """Of weights at a third, as in :func:`frozen`: those of :mod:`sharded_llm` amplify rounding beyond 1e-5."""
    model, params = sharded_llm.llm()
    params = jax.tree.map(lambda x: x / 3, params)

    def scores(mesh: MeshShape | None) -> np.ndarray:
        with use_mesh(mesh):
            soft = sharding.place(sharded_llm.soft())
            asked = sharded_llm.recommender(model, sharding.place(params, OPT_RULES), soft, batch_size=3)
            return asked.rank(*sharded_llm.questions(7))

    np.testing.assert_allclose(scores(MeshShape(2, 2, 2)), scores(None), rtol=1e-5)  # sums in another order


def test_steps_restore_on_another_mesh(tmp_path: Any) -> None:
    """Two accumulated steps on a mesh, a checkpoint between them, the second step on another mesh and on one device."""
    model, _ = sharded_llm.llm()
    run = Run.open(tmp_path, "data", "stage2", PRESETS["paper"], 0, "hash", {})

    def step_on(mesh: MeshShape | None, restored: bool) -> tuple[TrainState, float]:
        with use_mesh(mesh):
            state, inputs, weights = new_state(), batch(accumulation=2), frozen()
            before = jax.device_get(weights.llm)
            step = sharding.on_mesh(make_step(model, make_optimizer(PRESETS["paper"], 10), 2))
            if restored:
                abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
                state = run.restore(abstract, 1)
            donated = jax.tree.leaves(state)
            state, metrics = step(state, weights, inputs)
            assert all(leaf.is_deleted() for leaf in donated)
            for leaf, wanted in zip(jax.tree.leaves(weights.llm), jax.tree.leaves(before), strict=True):
                np.testing.assert_array_equal(np.asarray(leaf), wanted)
            if not restored:
                run.save(1, state)
            return jax.device_get(state), float(metrics["loss"])

    _, first = step_on(MeshShape(data=2, fsdp=2, tensor=2), restored=False)
    state, second = step_on(MeshShape(data=4), restored=True)
    other, third = step_on(None, restored=True)
    np.testing.assert_allclose(second, third, rtol=1e-5)  # as above
    assert second < first
    for found, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        # Adam divides by the gradient's size: where that is near zero its rounding moves a step of 1e-4.
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_padding_counts_nowhere() -> None:
    model, _ = sharded_llm.llm()
    with use_mesh(MeshShape(data=4)):
        padded, rows = pad_batch(sharded_llm.batch(6), 2), sharded_llm.batch(6)
    assert len(padded.prompts.ids) == 8
    # Each part, three rows, is filled up behind its own rows.
    np.testing.assert_array_equal(padded.prompts.target_mask.any(1), [1, 1, 1, 0, 1, 1, 1, 0])
    assert padded.users is not None and rows.users is not None
    np.testing.assert_array_equal(padded.users[np.array([0, 1, 2, 4, 5, 6])], rows.users)
    soft, weights = sharded_llm.soft(), frozen()
    (loss, counts), (wanted, wanted_counts) = (answer_loss(model, soft.params, weights, b) for b in (padded, rows))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)  # the sum has two zeros more in it
    assert counts == wanted_counts


def test_every_parameter_has_one_rule() -> None:
    for config in PUBLISHED.values():
        shapes = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        found = sharding.specs(OPT_RULES, shapes)
        assert found["layers"]["out_proj"]["kernel"] == P(None, "tensor", "fsdp")
    with pytest.raises(ValueError, match="layers/k_proj/scale: 0 sharding rules"):
        sharding.specs(OPT_RULES, {"layers": {"k_proj": {"scale": jnp.ones(1)}}})
    with pytest.raises(ValueError, match="2 sharding rules"):
        sharding.specs([*OPT_RULES, ("layers/.*", P())], {"layers": {"fc1": {"bias": jnp.ones((1, 1))}}})


def collectives(mesh: MeshShape) -> dict[str, Counter]:
    """Exchanges in the compiled training step: per layer forward, per layer backward, and outside the layers."""
    model, _ = sharded_llm.llm()
    with use_mesh(mesh), sharding.scope():
        step = make_step(model, make_optimizer(PRESETS["paper"], 10))
        lowered = step.lower(new_state(), frozen(), batch())  # type: ignore[attr-defined]
    found: dict[str, Counter] = {"forward": Counter(), "backward": Counter(), "outside": Counter()}
    for line in lowered.compile().as_text().splitlines():
        kind = re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line)
        if kind is None:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        assert name is not None, line
        layer = re.search(r"(transpose\()?jvp\(OPT\)+/while/body/", name[1])
        where = "outside" if layer is None else "backward" if layer[1] else "forward"
        found[where][kind[1]] += 1
    return found


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        # The gradients of the projectors, the loss and the number of answer tokens are summed in one exchange.
        (MeshShape(data=2), {"forward": {}, "backward": {}, "outside": {"all-reduce": 1}}),
        # A layer's halves end in a sum each; outside are embedding, softmax (maximum, sum, arg max) and its gradient.
        (
            MeshShape(tensor=2),
            {
                "forward": {"all-reduce": 2},
                "backward": {"all-reduce": 2},
                "outside": {"all-reduce": 4, "all-gather": 2},
            },
        ),
        # The six kernels of a layer are gathered where they are used; so are words and positions.
        (
            MeshShape(fsdp=2),
            {
                "forward": {"all-gather": 6},
                "backward": {"all-gather": 6},
                "outside": {"all-reduce": 1, "all-gather": 2},
            },
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, MeshShape) else "",
)
def test_collectives(mesh: MeshShape, expected: dict[str, dict[str, int]]) -> None:
    assert collectives(mesh) == {where: Counter(counts) for where, counts in expected.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=2", "no axis 'model'"),
        ("data=2,data=4", "data is given twice"),
        ("tensor=0", "tensor must be a whole number from 1"),
        ("tensor", "tensor must be a whole number from 1"),
    ],
)
def test_text_that_is_no_mesh(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_mesh(text)


def test_parsed() -> None:
    assert parse_mesh("tensor=4, data=2") == MeshShape(2, 1, 4)
    assert str(MeshShape(2, 1, 4)) == "data=2,tensor=4"


def test_command_refuses_a_mesh_before_it_reads_anything(tmp_path: Any) -> None:
    asked = ["recommend", "--data", tmp_path / "no", "--run", tmp_path / "no", "--user", "U", "--mesh", "data=3"]
    with pytest.raises(UserError, match=r"3 devices.* the 8 there are; nearest: --mesh data=4"):
        CliRunner().invoke(allmrec, [*map(str, asked)], catch_exceptions=False)


def test_mesh_that_does_not_divide() -> None:
    with pytest.raises(
        UserError, match=r"data=3,tensor=2 is 6 devices.* the 8 there are; nearest: --mesh data=4,tensor=2"
    ):
        check_devices(MeshShape(data=3, tensor=2), 8)
    with pytest.raises(UserError, match=r"tensor=16 is 16 devices.* the 4 there are; nearest: --mesh tensor=4$"):
        check_devices(MeshShape(tensor=16), 4)
    with pytest.raises(UserError, match=r"tensor=8 does not divide the 12 attention heads.*: --mesh data=2,tensor=4$"):
        check_heads(MeshShape(tensor=8), PUBLISHED["facebook/opt-125m"], "facebook/opt-125m")
