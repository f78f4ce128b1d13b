"""Llama, Mistral, Qwen and Gemma against transformers' implementations in float32, on tiny random weights.

What runs on one device runs operation by operation, which compiles each operation once for all variants; the test on a
mesh compiles the whole.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm
import torch
import transformers

from allmrec_jax import sharding
from allmrec_jax.models.llm.attention import init_cache
from allmrec_jax.models.llm.families import family_of
from allmrec_jax.models.llm.gemma import GLOBAL, LOCAL, Gemma2Config, Gemma3Config
from allmrec_jax.models.llm.llama import LlamaConfig, MistralConfig
from allmrec_jax.models.llm.qwen import Qwen2Config, Qwen3Config
from allmrec_jax.models.llm.rotary import Rope
from allmrec_jax.pretrained.llm import load_checkpoint, save_checkpoint
from allmrec_jax.sharding import MeshShape

TOLERANCE = 1e-5
"""Largest difference over the largest value. Both sides compute in float32, with sums in another order: differences
measured were below 2e-6."""

GRADIENT_TOLERANCE = 1e-4
"""Gradients went through the layers twice; differences measured were below 1e-5."""

BATCH, LENGTH, CHUNK = 4, 14, 7

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3 = Rope(10000.0, "llama3", 8.0, 16)
YARN = Rope(10000.0, "yarn", 4.0, 640, truncate=False)

VARIANTS: dict[str, Any] = {
    "Llama 2": LlamaConfig(**{**TINY, "num_key_value_heads": 4}),
    "Llama 3": LlamaConfig(**TINY, rope=LLAMA3),
    "Llama, linear": LlamaConfig(**TINY, rope=Rope(500.0, "linear", 2.0, 64)),
    "Llama, yarn": LlamaConfig(**TINY, rope=YARN),
    "Llama with biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "SmolLM2": LlamaConfig(**{**TINY, "num_key_value_heads": 1}, tie_word_embeddings=True),
    "Mistral": MistralConfig(**TINY, sliding_window=5),
    "Qwen 2": Qwen2Config(**TINY),
    "Qwen 2.5": Qwen2Config(**TINY, tie_word_embeddings=True),
    "Qwen 3": Qwen3Config(**TINY),
    "Gemma 2": Gemma2Config.from_dict(
        {
            **TINY,
            "rms_norm_eps": 1e-3,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        }
    ),
    "Gemma 3": Gemma3Config.from_dict(
        {
            **TINY,
            "rms_norm_eps": 1e-3,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 7,
            "rope_theta": 500.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }
    ),
}


ONE_DEVICE = ("Llama, linear", "Llama, yarn", "Llama with biases")
"""Variants that differ from another one by an angle or a sum only."""


class Pair(NamedTuple):
    """A model of transformers and ours with its weights."""

    hf: Any
    model: Any
    params: Any


def params_of(hf, config):
    """The state of a model of transformers in our layout; every entry is used once, but the copy of a tied head."""
    family = family_of(config)
    state = {family.plain(key): value.numpy() for key, value in hf.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop(family.head)
    params: dict[str, Any] = {}
    for leaf in family.layout(config):
        layers = [state.pop(key) for _, key in leaf.keys(config)]
        assert {layer.shape for layer in layers} == {leaf.shape}, leaf
        layers = [layer.T if leaf.transposed else layer for layer in layers]
        node = params
        for name in leaf.path[:-1]:
            node = node.setdefault(name, {})
        node[leaf.path[-1]] = jnp.asarray(np.stack(layers) if leaf.in_layers else layers[0])
    assert not state
    return params


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    return make_pair(VARIANTS[request.param])


@pytest.fixture(scope="module", params=[name for name in VARIANTS if name not in ONE_DEVICE])
def whole_pair(request):
    return make_pair(VARIANTS[request.param])


def make_pair(config):
    torch.manual_seed(0)
    theirs = transformers.AutoConfig.for_model(**config.to_dict())
    hf = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    with torch.no_grad():  # norms and biases start at constants, which would hide a mix-up
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Pair(hf, family_of(config).module(config), params_of(hf, config))


@pytest.mark.parametrize("name", ["Llama 3", "SmolLM2", "Gemma 3"])
def test_directories_of_transformers_are_read_and_ours_are_read_by_it(name, tmp_path):
    hf, model, params = make_pair(VARIANTS[name])
    hf.save_pretrained(tmp_path / "theirs")
    config, loaded = load_checkpoint(tmp_path / "theirs")
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    save_checkpoint(tmp_path / "ours", config, loaded, tiny_llm.tokenizer())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(hf)
    assert again.config.rope_parameters == hf.config.rope_parameters
    for key, value in hf.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], value)


def apart(ours, theirs):
    """The largest difference over the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def ids_of(config):
    return np.random.default_rng(0).integers(3, config.vocab_size, (BATCH, LENGTH))


