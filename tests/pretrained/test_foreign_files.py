"""Other people's models: what is not as expected is read where there is no doubt, else named in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from allmrec_jax.assets import ASSETS
from allmrec_jax.cli import allmrec
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.text_encoder import encode_texts
from allmrec_jax.pretrained import hub
from allmrec_jax.pretrained.llm import (
    check_llm,
    llm_hash,
    load_checkpoint,
    load_config,
    load_tokenizer,
    save_checkpoint,
)
from allmrec_jax.pretrained.longformer import load_longformer
from allmrec_jax.pretrained.peft import LoRA, load_adapter, save_adapter
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 267954768\n"


@pytest.fixture(scope="module")
def params() -> Any:
    return init_params(tiny_llm.config(), jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, params: Any) -> Path:
    path = tmp_path_factory.mktemp("llm") / "tiny"
    save_checkpoint(path, tiny_llm.config(), params, tiny_llm.tokenizer())
    return path


@pytest.fixture
def llm(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "llm")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return shutil.copytree(ASSETS / "sbert-nano", tmp_path / "encoder")


def refusal(load: Callable[..., Any], *args: Any) -> str:
    """The one line that a user gets."""
    with pytest.raises(UserError) as caught:
        load(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    return message


def write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def pickled(llm: Path, body: Any) -> Path:
    (llm / "model.safetensors").unlink(missing_ok=True)
    torch.save(body, llm / "pytorch_model.bin")
    return llm


def state(llm: Path) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in load_file(llm / "model.safetensors").items()}


def assert_same(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# Git LFS


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_lfs_pointers_of_a_language_model(llm: Path, name: str) -> None:
    if name == "pytorch_model.bin":
        (llm / "model.safetensors").unlink()
    (llm / name).write_text(POINTER)
    assert (
        refusal(load_checkpoint, llm)
        == f"{llm / name}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_lfs_pointers_of_a_tokenizer_are_seen_before_training(llm: Path, name: str) -> None:
    (llm / name).write_text(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(check_llm, llm, np.float32)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"])
def test_lfs_pointers_of_a_sentence_encoder(encoder: Path, name: str) -> None:
    (encoder / name).write_text(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(load_sentence_encoder, encoder)


def test_lfs_pointer_of_an_adapter(tmp_path: Path) -> None:
    adapter = {"q_proj": {"a": jnp.ones((2, 16, 3)), "b": jnp.ones((2, 3, 16))}}
    save_adapter(tmp_path / "adapter", tiny_llm.config(), LoRA(adapter, 6.0), dropout=0.0, base_model="m")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(POINTER)
    assert "a Git LFS pointer" in refusal(load_adapter, tmp_path / "adapter", tiny_llm.config())


# A tokenizer of another model


def test_a_tokenizer_larger_than_the_words_is_refused_before_any_weight(llm: Path) -> None:
    edit_json(llm / "config.json", vocab_size=300)
    (llm / "model.safetensors").write_bytes(b"never read")
    assert "the tokenizer has 400 tokens, the model's table of words 300 rows" in refusal(check_llm, llm, np.float32)


def test_an_encoder_tokenizer_larger_than_the_words(encoder: Path) -> None:
    edit_json(encoder / "config.json", vocab_size=1000)
    message = refusal(load_sentence_encoder, encoder)
    assert "the tokenizer has 2844 tokens, the model's table of words 1000 rows" in message


# JSON that is not what it should be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": "300"}, "vocab_size is '300': should be a whole number, is a text"),
        ({"hidden_size": -16}, "hidden_size is -16: should be a whole number of 1 or more"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000: should be a whole number of 1024 or less"),
        (
            {"vocab_size": 10**30},
            "vocab_size is 1000000000000000000000000000000: should be a whole number of 16777216 or less",
        ),
        ({"ffn_dim": 2.5}, "ffn_dim is 2.5: should be a whole number"),
        ({"num_attention_heads": [2]}, "num_attention_heads is [2]: should be a whole number, is a list"),
        ({"do_layer_norm_before": 1}, "do_layer_norm_before is 1: should be true or false, is a whole number"),
        ({"eos_token_id": [2, 3]}, "eos_token_id is [2, 3]: should be a whole number, is a list"),
        ({"model_type": None}, "no 'model_type'"),
        ({"num_attention_heads": 5}, "hidden_size 16 is not a multiple of num_attention_heads 5"),
    ],
)
def test_a_language_models_configuration(llm: Path, change: dict[str, Any], message: str) -> None:
    edit_json(llm / "config.json", **change)
    assert message in refusal(load_config, llm)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "the file is [1]: should be an object, is a list"),
        ("null", "the file is None"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("1" * 10_000, "not JSON"),
        ("\x00", "not JSON"),
        ("", "not JSON"),
    ],
    ids=["list", "null", "deep list", "deep object", "digits", "binary", "empty"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_any_json(llm: Path, name: str, text: str, message: str) -> None:
    (llm / name).write_text(text)
    found = refusal(check_llm, llm, np.float32)
    assert name in found or "not a tokenizer that can be read" in found
    assert name == "tokenizer.json" or message in found


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("config.json", {"model_type": "bert", "hidden_size": "24"}, "hidden_size is '24'"),
        ("config.json", {"model_type": "bert", "hidden_dropout_prob": 7}, "hidden_dropout_prob is 7"),
        ("config.json", {"model_type": ["bert"]}, "model_type is ['bert']"),
        ("config.json", {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 7}, "do not divide width 64"),
        ("modules.json", {"0": {}}, "the file is {'0': {}}: should be a list, is an object"),
        ("modules.json", [{"path": ""}], "no 'type' in [0]"),
        ("modules.json", [["Transformer"]], "[0] is ['Transformer']: should be an object"),
        (
            "modules.json",
            [{"type": "a.Transformer", "path": "../other"}],
            "should be the name of something inside",
        ),
        (
            "modules.json",
            [{"type": "a.Pooling", "path": "/etc"}],
            "should be the name of something inside",
        ),
        ("1_Pooling/config.json", [], "the file is []"),
        ("1_Pooling/config.json", {"pooling_mode": {"mean": True}}, "pooling_mode"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ("tokenizer_config.json", {"model_max_length": -1}, "model_max_length is -1"),
        ("tokenizer_config.json", [], "the file is []"),
        ("tokenizer.json", {"model": {"type": "Other"}}, "not a tokenizer that can be read"),
        ("tokenizer.json", [], "the file is []: should be an object, is a list"),
    ],
)
def test_a_sentence_encoders_files(encoder: Path, name: str, body: Any, message: str) -> None:
    write_json(encoder / name, body)
    found = refusal(load_sentence_encoder, encoder)
    assert name in found and message in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": "4"}, "r is '4'"),
        ({"r": -1}, "r is -1"),
        ({"lora_alpha": None}, "no 'lora_alpha'"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear': should be a list, is a text"),
    ],
)
def test_an_adapters_configuration(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    adapter = {"q_proj": {"a": jnp.ones((2, 16, 3)), "b": jnp.ones((2, 3, 16))}}
    save_adapter(tmp_path, tiny_llm.config(), LoRA(adapter, 6.0), dropout=0.0, base_model="m")
    edit_json(tmp_path / "adapter_config.json", **change)
    assert message in refusal(load_adapter, tmp_path, tiny_llm.config())


def test_a_longformers_configuration(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "longformer", "attention_window": [512, "512"]})
    assert "attention_window" in refusal(load_longformer, tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "longformer", "attention_window": 511})
    assert f"{tmp_path / 'config.json'}: Longformer: attention_window 511" in refusal(load_longformer, tmp_path)


# Weights in other wrappings


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {key: torch.nn.Parameter(value) for key, value in tensors.items()},
        lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
        lambda tensors: {f"_orig_mod.module.{key}": value for key, value in tensors.items()},
        lambda tensors: {f"base_model.model.{key}": value for key, value in tensors.items()},
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors, "optimizer": {"state": {}, "param_groups": []}},
    ],
    ids=["Parameters", "DataParallel", "compiled", "PEFT", "Lightning", "with the optimizer"],
)
def test_what_is_read_for_there_is_no_doubt(llm: Path, params: Any, wrap: Callable[[Any], Any]) -> None:
    assert_same(load_checkpoint(pickled(llm, wrap(state(llm))))[1], params)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([torch.ones(1)], "holds a list, not a dictionary of tensors by name"),
        (torch.ones(1), "holds a Tensor, not a dictionary"),
        ({}, "holds a dictionary of nothing"),
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, "holds a dictionary of 'a', 'b', not"),
        ({"a": {"b": {"x": torch.ones(1)}}}, "holds a dictionary of 'a', not"),
        ({"w": torch.ones(1), "epoch": 3}, "holds a dictionary of 'w', 'epoch', not"),
        (
            {f"encoder.{i}": torch.ones(1) for i in range(9)},
            "it holds 'encoder.0', 'encoder.1', 'encoder.2' and 6 more",
        ),
        ({"q.base_layer.weight": torch.ones(1)}, "belongs to a PEFT adapter beside the model; merge it first"),
    ],
    ids=["list", "tensor", "empty", "two", "deep", "mixed", "another model", "adapter"],
)
def test_other_pickles_are_named_by_what_they_hold(llm: Path, body: Any, message: str) -> None:
    assert message in refusal(load_checkpoint, pickled(llm, body))


@pytest.mark.parametrize("kind", ["int", "sparse", "huge", "meta"])
def test_tensors_of_another_kind(llm: Path, kind: str) -> None:
    tensors = state(llm)
    key = "model.decoder.final_layer_norm.bias"
    size = len(tensors[key])
    tensors[key] = {
        "int": torch.ones(size, dtype=torch.int64),
        "sparse": torch.ones(size).to_sparse(),
        "huge": torch.ones(1).expand(2**40),
        "meta": torch.ones(size, device="meta"),
    }[kind]
    message = refusal(load_checkpoint, pickled(llm, tensors))
    assert key in message
    said = {"int": "int64", "sparse": "sparse", "huge": "has shape (1099511627776,)", "meta": "nothing but a shape"}
    assert said[kind] in message


def test_integers_in_safetensors(llm: Path) -> None:
    tensors = load_file(llm / "model.safetensors")
    key = "model.decoder.final_layer_norm.bias"
    save_file({**tensors, key: tensors[key].astype(np.int8)}, llm / "model.safetensors")
    assert f"weight {key} is stored as I8" in refusal(load_checkpoint, llm)


def test_bfloat16_in_safetensors(llm: Path, params: Any) -> None:
    from safetensors.torch import save_file as save_torch

    save_torch({key: value.bfloat16() for key, value in state(llm).items()}, llm / "model.safetensors")
    found = load_checkpoint(llm)[1]
    assert_same(found, jax.tree.map(lambda x: x.astype("bfloat16").astype(np.float32), params))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../secret.safetensors"}},
            "should be the name of something inside",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "should be the name of something inside"),
        ({"weight_map": {"a": ".."}}, "should be the name of something inside"),
        ({"weight_map": {"a": 3}}, "weight_map[...] is {'a': 3}: should be a text"),
        ({"weight_map": ["a"]}, "weight_map is ['a']: should be an object"),
        ({"weight_map": {}}, "weight_map is {}: should be an object, 1 or more long"),
        ({}, "no 'weight_map'"),
    ],
)
def test_an_index_names_files_beside_it(llm: Path, index: Any, message: str) -> None:
    write_json(llm / "model.safetensors.index.json", index)
    assert message in refusal(load_checkpoint, llm)


# Layouts of directories


def test_the_transformer_may_lie_in_a_folder_of_its_own(encoder: Path) -> None:
    """As sentence-transformers wrote it up to its second version."""
    vectors = encode_texts(load_sentence_encoder(encoder), ["a lost comet"])
    inner = encoder / "0_Transformer"
    inner.mkdir()
    for file in [path for path in encoder.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename(inner / file.name)
    modules = json.loads((encoder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    write_json(encoder / "modules.json", modules)
    np.testing.assert_array_equal(encode_texts(load_sentence_encoder(encoder), ["a lost comet"]), vectors)


def test_a_sharded_encoder(encoder: Path) -> None:
    vectors = encode_texts(load_sentence_encoder(encoder), ["a lost comet"])
    tensors = load_file(encoder / "model.safetensors")
    (encoder / "model.safetensors").unlink()
    names = {key: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: value for key, value in tensors.items() if names[key] == name}, encoder / name)
    write_json(encoder / "model.safetensors.index.json", {"weight_map": names})
    np.testing.assert_array_equal(encode_texts(load_sentence_encoder(encoder), ["a lost comet"]), vectors)


def test_an_adapters_directory_is_no_model(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "facebook/opt-125m", "r": 8})
    result = CliRunner().invoke(allmrec, ["plan", "--llm", str(tmp_path)])
    message = refusal(load_config, tmp_path) if result.exception is None else str(result.exception)
    assert "a PEFT adapter of facebook/opt-125m, not a model; merge it first" in message


def test_a_file_is_no_directory(llm: Path) -> None:
    assert "a file; give the directory that holds it" in refusal(load_config, str(llm / "model.safetensors"))


# The hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, tuple[str, ...], bool]]:
    """What the hub is asked for; it has the encoder and the language model of a folder, and can be reached."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls: list[tuple[str, tuple[str, ...], bool]] = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append((name, tuple(allow_patterns), local_files_only))
        source, copy = tmp_path / "hub" / name, tmp_path / "cache" / name
        if local_files_only or not source.is_dir():
            raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
        for pattern in allow_patterns:
            for file in source.rglob(pattern):
                (copy / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy / file.relative_to(source))
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    return calls


