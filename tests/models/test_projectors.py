import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.models.projectors import Projectors, init_params

WIDTH, USER, ITEM = 12, 5, 7


def reference(params):
    """The two projectors in torch, from their description."""
    torch = pytest.importorskip("torch")

    def linear(name):
        layer = torch.nn.Linear(*params[name]["kernel"].shape)
        layer.weight.data = torch.from_numpy(np.array(params[name]["kernel"]).T.copy())
        layer.bias.data = torch.from_numpy(np.array(params[name]["bias"]))
        return layer

    def norm(name):
        layer = torch.nn.LayerNorm(WIDTH)
        layer.weight.data = torch.from_numpy(np.array(params[name]["scale"]))
        layer.bias.data = torch.from_numpy(np.array(params[name]["bias"]))
        return layer

    user = torch.nn.Sequential(linear("user_in"), norm("user_norm"), torch.nn.LeakyReLU(), linear("user_out"))
    item = torch.nn.Sequential(linear("item_in"), norm("item_norm"), torch.nn.GELU(), linear("item_out"))
    return user, item


def test_forward_and_gradients_equal_torch():
    import torch

    rng = np.random.default_rng(0)
    params = init_params(WIDTH, USER, ITEM, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), params)
    users, items = rng.standard_normal((4, USER)), rng.standard_normal((4, 3, ITEM))
    users, items = users.astype(np.float32), items.astype(np.float32)

    def total(params):
        user, item = Projectors(WIDTH).apply({"params": params}, users, items)
        return jnp.sum(jnp.sin(user)) + jnp.sum(jnp.sin(item))

    user, item = Projectors(WIDTH).apply({"params": params}, users, items)
    torch_user, torch_item = reference(params)
    their_user, their_item = torch_user(torch.from_numpy(users)), torch_item(torch.from_numpy(items))
    # float32 sums of at most 12 terms of size 1: rounding of a few 1e-7 in either library.
    np.testing.assert_allclose(user, their_user.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(item, their_item.detach(), rtol=1e-5, atol=1e-5)

    gradients = jax.grad(total)(params)
    (their_user.sin().sum() + their_item.sin().sum()).backward()
    for side, module in (("user", torch_user), ("item", torch_item)):
        for name, layer in ((f"{side}_in", module[0]), (f"{side}_out", module[3])):
            np.testing.assert_allclose(gradients[name]["kernel"].T, layer.weight.grad, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(gradients[name]["bias"], layer.bias.grad, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradients[f"{side}_norm"]["scale"], module[1].weight.grad, rtol=1e-4, atol=1e-5)


def test_initialisation_is_the_official_codes():
    params = init_params(400, 50, 128, jax.random.key(0))
    for name, fan_in in (("user_in", 50), ("user_out", 400), ("item_in", 128), ("item_out", 400)):
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        # The deviation of 20,000 normal draws is within 2% of its value with a probability beyond 0.9999.
        np.testing.assert_allclose(kernel.std(), (2 / (fan_in + 400)) ** 0.5, rtol=0.02)
        assert np.abs(kernel).max() > 3.5 * kernel.std()  # normal, not cut off at two deviations
        assert 0.95 * fan_in**-0.5 < np.abs(bias).max() <= fan_in**-0.5


def test_either_projector_can_be_left_out():
    assert {name.split("_")[0] for name in init_params(4, None, 3, jax.random.key(0))} == {"item"}
    assert {name.split("_")[0] for name in init_params(4, 2, None, jax.random.key(0))} == {"user"}


def test_parameter_count_at_the_papers_size():
    shapes = jax.eval_shape(lambda: init_params(4096, 50, 128, jax.random.key(0)))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert count == (50 + 1) * 4096 + (128 + 1) * 4096 + 2 * (2 * 4096) + 2 * (4096 + 1) * 4096