def left_padded():
    """Which columns hold tokens, their positions, and the mask under which a pad attends itself only."""
    real = np.arange(LENGTH) >= np.array([[0], [6], [3], [1]])
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    mask = (np.tril(np.ones((LENGTH, LENGTH), bool)) & real[:, None, :]) | np.eye(LENGTH, dtype=bool)
    return real, positions, mask


def weights_of_loss(config):
    """A loss is a weighted sum of logits, so that each of them has a gradient of its own."""
    return np.random.default_rng(1).normal(size=(BATCH, LENGTH, config.vocab_size)).astype(np.float32)


def their_outputs(hf, ids, real):
    """Logits, hidden states after each layer and the gradient of the loss with respect to the inputs."""
    embeds = hf.get_input_embeddings()(torch.tensor(ids)).detach().requires_grad_()
    after: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: after.append(out)) for layer in hf.model.layers]
    logits = hf(inputs_embeds=embeds, attention_mask=torch.tensor(real * 1)).logits
    for hook in hooks:
        hook.remove()
    weights = weights_of_loss(hf.config) * real[..., None]
    (logits * torch.tensor(weights)).sum().backward()
    assert embeds.grad is not None
    states = [(out if isinstance(out, torch.Tensor) else out[0]).detach().numpy() for out in after]
    return logits.detach().numpy(), states, embeds.grad.numpy()


def our_outputs(model, params, ids, real, positions, mask=None):
    """The same of ours, in one compiled program."""
    weights = weights_of_loss(model.config) * real[..., None]
    variables = {"params": params}

    @jax.jit
    def run(embeds):
        def loss(embeds):
            (hidden, _), captured = model.apply(
                variables, embeds, positions, mask, capture_intermediates=True, mutable=["intermediates"]
            )
            logits = model.apply(variables, hidden, method="logits")
            (states, _), *_ = captured["intermediates"]["layers"]["__call__"]
            return (logits * weights).sum(), (logits, states)

        (_, (logits, states)), gradient = jax.value_and_grad(loss, has_aux=True)(embeds)
        return logits, states, gradient

    return run(model.apply(variables, ids, method="embed"))


def test_every_layer_the_logits_and_the_gradients_with_right_padding(pair):
    """Right padding needs no mask: no token sees what comes later."""
    config = pair.model.config
    ids, real = ids_of(config), np.arange(LENGTH) < np.array([[14], [4], [7], [11]])
    logits, states, gradient = their_outputs(pair.hf, ids, real)
    positions = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    with jax.disable_jit():
        ours, our_states, our_gradient = our_outputs(pair.model, pair.params, ids, real, positions)
    assert ours.dtype == jnp.float32
    assert apart(ours[real], logits[real]) < TOLERANCE
    assert len(states) == len(our_states) == config.num_hidden_layers
    for layer, state in enumerate(states):
        assert apart(our_states[layer][real], state[real]) < TOLERANCE, layer
    assert apart(our_gradient, gradient) < GRADIENT_TOLERANCE