def test_a_bare_name_is_sentence_transformers(asked: list, tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "sbert-nano", tmp_path / "hub" / "sentence-transformers" / "all-nano")
    found = load_sentence_encoder("all-nano")
    wanted = load_sentence_encoder("sbert-nano")
    np.testing.assert_array_equal(encode_texts(found, ["a lost comet"]), encode_texts(wanted, ["a lost comet"]))
    assert {name for name, _, _ in asked} == {"sentence-transformers/all-nano"}


def test_weights_come_in_one_format_and_after_all_else(asked: list, saved: Path, tmp_path: Path, params: Any) -> None:
    there = shutil.copytree(saved, tmp_path / "hub" / "somebody" / "opt")
    (there / "pytorch_model.bin").write_bytes(b"never fetched")
    assert load_config("somebody/opt") == tiny_llm.config()
    assert len(load_tokenizer("somebody/opt")) == 400
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert_same(load_checkpoint("somebody/opt")[1], params)
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert llm_hash("somebody/opt") == llm_hash(saved)


def test_shards_are_fetched_by_the_index(asked: list, saved: Path, tmp_path: Path, params: Any) -> None:
    there = shutil.copytree(saved, tmp_path / "hub" / "somebody" / "opt")
    (there / "model.safetensors").rename(there / "part-1.safetensors")
    write_json(
        there / "model.safetensors.index.json",
        {"weight_map": dict.fromkeys(load_file(there / "part-1.safetensors"), "part-1.safetensors")},
    )
    assert_same(load_checkpoint("somebody/opt")[1], params)


