"""LoRA: parity with PEFT on a small torch OPT, both ways, and the algebra of merging."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm
import torch
from safetensors.numpy import load_file, save_file
from transformers import OPTForCausalLM

from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.lora import init_adapter, merge, variables
from allmrec_jax.models.llm.opt import OPT
from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.pretrained.peft import CONFIG, WEIGHTS, LoRA, load_adapter, save_adapter

RANK, ALPHA = 3, 6.0
HIDDEN = 16


@pytest.fixture(scope="module")
def model():
    return tiny_llm.model()


@pytest.fixture(scope="module")
def adapter(model):
    """An adapter as after training: B is not zero any more, and no two matrices are alike."""
    fresh = init_adapter(model[0].config, RANK, jax.random.key(1))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, fresh, jax.tree.unflatten(tree, noise))


def logits(llm, variables, ids, **kwargs):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    embeds = llm.apply(variables, ids, method="embed")
    hidden, _ = llm.apply(variables, embeds, positions, **kwargs)
    return np.asarray(llm.apply(variables, hidden, method="logits"))


@pytest.fixture(scope="module")
def ids(model):
    return np.random.default_rng(3).integers(3, model[0].config.vocab_size, (2, 11)).astype(np.int32)


@pytest.mark.parametrize("post_norm", [False, True])
def test_peft_reads_our_adapter_and_gives_our_logits(adapter, ids, tmp_path, post_norm):
    import peft

    llm, params = tiny_llm.model(do_layer_norm_before=not post_norm)
    save_checkpoint(tmp_path / "llm", llm.config, params, tiny_llm.tokenizer())
    save_adapter(
        tmp_path / "adapter", tiny_llm.config(), LoRA(adapter, ALPHA), dropout=0.05, base_model=str(tmp_path / "llm")
    )
    base = OPTForCausalLM.from_pretrained(tmp_path / "llm", attn_implementation="eager").eval()
    with torch.no_grad():
        before = base(torch.tensor(ids).long()).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        after = theirs(torch.tensor(ids).long()).logits.numpy()
    ours = logits(llm, variables(params, adapter, ALPHA / RANK), ids)
    scale = np.abs(after).max()
    assert np.abs(after - before).max() > 0.02 * scale, "an adapter that changes nothing proves nothing"
    # Two float32 implementations of the same sums; the random model's logits reach tens.
    np.testing.assert_allclose(ours / scale, after / scale, atol=1e-5)


def test_an_adapter_that_peft_wrote_is_read_back(model, ids, tmp_path):
    import peft

    llm, params = model
    save_checkpoint(tmp_path / "llm", llm.config, params, tiny_llm.tokenizer())
    base = OPTForCausalLM.from_pretrained(tmp_path / "llm", attn_implementation="eager")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:  # as large as in `adapter`: with huge ones attention is so sharp that rounding grows
            parameter.data.normal_(std=0.1, generator=generator)
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long()).logits.numpy()
    lora = load_adapter(tmp_path / "adapter", tiny_llm.config())
    scale = np.abs(expected).max()
    ours = logits(llm, variables(params, lora.adapter, lora.scale), ids)
    np.testing.assert_allclose(ours / scale, expected / scale, atol=1e-5)  # as above


def test_saved_and_loaded_is_the_same(adapter, tmp_path):
    save_adapter(tmp_path / "adapter", tiny_llm.config(), LoRA(adapter, ALPHA), dropout=0.1, base_model="m")
    lora = load_adapter(tmp_path / "adapter", tiny_llm.config())
    assert lora.scale == ALPHA / RANK
    jax.tree.map(np.testing.assert_array_equal, lora.adapter, adapter)


def test_a_fresh_adapter_changes_nothing(model, ids):
    llm, params = model
    fresh = init_adapter(llm.config, RANK, jax.random.key(0))
    plain = logits(llm, {"params": params}, ids)
    np.testing.assert_array_equal(logits(llm, variables(params, fresh, 2.0), ids), plain)
    bound = HIDDEN**-0.5
    assert all(0.8 * bound < np.abs(low["a"]).max() <= bound for low in fresh.values())


def test_merging_is_the_same_as_beside(model, adapter, ids):
    llm, params = model
    beside = logits(llm, variables(params, adapter, 0.5), ids)
    merged = merge(params, adapter, 0.5)
    scale = np.abs(beside).max()
    np.testing.assert_allclose(logits(llm, {"params": merged}, ids) / scale, beside / scale, atol=1e-5)  # sum order
    assert merged["layers"]["k_proj"]["kernel"] is params["layers"]["k_proj"]["kernel"]


def test_dropout_acts_on_the_low_rank_terms_only(model, adapter, ids):
    _, params = model
    llm = OPT(tiny_llm.config(), lora_dropout=0.5)
    both = variables(params, adapter, 1.0)
    still = logits(llm, both, ids)
    live = [logits(llm, both, ids, rngs={"dropout": jax.random.key(key)}) for key in (0, 0, 1)]
    np.testing.assert_array_equal(live[0], live[1])
    assert np.abs(live[0] - live[2]).max() > 0.01 and np.abs(live[0] - still).max() > 0.01
    # Without low-rank terms there is nothing to drop.
    bare = logits(llm, {"params": params}, ids, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(bare, logits(llm, {"params": params}, ids))


def test_damaged_adapters_are_one_line(adapter, tmp_path):
    path = tmp_path / "adapter"

    def fresh():
        save_adapter(path, tiny_llm.config(), LoRA(adapter, ALPHA), dropout=0.0, base_model="m")
        return json.loads((path / CONFIG).read_text()), load_file(path / WEIGHTS)

    config, arrays = fresh()
    key = next(iter(arrays))
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ["fc1"]}, "'fc1' is not supported"),
        ({"rank_pattern": {"x": 2}}, "rank_pattern is"),
    ):
        (path / CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            load_adapter(path, tiny_llm.config())
    (path / CONFIG).write_text(json.dumps(config))
    for broken, message in (
        ({k: v for k, v in arrays.items() if k != key}, "is missing"),
        ({**arrays, "more": np.zeros(1, np.float32)}, "unknown weight 'more'"),
        ({**arrays, key: np.zeros((1, 1), np.float32)}, "has shape"),
    ):
        save_file(broken, path / WEIGHTS)
        with pytest.raises(UserError, match=message):
            load_adapter(path, tiny_llm.config())
    (path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(path, tiny_llm.config())
    (path / CONFIG).unlink()
    with pytest.raises(UserError, match="No such file"):
        load_adapter(path, tiny_llm.config())
