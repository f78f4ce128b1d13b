"""The official code's files there and back, bit for bit; and what hostile or unfitting ones get."""

import argparse
import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from allmrec_jax import cli
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.text_encoder import SentenceEncoder, TextEncoder, TextEncoderConfig, init_params
from allmrec_jax.official import importing
from allmrec_jax.official import parameters as official
from allmrec_jax.official.layout import Layout
from allmrec_jax.official.reading import read_sasrec
from allmrec_jax.outputs import MARK
from allmrec_jax.pretrained.sentence_encoder import save_sentence_encoder
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training.stage1_export import load_stage1

NAME, USERS, ITEMS, DIM, LENGTH, WORDS = "Video_Games", 4, 9, 8, 6, 256
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 1, 2, 3], [4, 5]]
TITLES = {item: f"Title {item}" for item in range(1, ITEMS + 1) if item != 3}
DESCRIPTIONS = {item: f'about "{item}"' for item in range(1, ITEMS + 1) if item not in (3, 4)}


def tensors(shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def arguments(**changes):
    values = {"dataset": NAME, "batch_size": 64, "lr": 0.002, "maxlen": LENGTH, "hidden_units": DIM, "num_blocks": 2}
    values |= {"num_epochs": 7, "num_heads": 2, "dropout_rate": 0.25, "l2_emb": 0.0, "device": "cpu"}
    return argparse.Namespace(**(values | {"inference_only": False, "state_dict_path": None} | changes))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A DistilBERT directory of a few weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "title", "about"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = TextEncoderConfig(len(words), 16, 1, 2, 24, 32)
    made = SentenceEncoder(TextEncoder(config), init_params(config, jax.random.key(0)), tokenizer, {}, 32, True)
    path = tmp_path_factory.mktemp("encoder") / "tiny"
    save_sentence_encoder(path, made)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory, encoder):
    """The official code's files, with random weights."""
    layout = Layout(tmp_path_factory.mktemp("official"), NAME)
    for folder in (layout.sequences.parent, layout.cf_folder, layout.stage1("mlp").parent):
        folder.mkdir(parents=True)
    lines = [f"{user} {item}\n" for user, items in enumerate(SEQUENCES, 1) for item in items]
    layout.sequences.write_text("".join(lines))
    layout.texts.write_bytes(pickle.dumps({"title": TITLES, "description": DESCRIPTIONS}))
    state = tensors(official.sasrec_shapes(ITEMS, DIM, 2, LENGTH))
    about = {"user_num": USERS, "item_num": ITEMS, "args": arguments()}
    torch.save([about, state], layout.cf_folder / f"SASRec.epoch=7.lr=0.002.layer=2.head=2.hidden={DIM}.maxlen=6.pth")
    from safetensors.torch import load_file

    sbert = {f"0.auto_model.{key}": value + 0.5 for key, value in load_file(encoder / "model.safetensors").items()}
    torch.save(sbert, layout.stage1("sbert"))
    torch.save(tensors(official.autoencoder_shapes(DIM, 128)), layout.stage1("mlp"))
    torch.save(tensors(official.autoencoder_shapes(16, 128)), layout.stage1("mlp2"))
    torch.save(tensors(official.projector_shapes(DIM, WORDS)), layout.stage2("log_proj"))
    torch.save(tensors(official.projector_shapes(128, WORDS)), layout.stage2("item_proj"))
    return layout.root


@pytest.fixture(scope="module")
def imported(root, encoder, tmp_path_factory):
    """Data set and runs made by the command, as it printed them."""
    out = tmp_path_factory.mktemp("ours")
    printed = convert(root, out, "--sentence-encoder", str(encoder), "--llm", "opt-nano")
    return [Path(line) for line in printed.splitlines()]


def convert(root, out, *more):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        arguments = ["--name", NAME, "--data", str(out / "data"), "--checkpoints", str(out / "runs"), *more]
        cli.main(["convert", "from-official", str(root), *arguments])
    return printed.getvalue()


def files(root):
    return {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}