def test_a_hub_without_weights(asked: list, saved: Path, tmp_path: Path) -> None:
    there = shutil.copytree(saved, tmp_path / "hub" / "somebody" / "opt")
    (there / "model.safetensors").unlink()
    assert "LLM somebody/opt: no weights on the hub" in refusal(load_checkpoint, "somebody/opt")


@pytest.mark.parametrize(
    ("load", "name", "meant", "here"),
    [
        (
            load_config,
            "facebook/opt-125m",
            "facebook/opt-125m",
            "--llm opt-nano, a directory, a GGUF file, or --preset small",
        ),
        (
            load_sentence_encoder,
            "nq-distilbert-base-v1",
            "sentence-transformers/nq-distilbert-base-v1",
            "--sentence-encoder sbert-nano, a directory, or --preset small",
        ),
    ],
)
def test_a_hub_that_cannot_be_reached(
    asked: list, monkeypatch: pytest.MonkeyPatch, load: Any, name: str, meant: str, here: str
) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    message = refusal(load, name)
    assert meant in message and "cannot be reached" in message and here in message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(load, name)
    assert meant in message and "HF_HUB_OFFLINE is set" in message and here in message
    assert {local for _, _, local in asked} == {True}


def test_a_silent_hub_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that never answers: nothing but the first question is asked, and that is given up."""
    import threading

    calls: list[str] = []
    never = threading.Event()

    class Session:
        def head(self, url: str, timeout: float) -> None:
            calls.append(url)
            never.wait()

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr(hub, "PATIENCE", 0.01)
    hub._reachable.cache_clear()
    try:
        for _ in range(2):
            assert "cannot be reached" in refusal(load_config, "allmrec-tests/no-such-model")
        assert len(calls) == 1
    finally:
        never.set()
        hub._reachable.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opt-125m", "did you mean facebook/opt-125m?"),
        ("gpt", "what works here: --llm opt-nano"),
        ("a b/c!", "no name of a model on the hub"),
    ],
)
def test_names_that_the_hub_cannot_have(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    assert message in refusal(load_config, name)
