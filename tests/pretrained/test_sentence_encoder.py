"""Parity with transformers and sentence-transformers on tiny random models, and what damaged directories get."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from allmrec_jax.errors import UserError
from allmrec_jax.models.text_encoder import encode_texts, tokenize_texts
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, save_sentence_encoder

TEXTS = [
    "Title: the lost comet, Description: a galaxy far away",
    "comet",
    "",
    'He said "no"\n\tand left',
    "word " * 60,
]
# float32 sums in another order: a few units in the last place of vectors of size about 1.
TOLERANCE = 1e-5


def tiny_model(family, vocabulary):
    """A random model of the family. A large spread makes attention sharp, so that a wrong scale or mask shows."""
    import transformers

    if family == "distilbert":
        return transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=vocabulary, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=48,
                initializer_range=0.2,
            )
        )  # fmt: skip
    names = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
    name = names.get(family, "MPNet")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocabulary, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=48, initializer_range=0.2, hidden_act="gelu_new", pad_token_id=int(family != "bert"),
    )  # fmt: skip
    return getattr(transformers, f"{name}Model")(config)


def make_directory(path, family="distilbert", pooling="mean", normalize=False, weights="safetensors"):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *',.:"', "comet"]
    if family not in ("bert", "distilbert"):
        words[:2] = words[1::-1]  # these families pad with token 1
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    hugging = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    model = tiny_model(family, len(words))
    model.save_pretrained(path / "hf")
    hugging.save_pretrained(path / "hf")
    modules = [Transformer(str(path / "hf"), max_seq_length=32), Pooling(24, pooling_mode=pooling)]
    SentenceTransformer(modules=modules + [Normalize()] * normalize).save(str(path / "st"))
    if weights == "bin":
        file = path / "st" / "model.safetensors"
        torch.save(load_file(file), path / "st" / "pytorch_model.bin")
        file.unlink()
    return path / "st"


@pytest.mark.parametrize(
    ("family", "pooling", "normalize", "weights"),
    [
        ("distilbert", "mean", False, "safetensors"),
        ("distilbert", "cls", True, "bin"),
        ("bert", "max", False, "safetensors"),
        ("bert", "mean", True, "bin"),
        ("roberta", "mean", False, "safetensors"),
        ("xlm-roberta", "mean", True, "safetensors"),
        ("camembert", "cls", False, "bin"),
        ("mpnet", "mean", True, "safetensors"),
    ],
)
def test_vectors_equal_sentence_transformers_before_and_after_saving(tmp_path, family, pooling, normalize, weights):
    from sentence_transformers import SentenceTransformer

    path = make_directory(tmp_path, family, pooling, normalize, weights)
    encoder = load_sentence_encoder(path)
    ours = encode_texts(encoder, TEXTS)
    np.testing.assert_allclose(ours, SentenceTransformer(str(path)).encode(TEXTS), atol=TOLERANCE)

    save_sentence_encoder(tmp_path / "again", encoder)
    again = SentenceTransformer(str(tmp_path / "again"))
    assert again.max_seq_length == 32
    np.testing.assert_allclose(again.encode(TEXTS), ours, atol=TOLERANCE)
    assert fingerprint(load_sentence_encoder(tmp_path / "again")) == fingerprint(encoder)


def test_gradient_equals_torch(tmp_path):
    import jax
    from transformers import DistilBertModel

    path = make_directory(tmp_path)
    encoder = load_sentence_encoder(path)
    table = tokenize_texts(encoder, TEXTS[:2])
    target = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)

    def loss(params):
        return (encoder.model.apply({"params": params}, table.ids, table.lengths) * target).sum()

    gradient = jax.grad(loss)(encoder.params)

    model = DistilBertModel.from_pretrained(path).eval()
    mask = torch.tensor(np.arange(table.ids.shape[1]) < table.lengths[:, None])
    states = model(torch.tensor(table.ids), attention_mask=mask.long()).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    (mean * torch.tensor(target)).sum().backward()
    reference = dict(model.named_parameters())
    for ours, theirs in [
        (gradient["layer_0"]["q"]["kernel"], reference["transformer.layer.0.attention.q_lin.weight"].grad.T),
        (gradient["layer_1"]["down"]["kernel"], reference["transformer.layer.1.ffn.lin2.weight"].grad.T),
        (gradient["position_embeddings"]["embedding"], reference["embeddings.position_embeddings.weight"].grad),
    ]:
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * float(theirs.abs().max()))


def test_a_plain_hugging_face_directory_and_a_pretraining_prefix_are_read(tmp_path):
    path = make_directory(tmp_path, "bert")
    for name in ("modules.json", "1_Pooling/config.json"):
        (path / name).unlink()
    vectors = encode_texts(load_sentence_encoder(path), TEXTS)
    weights = {f"bert.{key}": value for key, value in load_file(path / "model.safetensors").items()}
    weights["cls.predictions.bias"] = torch.zeros(3)
    save_file(weights, path / "model.safetensors")
    np.testing.assert_array_equal(encode_texts(load_sentence_encoder(path), TEXTS), vectors)


def damage_weights(change):
    def damage(path):
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors")

    return damage


def edit_json(name, **values):
    def damage(path):
        file = path / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights(lambda w: w.pop("embeddings.LayerNorm.bias")), r"embeddings\.LayerNorm\.bias is missing"),
        (damage_weights(lambda w: w.update(extra=torch.zeros(1))), "unknown weight extra"),
        (
            damage_weights(lambda w: w.update({"transformer.layer.1.ffn.lin1.bias": torch.zeros(7)})),
            r"lin1\.bias has shape \(7,\), config\.json asks for \(40,\)",
        ),
        (edit_json("config.json", model_type="t5"), r"config\.json: model type 't5' is not supported; known: dist"),
        (edit_json("1_Pooling/config.json", include_prompt=False), "include_prompt is false"),
        (
            lambda path: (path / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}'),
            "default_prompt_name 'query' is none of the prompts",
        ),
        (edit_json("1_Pooling/config.json", pooling_mode="lasttoken"), "pooling lasttoken is not supported"),
        (lambda path: (path / "config.json").unlink(), r"config\.json: cannot be read \(No such file"),
        (lambda path: (path / "config.json").write_text("{"), r"config\.json: .*not JSON"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\x00" * 9), r"model\.safetensors: not a whole"),
        (lambda path: (path / "model.safetensors").unlink(), r"no weights there \(looked for model"),
        (lambda path: (path / "tokenizer.json").unlink(), "neither tokenizer.json nor vocab.txt"),
        (
            lambda path: (path / "modules.json").write_text('[{"type": "a.models.Dense", "path": ""}]'),
            "module Dense is not supported",
        ),
    ],
)  # fmt: skip
def test_a_damaged_directory_is_one_line_that_names_the_file(tmp_path, damage, message):
    path = make_directory(tmp_path)
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        load_sentence_encoder(path)
    assert "\n" not in str(error.value)


def test_a_pickled_object_is_never_executed(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    path = make_directory(tmp_path)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a whole PyTorch file of plain tensors"):
        load_sentence_encoder(path)


def test_length_limits(tmp_path):
    encoder = load_sentence_encoder(make_directory(tmp_path))
    table = tokenize_texts(encoder, TEXTS, max_length=8)
    assert table.ids.shape == (5, 8) and list(table.lengths) == [8, 3, 2, 8, 8]
    assert encoder.max_length == 32
    with pytest.raises(UserError, match="2 tokens leaves no room"):
        tokenize_texts(encoder, TEXTS, max_length=2)


def test_an_unknown_name_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        load_sentence_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_long_texts_take_all_positions_and_no_more(tmp_path, family):
    from sentence_transformers import SentenceTransformer

    path = make_directory(tmp_path, family)
    edit_json("sentence_bert_config.json", max_seq_length=512)(path)
    edit_json("tokenizer_config.json", model_max_length=46)(path)
    encoder = load_sentence_encoder(path)
    assert encoder.max_length == 46  # of 48 rows, two stand before the first token's
    theirs = SentenceTransformer(str(path))
    theirs.max_seq_length = 46
    np.testing.assert_allclose(encode_texts(encoder, TEXTS), theirs.encode(TEXTS), atol=TOLERANCE)


def test_distances_share_biases_as_in_transformers():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    from allmrec_jax.models.text_encoder import distance_bucket

    distance = torch.arange(512)[None] - torch.arange(512)[:, None]
    theirs = MPNetEncoder.relative_position_bucket(distance, num_buckets=32)
    np.testing.assert_array_equal(distance_bucket(512, 32), theirs)


def test_prompts_are_those_of_sentence_transformers_and_stay_with_a_saved_encoder(tmp_path):
    from sentence_transformers import SentenceTransformer

    path = make_directory(tmp_path)
    prompts = {"prompts": {"query": "query: ", "passage": "comet: "}, "default_prompt_name": "passage"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder, theirs = load_sentence_encoder(path), SentenceTransformer(str(path))
    for ours, chosen in (
        (encoder, {}),
        (encoder.prompted("query"), {"prompt_name": "query"}),
        (encoder.prompted("a word: "), {"prompt": "a word: "}),
    ):
        np.testing.assert_allclose(encode_texts(ours, TEXTS), theirs.encode(TEXTS, **chosen), atol=TOLERANCE)
    assert fingerprint(encoder) != fingerprint(encoder.prompted("query"))
    with pytest.raises(UserError, match=r"no prompt is named 'pasage' \(there are: query, passage\)"):
        encoder.prompted("pasage")

    save_sentence_encoder(tmp_path / "again", encoder.prompted("query"))
    again = load_sentence_encoder(tmp_path / "again")
    assert again.prompt == "query: " and fingerprint(again) == fingerprint(encoder.prompted("query"))
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "again")).encode(TEXTS), encode_texts(again, TEXTS), atol=TOLERANCE
    )