def test_data_and_runs_hold_what_the_files_hold(root, imported):
    data, cf_path, stage1_path, stage2_path = imported
    dataset = load_dataset(data)
    assert [dataset.sequence(user).tolist() for user in range(USERS)] == SEQUENCES
    assert dataset.titles[1:4] == ["Title 1", "Title 2", "No Title"] and dataset.users_raw == ["1", "2", "3", "4"]
    assert dataset.descriptions[4] == "" and dataset.descriptions[5] == 'about "5"'

    layout = Layout(root, NAME)
    state = torch.load(next(layout.cf_folder.iterdir()), weights_only=False)[1]
    cf = load_cf(cf_path, dataset)
    np.testing.assert_array_equal(cf.item_vectors(), state["item_emb.weight"].numpy())
    stage1 = load_stage1(stage1_path)
    first = torch.load(layout.stage1("mlp"))
    joint = torch.sigmoid(state["item_emb.weight"] @ first["fc1.weight"].T + first["fc1.bias"])[1:]
    # Two float32 sums of eight terms.
    np.testing.assert_allclose(stage1.joint[1:], joint.numpy(), atol=1e-6)
    assert stage1.settings.text_style == "official" and load_stage2(stage2_path).settings.style == "games"


def test_the_round_trip_is_bit_exact(root, imported, tmp_path, capsys):
    data, cf, stage1, stage2 = map(str, imported)
    runs = ["--cf", cf, "--stage1", stage1, "--stage2", stage2]
    cli.main(["convert", "to-official", "--data", data, *runs, "--out", str(tmp_path)])
    before, after = files(root), files(tmp_path)
    assert after.pop(Path(MARK), None) is not None
    assert before.keys() == after.keys() and len(capsys.readouterr().out.splitlines()) == 8
    for name in before:
        if name.suffix == ".txt":
            assert before[name].read_text() == after[name].read_text()
        elif name.suffix == ".gz":
            assert pickle.loads(before[name].read_bytes()) == pickle.loads(after[name].read_bytes())
        else:
            one, other = (torch.load(path[name], weights_only=False) for path in (before, after))
            if name.suffix == ".pth":
                assert one[0] == other[0]
                one, other = one[1], other[1]
            assert one.keys() == other.keys()
            for key in one:
                assert torch.equal(one[key].view(torch.int32), other[key].view(torch.int32)), key


def test_files_of_others_are_left_alone(root, imported, tmp_path, capsys):
    data, cf, stage1, stage2 = map(str, imported)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    shutil.copytree(root, tmp_path / "clone")
    serving = ["export", "--data", data, "--stage1", stage1, "--stage2", stage2, "--out", str(tmp_path / "thesis")]
    again = ["to-official", "--data", data, "--cf", cf, "--out", str(tmp_path / "clone")]
    over = ["from-official", str(root), "--name", NAME, "--data", str(tmp_path / "thesis")]
    for arguments in (serving, again, over):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["convert", *arguments])
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and re.search("this folder is not empty|is there already", error)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"
    assert list(files(tmp_path / "thesis")) == [Path("chapter1.tex")]
    assert {name: path.read_bytes() for name, path in files(tmp_path / "clone").items()} == {
        name: path.read_bytes() for name, path in files(root).items()
    }


def test_importing_again_finds_the_runs(root, encoder, imported):
    again = convert(root, imported[0].parent, "--sentence-encoder", str(encoder), "--llm", "opt-nano")
    assert [Path(line) for line in again.splitlines()] == imported


class Hostile:
    def __reduce__(self):
        return os.system, ("touch " + str(Path(os.environ["ALLMREC_HOSTILE"])),)


def spoiled_checkpoint(change):
    def spoil(layout):
        path = next(layout.cf_folder.iterdir())
        body = torch.load(path, weights_only=False)
        torch.save(change(body) or body, path)

    return spoil


def spoiled_state(part, change):
    def spoil(layout):
        path = layout.stage1(part) if part.startswith(("mlp", "sbert")) else layout.stage2(part)
        state = torch.load(path)
        change(state)
        torch.save(state, path)

    return spoil


