"""GGUF files: configuration, weights of every type and tokenizer, and what damaged ones are answered."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
import tiny_families
import tiny_llm

from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import FAMILIES, family_of, init_params
from allmrec_jax.models.llm.rotary import Rope
from allmrec_jax.pretrained.gguf import gguf_config, gguf_tensors
from allmrec_jax.pretrained.gguf_tokenizer import gguf_tokenizer
from allmrec_jax.pretrained.llm import check_llm, llm_hash, load_checkpoint, load_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = [name for name in FAMILIES if FAMILIES[name].load().gguf]


def model_of(model_type):
    config = tiny_families.config(model_type, **SIZES, query_pre_attn_scalar=SIZES["head_dim"])
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
    return config, jax.tree.map(np.add, params, noise)


def tensors_of(config, params):
    """The file's tensors by name: pairs of rotated rows side by side, norms above the checkpoint's."""
    family = family_of(config)
    names = {module: name for name, module in family.gguf.names.items()}
    found = {}
    for leaf in family.layout(config):
        value = params
        for part in leaf.path:
            value = value[part]
        module, _, kind = leaf.key.rpartition(".")
        for layer, _ in leaf.keys(config):
            one = np.asarray(value if layer is None else value[layer])
            one = one.T if leaf.transposed else one
            if module.rpartition(".")[2] in family.gguf.interleaved:
                one = one.reshape(-1, 2, config.head_dim // 2, *one.shape[1:]).swapaxes(1, 2).reshape(one.shape)
            if "norm" in module:
                one = one + np.float32(family.gguf.norm_offset)
            found[f"{names[module].format(layer=layer)}.{kind}"] = np.ascontiguousarray(one)
    return found


def write(path, config, tensors, metadata=(), tokenizer=None):
    """A file as llama.cpp's converter writes it, but for the metadata that is given otherwise."""
    form = family_of(config).gguf
    writer = gguf.GGUFWriter(path, form.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.rope_theta)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    tokenizer = tokenizer or tiny_llm.tokenizer()
    state = tokenizer.backend_tokenizer
    tokens = [state.id_to_token(number) for number in range(len(tokenizer))]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if number < 3 else 1 for number in range(len(tokens))],
        "merges": merges_of(state),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "padding_token_id": config.pad_token_id,
        **dict(metadata),
    }
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
    writer.add_chat_template("{{ messages }}")
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges_of(state):
    return [" ".join(merge) for merge in json.loads(state.to_str())["model"]["merges"]]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_configuration_and_weights_are_the_models(model_type, tmp_path):
    config, params = model_of(model_type)
    path = write(tmp_path / "model.gguf", config, tensors_of(config, params))
    loaded, weights = load_checkpoint(path)
    assert loaded == config
    # A norm that is stored with 1 added to it comes back rounded once.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-7), weights, params)
    assert len(llm_hash(path)) == 64


def test_the_tokenizer_and_its_chat_template(tmp_path):
    config, params = model_of("llama")
    path = write(tmp_path / "model.gguf", config, tensors_of(config, params))
    ours, theirs = load_tokenizer(path), tiny_llm.tokenizer()
    for text in ("Red Fox, 12 times", " Saddle & Spur</s>", 'naïve — "x"', "<pad>a"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == "{{ messages }}"
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        config.bos_token_id,
        config.eos_token_id,
        config.pad_token_id,
    )
    begins = write(tmp_path / "begins.gguf", config, {}, {"add_bos_token": True})
    assert gguf_tokenizer(begins)("Red")["input_ids"][0] == config.bos_token_id


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
WORDS = {"▁": -9.0, "r": -9.1, "e": -9.2, "d": -9.3, "re": -2.0, "ed": -1.0, "▁r": -3.0, "▁red": -4.0, "red": -5.0}


@pytest.mark.parametrize(
    ("text", "prefix", "pieces"),
    [
        # SentencePiece joins the neighbours of the highest score first: "ed" before "▁r" and "re".
        ("red", True, ["▁red"]),
        ("red", False, ["red"]),
        ("red red", False, ["red", "▁red"]),
        ("rere", False, ["re", "re"]),
        ("é<s>", False, ["<0xC3>", "<0xA9>", "<s>"]),
    ],
)
def test_sentence_pieces_with_scores_and_bytes(text, prefix, pieces, tmp_path):
    config, _ = model_of("llama")
    tokens = PIECES + list(WORDS)
    values = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * len(PIECES) + list(WORDS.values()),
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(WORDS)],
        "unknown_token_id": 0,
        "add_bos_token": False,
        "add_space_prefix": prefix,
    }
    tokenizer = gguf_tokenizer(write(tmp_path / "model.gguf", config, {}, values))
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def types():
    """Every type that the library gives floats for."""
    found = []
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


