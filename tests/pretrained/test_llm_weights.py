import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.pretrained.llm import llm_hash, load_checkpoint, load_tokenizer, save_checkpoint

CONFIG = OPTConfig(300, 16, 2, 2, 24, 20, 8, do_layer_norm_before=False)


@pytest.fixture(scope="module")
def params():
    params = init_params(CONFIG, jax.random.key(3))
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape) * 0.1, params)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    bpe.train_from_iterator(
        ["The quiet river", "a red river"],
        trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, params, tokenizer):
    path = tmp_path_factory.mktemp("llm") / "tiny"
    save_checkpoint(path, CONFIG, params, tokenizer)
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_saved_directory_loads_here_and_in_transformers(saved, params):
    config, loaded = load_checkpoint(saved)
    assert config == CONFIG
    assert_same(loaded, params)
    hf, report = transformers.OPTForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    np.testing.assert_array_equal(
        hf.model.decoder.layers[1].fc1.weight.T.numpy(force=True), params["layers"]["fc1"]["kernel"][1]
    )


def test_half_precision_halves_the_file_and_keeps_rounded_values(tmp_path, saved, params, tokenizer):
    save_checkpoint(tmp_path / "half", CONFIG, params, tokenizer, jnp.float16)
    half, full = tmp_path / "half" / "model.safetensors", saved / "model.safetensors"
    assert half.stat().st_size < 0.6 * full.stat().st_size
    _, loaded = load_checkpoint(tmp_path / "half")
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params))


def test_dtype_of_parameters(saved, params):
    _, loaded = load_checkpoint(saved, jnp.bfloat16)
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_without_a_mesh_parameters_stay_uncommitted(saved):
    """Beside a training's own arrays, committed ones would have its step compiled twice."""
    _, loaded = load_checkpoint(saved)
    assert not any(leaf.committed for leaf in jax.tree.leaves(loaded))


def test_tokenizer_survives(saved, tokenizer):
    loaded = load_tokenizer(saved)
    text = 'The quiet "river" \n [CandidateEmb] 🎬'
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert loaded.decode(ids) == text
    assert loaded.eos_token_id == 2


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded bin", "bin", "bin bfloat16", "without prefix"])
def test_every_layout_of_weight_files(layout, directory, params):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    if layout == "without prefix":  # as the oldest hub files have it, the head stored beside the table
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
        tensors["lm_head.weight"] = tensors["decoder.embed_tokens.weight"]
        save_file(tensors, directory / "model.safetensors")
    elif layout == "sharded safetensors":
        write_shards(directory, tensors, "model", "safetensors", save_file)
    else:
        as_torch = {key: torch.tensor(value) for key, value in tensors.items()}
        if layout == "sharded bin":
            write_shards(directory, as_torch, "pytorch_model", "bin", torch.save)
        elif layout == "bin":
            torch.save(as_torch, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        else:
            half = {key: value.bfloat16() for key, value in as_torch.items()}
            torch.save(half, directory / "pytorch_model.bin")
            params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same(load_checkpoint(directory)[1], params)


def write_shards(directory, tensors, stem, suffix, save):
    keys = sorted(tensors)
    shards = {f"{stem}-{n + 1:05d}-of-00002.{suffix}": keys[n::2] for n in range(2)}
    for name, part in shards.items():
        save({key: tensors[key] for key in part}, directory / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in shards.items() for key in part}}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return list(shards)


def refuses(path, *words):
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def edit_weights(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_missing_directory_config_and_weights(directory):
    refuses(directory / "nowhere", "nowhere", "not a directory")
    (directory / "model.safetensors").unlink()
    refuses(directory, "no weights", "model.safetensors")
    (directory / "config.json").unlink()
    refuses(directory, "config.json", "No such file")


def test_missing_shard(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = write_shards(directory, tensors, "model", "safetensors", save_file)
    (directory / shards[1]).unlink()
    refuses(directory, shards[1], "shard is missing")


def test_shard_without_a_key_that_the_index_promises(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = write_shards(directory, tensors, "model", "safetensors", save_file)
    part = load_file(directory / shards[0])
    key = next(iter(part))
    del part[key]
    save_file(part, directory / shards[0])
    refuses(directory, shards[0], key, "missing")


def test_key_in_two_shards(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = write_shards(directory, tensors, "model", "safetensors", save_file)
    key = next(iter(load_file(directory / shards[0])))
    part = load_file(directory / shards[1])
    save_file({**part, key: tensors[key]}, directory / shards[1])
    refuses(directory, shards[1], key, shards[0])


def test_missing_key(directory):
    edit_weights(directory, lambda tensors: tensors.pop("model.decoder.layers.1.fc2.bias"))
    refuses(directory, "layers.1.fc2.bias", "missing")


@pytest.mark.parametrize("key", ["model.decoder.layers.2.fc1.bias", "model.decoder.final_layer_norm.weight", "other"])
def test_unknown_key(directory, key):
    edit_weights(directory, lambda tensors: tensors.update({key: np.zeros(16, np.float32)}))
    refuses(directory, "model.safetensors", key, "unknown")


def test_misshaped_key(directory):
    edit_weights(
        directory, lambda tensors: tensors.update({"model.decoder.layers.0.fc1.bias": np.zeros(23, np.float32)})
    )
    refuses(directory, "model.safetensors", "layers.0.fc1.bias", "(23,)", "(24,)")


def test_untied_head(directory):
    edit_weights(directory, lambda tensors: tensors.update({"lm_head.weight": np.ones((300, 8), np.float32)}))
    refuses(directory, "lm_head.weight", "tied")


def test_damaged_files(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuses(directory, "model.safetensors", "not a whole")
    weights.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut")
    refuses(directory, "pytorch_model.bin", "not a whole")
    (directory / "config.json").write_text("{")
    refuses(directory, "config.json", "JSON")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickle was executed')",))


def test_a_pickle_is_never_executed(directory):
    (directory / "model.safetensors").unlink()
    torch.save({"decoder.embed_tokens.weight": Evil()}, directory / "pytorch_model.bin")
    refuses(directory, "pytorch_model.bin", "not a whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bloom"),
        ("activation_function", "gelu"),
        ("tie_word_embeddings", False),
        ("num_attention_heads", 3),
    ],
)
def test_other_architectures_are_refused(directory, key, value):
    body = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**body, key: value}))
    refuses(directory, "config.json", key)


def test_missing_tokenizer(directory):
    for file in directory.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(directory)


def test_hub_name_when_the_hub_is_out_of_reach(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuses("allmrec-tests/no-such-model", "allmrec-tests/no-such-model", "hub")


def test_a_full_disk_leaves_the_earlier_directory(directory, params, tokenizer, monkeypatch):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match="tiny"):
        save_checkpoint(directory, CONFIG, params, tokenizer)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["tiny"]


def test_hash_depends_on_weights_and_tokenizer_not_on_the_place(saved, directory):
    first = llm_hash(saved)
    assert llm_hash(directory) == first
    edit_weights(directory, lambda tensors: tensors["model.decoder.layers.0.fc1.bias"].__setitem__(0, 7))
    changed = llm_hash(directory)
    assert changed != first
    (directory / "tokenizer.json").write_text((directory / "tokenizer.json").read_text() + " ")
    assert (worded := llm_hash(directory)) != changed
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert llm_hash(directory) != worded