BAD = {
    "hostile texts": (
        lambda layout: layout.texts.write_bytes(pickle.dumps({"title": Hostile(), "description": {}})),
        "the pickle asks for posix.system",
    ),
    "hostile checkpoint": (
        spoiled_checkpoint(lambda body: body[0].update(extra=Hostile())),
        "the pickle asks for posix.system",
    ),
    "unexpected class": (
        spoiled_checkpoint(lambda body: body[0].update(extra=Path("x"))),
        "the pickle asks for pathlib",
    ),
    "missing key": (
        spoiled_checkpoint(lambda body: body[1].pop("last_layernorm.bias") is None or None),
        "key 'last_layernorm.bias' is missing",
    ),
    "another maxlen": (
        spoiled_checkpoint(lambda body: setattr(body[0]["args"], "maxlen", 50)),
        "its arguments say maxlen 50, but its key 'pos_emb.weight' holds 6 positions",
    ),
    "extra key of SASRec": (spoiled_checkpoint(lambda body: body[1].update(x=torch.ones(1))), "unexpected key 'x'"),
    "wrong shape of SASRec": (
        spoiled_checkpoint(lambda body: body[1].update({"last_layernorm.bias": torch.ones(3)})),
        "key 'last_layernorm.bias' has shape (3,), expected (8,)",
    ),
    "another data set": (
        spoiled_checkpoint(lambda body: body[0].update(user_num=5)),
        "made for 5 users and 9 items",
    ),
    "no argument": (spoiled_checkpoint(lambda body: delattr(body[0]["args"], "num_heads")), "no usable num_heads"),
    "bad line": (
        lambda layout: layout.sequences.write_text("1 2\n1 x\n"),
        "line 2: '1 x' should be a user and an item",
    ),
    "missing user": (lambda layout: layout.sequences.write_text("1 2\n3 4\n"), "user 2 of 3 has no interaction"),
    "no texts": (lambda layout: layout.texts.unlink(), "gz: no such file"),
    "texts that take for ever to hash": (
        lambda layout: layout.texts.write_bytes(b"})" + b"2\x86" * 60 + b"K\x01u."),
        "the pickle asks for the instruction EMPTY_TUPLE",
    ),
    "a class of an old protocol": (
        lambda layout: layout.texts.write_bytes(pickle.dumps({"title": Hostile(), "description": {}}, protocol=0)),
        "the pickle asks for posix.system",
    ),
    "texts cut short": (
        lambda layout: layout.texts.write_bytes(layout.texts.read_bytes()[:-9]),
        "not a readable pickle",
    ),
    "a Git LFS pointer": (
        lambda layout: next(layout.cf_folder.iterdir()).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a Git LFS pointer, not the file itself",
    ),
    "a number of thousands of digits": (
        lambda layout: layout.sequences.write_text("1 " + "9" * 5000 + "\n"),
        "line 1: ",
    ),
    "bytes": (lambda layout: layout.sequences.write_bytes(b"1 \xff\n"), "line 1: "),
    "heads that do not divide": (
        spoiled_checkpoint(lambda body: setattr(body[0]["args"], "num_heads", 3)),
        "its num_heads 3 do not divide its hidden_units 8",
    ),
    "a negative number": (
        spoiled_checkpoint(lambda body: setattr(body[0]["args"], "maxlen", -6)),
        "no usable maxlen",
    ),
    "a rate in words": (spoiled_checkpoint(lambda body: setattr(body[0]["args"], "lr", "fast")), "no usable lr"),
    "sparse": (
        spoiled_checkpoint(lambda body: body[1].update({"last_layernorm.bias": torch.ones(8).to_sparse()})),
        "key 'last_layernorm.bias' should be a dense float32 tensor",
    ),
    "texts of another kind": (
        lambda layout: layout.texts.write_bytes(pickle.dumps({"title": {1: 7}, "description": {}})),
        "title of 1 should be a text",
    ),
}