def test_every_type_is_dequantised_by_rows(tmp_path):
    """As the library does a whole tensor, NaN for NaN: bytes are random."""
    rng, wanted = np.random.default_rng(0), {}
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((3, 2), np.float32))
    assert len(types()) >= 24
    for number, kind in enumerate(types()):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (6, 2 * size), dtype=np.uint8)
        writer.add_tensor(f"blk.{number}.ffn_up.weight", raw, raw_dtype=kind)
        with np.errstate(all="ignore"):
            wanted[f"model.layers.{number}.mlp.up_proj.weight"] = gguf.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = gguf_tensors(path)
    for key, whole in wanted.items():
        shape, read = tensors[key]
        with np.errstate(all="ignore"):
            assert shape == whole.shape
            np.testing.assert_array_equal(read(()), whole)
            np.testing.assert_array_equal(read((slice(2, 5), slice(1, 9))), whole[2:5, 1:9])


def test_llama_3_scales_positions_by_a_tensor(tmp_path):
    config, params = model_of("llama")
    rope = Rope(500000.0, "llama3", 8.0, 8192)
    divisors = (Rope(500000.0).frequencies(8)[0] / rope.frequencies(8)[0]).astype(np.float32)
    config = dataclasses.replace(config, rope=rope)
    tensors = {**tensors_of(config, params), "rope_freqs.weight": divisors}
    assert load_checkpoint(write(tmp_path / "model.gguf", config, tensors))[0] == config
    tensors["rope_freqs.weight"] = divisors * np.float32(1.1)
    with pytest.raises(UserError, match="rope_freqs"):
        gguf_config(write(tmp_path / "other.gguf", config, tensors))


def damaged(tensors, **changes):
    return {key: value for key, value in {**tensors, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blk.1.ffn_up.weight": None}, r"layers\.1\.mlp\.up_proj\.weight"),
        ({"blk.0.foo.weight": np.zeros((2, 2), np.float32)}, r"unknown weight blk\.0\.foo\.weight"),
        ({"blk.0.ffn_up.weight": np.zeros((2, 2), np.float32)}, r"layers\.0\.mlp\.up_proj\.weight has shape"),
        ({"blk.0.attn_q.weight": np.zeros((6, 32), np.float32)}, r"blk\.0\.attn_q\.weight.*pairs"),
        ({"token_embd.weight": None}, r"token_embd\.weight"),
    ],
)
def test_tensors_that_are_missing_unknown_or_of_another_shape(changes, message, tmp_path):
    config, params = model_of("llama")
    path = write(tmp_path / "model.gguf", config, damaged(tensors_of(config, params), **changes))
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_files_that_are_no_whole_gguf(tmp_path):
    config, params = model_of("llama")
    whole = write(tmp_path / "whole.gguf", config, tensors_of(config, params)).read_bytes()
    path = tmp_path / "model.gguf"

    def answer(body):
        path.write_bytes(body)
        with pytest.raises(UserError) as raised:
            check_llm(path, np.float32)
        return str(raised.value)

    for cut in (len(whole) - 64, len(whole) // 2, 4000, 30, 9):
        assert "cut short" in answer(whole[:cut])
    assert "not a GGUF" in answer(b"PK" + whole[2:])
    assert "version 9" in answer(whole[:4] + b"\x09\0\0\0" + whole[8:])
    assert "tensors" in answer(whole[:8] + b"\xff" * 8 + whole[16:])
    assert "'gpt-x'" in answer(whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gpt-x", 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"pre": "tekken"}, "'tekken'"),
        ({"merges": ["a b c"]}, "'a b c'"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"model": "llama"}, "score"),
        ({"tokens": [f"t{number}" for number in range(5000)], "merges": ["t1 t2"]}, "t1 t2"),
        ({"tokens": [f"t{number}" for number in range(5000)], "merges": []}, "5000 tokens"),
    ],
)
def test_tokenizers_that_cannot_be_read(values, message, tmp_path):
    config, params = model_of("llama")
    path = write(tmp_path / "model.gguf", config, tensors_of(config, params), values)
    with pytest.raises(UserError, match=message):
        check_llm(path, np.float32)
