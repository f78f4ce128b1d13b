"""GRU4Rec against torch's GRU, NextItNet against torch's dilated convolutions; what both owe the CF protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.gru4rec import GRU4Rec, GRU4RecCF, GRU4RecConfig
from allmrec_jax.models.cf.nextitnet import NextItNet, NextItNetCF, NextItNetConfig
from allmrec_jax.models.cf.sequential import logits

ITEMS, DIM, LENGTH = 30, 10, 12
GRU = GRU4RecConfig(ITEMS, DIM, hidden=14, layers=2, max_length=LENGTH, dropout=0.4)
NEXT = NextItNetConfig(ITEMS, DIM, dilations="1,3", repeats=2, max_length=LENGTH)


class TorchGRU4Rec(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.items = torch.nn.Embedding(ITEMS + 1, DIM)
        self.gru = torch.nn.GRU(DIM, GRU.hidden, GRU.layers, bias=False, batch_first=True)
        self.dense = torch.nn.Linear(GRU.hidden, DIM)

    def forward(self, items):
        return self.dense(self.gru(self.items(items))[0])

    def tree(self, value):
        layers = {
            f"gru_{n}": {
                "input_kernel": value(getattr(self.gru, f"weight_ih_l{n}")).T,
                "hidden_kernel": value(getattr(self.gru, f"weight_hh_l{n}")).T,
            }
            for n in range(GRU.layers)
        }
        dense = {"kernel": value(self.dense.weight).T, "bias": value(self.dense.bias)}
        return {"item_embedding": value(self.items.weight), "dense": dense, **layers}


class TorchNextItNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.items = torch.nn.Embedding(ITEMS + 1, DIM)
        dilations = [1, 2, 3, 6] * NEXT.repeats
        self.convs = torch.nn.ModuleList(torch.nn.Conv1d(DIM, DIM, 3, dilation=d) for d in dilations)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(DIM, eps=1e-8) for _ in dilations)
        self.dense = torch.nn.Linear(DIM, DIM)

    def forward(self, items):
        x = self.items(items)
        for first in range(0, len(self.convs), 2):
            h = x
            for conv, norm in zip(self.convs[first : first + 2], self.norms[first : first + 2], strict=True):
                padded = torch.nn.functional.pad(h.transpose(1, 2), (2 * conv.dilation[0], 0))
                h = torch.relu(norm(conv(padded).transpose(1, 2)))
            x = x + h
        return self.dense(x)

    def tree(self, value):
        blocks = {}
        for place, name in enumerate(("0_0", "0_1", "1_0", "1_1")):
            convs, norms = self.convs[place::4], self.norms[place::4]
            blocks[f"conv_{name}"] = {
                "kernel": np.stack([value(conv.weight).transpose(2, 1, 0) for conv in convs]),
                "bias": np.stack([value(conv.bias) for conv in convs]),
            }
            blocks[f"norm_{name}"] = {
                "scale": np.stack([value(norm.weight) for norm in norms]),
                "bias": np.stack([value(norm.bias) for norm in norms]),
            }
        dense = {"kernel": value(self.dense.weight).T, "bias": value(self.dense.bias)}
        return {"item_embedding": value(self.items.weight), "blocks": blocks, "dense": dense}


CASES = {
    "gru4rec": (TorchGRU4Rec, GRU4Rec, GRU),
    "nextitnet": (TorchNextItNet, NextItNet, NEXT),
}


@pytest.fixture(params=list(CASES))
def case(request):
    """A torch module with every parameter away from 0 and 1, our module, and the same parameters for it."""
    reference, module, config = CASES[request.param]
    torch.manual_seed(0)
    theirs = reference()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return theirs, module(config), theirs.tree(lambda p: p.detach().numpy())


def history(length, seed=0):
    return np.random.default_rng(seed).integers(1, ITEMS + 1, (1, length)).astype(np.int32)


def test_forward_and_gradients_match_torch(case):
    theirs, model, params = case
    items, targets = history(LENGTH), history(LENGTH, seed=1)
    hidden = model.apply({"params": params}, jnp.asarray(items))
    expected = theirs(torch.tensor(items))
    # Float32 rounding over the layers, on values of order 1.
    np.testing.assert_allclose(hidden, expected.detach().numpy(), atol=2e-5)

    torch.nn.functional.softplus(-(expected * theirs.items(torch.tensor(targets))).sum(-1)).mean().backward()

    def loss(params):
        hidden = model.apply({"params": params}, jnp.asarray(items))
        return jnp.mean(jax.nn.softplus(-logits(params, hidden, jnp.asarray(targets))))

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    reference = theirs.tree(lambda p: p.grad.numpy())
    for (path, ours), expected in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(reference), strict=True):
        assert np.abs(expected).max() > 1e-4, f"{path}: a zero gradient proves nothing"
        # Sums over positions in another order.
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=str(path))


def test_padding_changes_nothing(case):
    theirs, model, params = case
    items = history(4)
    bare = theirs(torch.tensor(items)).detach().numpy()
    for width in (4, 5, LENGTH):
        padded = np.pad(items, ((0, 0), (width - 4, 0)))
        found = model.apply({"params": params}, jnp.asarray(padded))[:, -4:]
        # Another width, another program: rounding only.
        np.testing.assert_allclose(found, bare, atol=2e-5, err_msg=str(width))


def test_padding_changes_no_gradient(case):
    _, model, params = case
    items, targets = history(5), history(5, seed=1)

    @jax.jit
    @jax.grad
    def gradients(params, items):
        hidden = model.apply({"params": params}, items)[:, -5:]
        return jnp.mean(jax.nn.softplus(-logits(params, hidden, jnp.asarray(targets))))

    params = jax.tree.map(jnp.asarray, params)
    bare, padded = (gradients(params, np.pad(items, ((0, 0), (width, 0)))) for width in (0, LENGTH - 5))
    # Another width, another program: rounding only.
    jax.tree.map(lambda ours, expected: np.testing.assert_allclose(ours, expected, atol=2e-5), padded, bare)


def test_no_position_sees_a_later_one(case):
    _, model, params = case
    items = np.arange(1, LENGTH + 1)[None]

    def hidden(table):
        return model.apply({"params": {**params, "item_embedding": table}}, jnp.asarray(items))[0]

    jacobian = np.abs(jax.jacobian(hidden)(jnp.asarray(params["item_embedding"]))).sum((1, 3))[:, 1 : LENGTH + 1]
    assert np.all(jacobian[np.triu_indices(LENGTH, 1)] == 0)
    assert np.all(np.diag(jacobian) > 0) and jacobian[-1, 0] > 0


def test_parameter_counts():
    gru = GRU4Rec(GRU4RecConfig(1000)).init_params(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(gru)) == 1001 * 50 + 50 * 384 + 128 * 384 + 128 * 50 + 50
    net = NextItNet(NextItNetConfig(1000)).init_params(jax.random.key(0))
    conv, norm = 3 * 50 * 50 + 50, 2 * 50
    assert sum(leaf.size for leaf in jax.tree.leaves(net)) == 1001 * 50 + 20 * (conv + norm) + 50 * 50 + 50


def test_initial_statistics():
    gru = GRU4Rec(GRU4RecConfig(1000)).init_params(jax.random.key(0))
    assert np.abs(gru["gru_0"]["hidden_kernel"]).max() == pytest.approx(np.sqrt(6 / (128 + 384)), rel=0.01)
    assert np.abs(gru["dense"]["bias"]).max() == pytest.approx(1 / np.sqrt(128), rel=0.1)
    assert np.std(gru["item_embedding"]) == pytest.approx(np.sqrt(2 / 1051), rel=0.02)
    net = NextItNet(NextItNetConfig(1000)).init_params(jax.random.key(0))
    assert np.abs(net["item_embedding"]).max() == pytest.approx(1 / np.sqrt(1001), rel=0.01)
    assert np.abs(net["blocks"]["conv_1_0"]["kernel"]).max() == pytest.approx(1 / np.sqrt(150), rel=0.01)
    assert np.all(net["dense"]["bias"] == np.float32(0.1))


def test_protocol():
    cf = GRU4RecCF(GRU, GRU4Rec(GRU).init_params(jax.random.key(0)))
    items = history(LENGTH + 3)
    np.testing.assert_array_equal(cf.user_vectors(None, items), cf.user_vectors(None, items[:, 3:]))
    one, two = (cf.user_vectors(None, items, key=jax.random.key(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two), "dropout is live with a key"
    everything = cf.score_catalogue(None, items)
    candidates = np.array([[3, 1, 7]])
    # The same dot products in another program.
    np.testing.assert_allclose(cf.score(None, items, candidates), everything[:, candidates[0]], atol=1e-5)
    assert NextItNetCF(NEXT, NextItNet(NEXT).init_params(jax.random.key(0))).dim == DIM


@pytest.mark.parametrize("wrong", [{"dilations": "1,x"}, {"dilations": ""}, {"dilations": "0"}, {"repeats": 0}])
def test_impossible_nextitnets_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        NextItNetConfig(10, **wrong)


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"hidden": 0}, {"layers": 0}])
def test_impossible_gru4recs_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        GRU4RecConfig(10, **wrong)