BAD_STAGES = {
    "hostile state": (spoiled_state("mlp", lambda state: state.update(x=Hostile())), "asks for posix.system"),
    "extra key": (spoiled_state("mlp2", lambda state: state.update(fc3=torch.ones(1))), "unexpected key 'fc3'"),
    "not a checkpoint": (lambda layout: layout.stage1("sbert").write_text("text"), "sbert.pt"),
    "no file": (lambda layout: layout.stage1("sbert").unlink(), "sbert.pt: no such file"),
    "encoder of another kind": (
        spoiled_state("sbert", lambda state: state.update({"0.auto_model.new": torch.ones(1)})),
        "unknown weight new",
    ),
    "wrong shape": (
        spoiled_state("item_proj", lambda state: state.update({"1.bias": torch.ones(7)})),
        "key '1.bias' has shape (7,), expected (256,)",
    ),
    "half floats": (
        spoiled_state("log_proj", lambda state: state.update({"0.bias": state["0.bias"].half()})),
        "key '0.bias' should be a dense float32 tensor",
    ),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What a hostile pickle would make."""
    path = tmp_path / "was-run"
    monkeypatch.setenv("ALLMREC_HOSTILE", str(path))
    yield path
    assert not path.exists()


@pytest.mark.parametrize("name", BAD)
def test_bad_data_and_cf_files_are_one_line_and_run_nothing(root, tmp_path, name, capsys, marker):
    shutil.copytree(root, tmp_path / "root")
    spoil, message = BAD[name]
    spoil(Layout(tmp_path / "root", NAME))
    with pytest.raises(SystemExit) as stop:
        convert(tmp_path / "root", tmp_path)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and message in shown and shown.count("\n") == 1


@pytest.mark.parametrize("name", BAD_STAGES)
def test_bad_stage_files_are_named_and_run_nothing(root, encoder, imported, tmp_path, name, marker):
    shutil.copytree(root, tmp_path / "root")
    spoil, message = BAD_STAGES[name]
    layout = Layout(tmp_path / "root", NAME)
    spoil(layout)
    data, cf, stage1, _ = imported
    dataset, runs = load_dataset(data), imported[0].parent / "runs"
    with pytest.raises(UserError, match=re.escape(message)):
        importing.import_stage1(layout, dataset, cf, str(encoder), tmp_path / "runs")
        importing.import_stage2(layout, dataset, cf, stage1, "opt-nano", runs)


def test_export_for_serving(imported, tmp_path, capsys):
    from safetensors.numpy import load_file

    data, _, stage1, stage2 = map(str, imported)
    arguments = ["--data", data, "--stage1", stage1, "--stage2", stage2, "--out", str(tmp_path / "serving")]
    cli.main(["convert", "export", *arguments])
    folder = tmp_path / "serving"
    items, projectors = load_file(folder / "items.safetensors"), load_file(folder / "projectors.safetensors")
    nn = torch.nn
    module = nn.Sequential(nn.Linear(128, WORDS), nn.LayerNorm(WORDS), nn.GELU(), nn.Linear(WORDS, WORDS))
    state = {key.removeprefix("item."): torch.from_numpy(v) for key, v in projectors.items() if key.startswith("item.")}
    module.load_state_dict(state)
    expected = module(torch.from_numpy(items["item_latents"])).detach().numpy()
    # Float32 sums of 256 random terms of order 1, after a norm: values reach 60.
    np.testing.assert_allclose(items["item_tokens"][1:], expected[1:], atol=2e-4)
    assert (items["item_tokens"][0] == 0).all() and "| 9+1 × 256 |" in (folder / "README.md").read_text()


def test_parameters_that_require_gradients_are_read(root, tmp_path):
    """Saved as ``dict(model.named_parameters())``."""
    shutil.copytree(root, tmp_path / "root")
    layout = Layout(tmp_path / "root", NAME)
    path = next(layout.cf_folder.iterdir())
    before = read_sasrec(path)[3]
    spoiled_checkpoint(lambda body: body[1].update({k: torch.nn.Parameter(v) for k, v in body[1].items()}))(layout)
    after = read_sasrec(path)[3]
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