def test_left_padding_on_a_mesh_of_two_by_two_by_two(whole_pair):
    pair, config = whole_pair, whole_pair.model.config
    ids, (real, positions, mask) = ids_of(config), left_padded()
    logits, _, gradient = their_outputs(pair.hf, ids, real)
    with sharding.use_mesh("data=2,fsdp=2,tensor=2"), sharding.scope():
        rules = family_of(config).rules_on(config, MeshShape(2, 2, 2))
        params = sharding.place(pair.params, rules)
        assert params["layers"]["q_proj"]["kernel"].sharding.spec[2] == "tensor"
        whole = config.num_key_value_heads % 2 == 1
        assert params["layers"]["k_proj"]["kernel"].sharding.is_equivalent_to(
            params["layers"]["q_proj"]["kernel"].sharding, 3
        ) == (not whole)
        ours, _, our_gradient = our_outputs(pair.model, params, ids, real, positions, mask)
    assert apart(np.asarray(ours)[real], logits[real]) < TOLERANCE
    assert apart(our_gradient, gradient) < GRADIENT_TOLERANCE


def test_cached_chunks_with_left_padding(pair):
    config, variables = pair.model.config, {"params": pair.params}
    ids, (real, positions, mask) = ids_of(config), left_padded()
    logits, *_ = their_outputs(pair.hf, ids, real)
    columns = LENGTH + 2  # two columns of the cache stay empty
    mask = np.pad(mask, ((0, 0), (0, 0), (0, columns - LENGTH)))

    def extend(cache, ids, positions, mask, start):
        embeds = pair.model.apply(variables, ids, method="embed")
        hidden, cache = pair.model.apply(variables, embeds, positions, mask, cache, start)
        return pair.model.apply(variables, hidden, method="logits"), cache

    cache, out = init_cache(config, BATCH, columns), []
    with jax.disable_jit():
        for start in range(0, LENGTH, CHUNK):
            span = slice(start, start + CHUNK)
            part, cache = extend(cache, ids[:, span], positions[:, span], mask[:, span], start)
            out.append(part)
    assert apart(np.concatenate(out, axis=1)[real], logits[real]) < TOLERANCE
    assert not np.asarray(cache.k[:, :, :, LENGTH:]).any()


ALTERATIONS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "epsilon", {"rms_norm_eps": 1.5 * config.rms_norm_eps}) for name, config in VARIANTS.items()),
    *(
        (name, "base", {"rope": dataclasses.replace(config.rope, rope_theta=1.01 * config.rope.rope_theta)})
        for name, config in VARIANTS.items()
    ),
    ("Llama 3", "no scaling", {"rope": Rope(10000.0)}),
    ("Llama 3", "its bounds", {"rope": dataclasses.replace(LLAMA3, high_freq_factor=3.0)}),
    ("Llama, linear", "its factor", {"rope": Rope(500.0, "linear", 2.1, 64)}),
    ("Llama, yarn", "norm of the rotated", {"rope": dataclasses.replace(YARN, attention_factor=1.0)}),
    ("Llama, yarn", "bounds of the blend", {"rope": dataclasses.replace(YARN, beta_slow=2.0)}),
    *((name, "window", {"sliding_window": 6}) for name in ("Mistral", "Gemma 2", "Gemma 3")),
    *((name, "scale of the queries", {"query_pre_attn_scalar": 6}) for name in ("Gemma 2", "Gemma 3")),
    *((name, "kinds of layers", {"layer_types": (GLOBAL, LOCAL, LOCAL)}) for name in ("Gemma 2", "Gemma 3")),
    ("Gemma 2", "cap of the scores", {"attn_logit_softcapping": None}),
    ("Gemma 2", "cap of the logits", {"final_logit_softcapping": 3.1}),
    ("Gemma 3", "base of the window's layers", {"local_rope": Rope(51.0)}),
]


@pytest.mark.parametrize(
    ("name", "what", "change"), ALTERATIONS, ids=[f"{name}: {what}" for name, what, _ in ALTERATIONS]
)
def test_an_alteration_is_seen(name, what, change):
    """Each row above would fail were this one thing computed otherwise."""
    config = VARIANTS[name]
    hf, _, params = make_pair(config)
    ids = ids_of(config)
    with torch.no_grad():
        logits = hf(torch.tensor(ids)).logits.numpy()
    positions = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))

    altered = family_of(config).module(dataclasses.replace(config, **change))
    with jax.disable_jit():
        embeds = altered.apply({"params": params}, ids, method="embed")
        hidden, _ = altered.apply({"params": params}, embeds, positions)
        assert apart(altered.apply({"params": params}, hidden, method="logits"), logits) > 2 * TOLERANCE
