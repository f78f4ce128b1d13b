"""Files that others write and the product reads: raw data, models, the official code's files, lists and settings."""

import argparse
import gzip
import itertools
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from kinds import Kind, contents, files, hash_of

from allmrec_jax.api.config import read_config
from allmrec_jax.api.converting import import_official
from allmrec_jax.api.recommending import read_users
from allmrec_jax.data.dataset import load_dataset, replace_dataset
from allmrec_jax.data.prepare import prepare
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.text_encoder import SentenceEncoder, TextEncoder, TextEncoderConfig, init_params
from allmrec_jax.official import parameters as official
from allmrec_jax.official.layout import Layout
from allmrec_jax.pretrained.llm import llm_hash, load_checkpoint, load_tokenizer, save_checkpoint
from allmrec_jax.pretrained.longformer import load_longformer
from allmrec_jax.pretrained.peft import LoRA, load_adapter, save_adapter
from allmrec_jax.pretrained.sentence_encoder import fingerprint, load_sentence_encoder, save_sentence_encoder
from allmrec_jax.trained.recommend import read_new_items

USERS, ITEMS, LONG = 9, 8, 5
"""Of the raw data: users, items, interactions of each user."""


def raw(root: Path) -> Iterator[tuple[str, Kind]]:
    """Interactions and items in every layout that ``prepare`` reads, each prepared by itself."""
    rng = np.random.default_rng(0)
    rows = [
        (f"U{user}", f"I{item}", int(rng.integers(3, 6)), 1_400_000_000 + 1000 * number)
        for user in range(USERS)
        for number, item in enumerate(rng.permutation(ITEMS)[:LONG])
    ]
    told = [(f"I{item}", f"Title {item}", f"About <b>{item}</b>", ["Toys", "Puzzles"]) for item in range(ITEMS)]

    def kind(
        name: str, written: dict[str, bytes], source: str, *, items: str | None = None, **given: Any
    ) -> tuple[str, Kind]:
        folder = root / name
        folder.mkdir(parents=True)
        for file, content in written.items():
            (folder / file).write_bytes(content)

        def read() -> str:
            out = root / "prepared" / name
            shutil.rmtree(out, ignore_errors=True)
            beside = None if items is None else folder / items
            prepare(folder / source, out, "paper", items=beside, name="x", min_user=1, min_item=1, **given)
            return contents(load_dataset(out))

        return f"raw {name}", Kind(files(folder), read)

    def lines(values: list[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(value) + "\n" for value in values).encode()

    def table(header: str, values: list[tuple[Any, ...]], by: str) -> bytes:
        return "".join(by.join(map(str, row)) + "\n" for row in [tuple(header.split(by)), *values]).encode()

    reviews = [{"reviewerID": u, "asin": i, "overall": r, "unixReviewTime": t} for u, i, r, t in rows]
    meta = [{"asin": i, "title": t, "description": [d], "category": c, "brand": "B"} for i, t, d, c in told]
    yield kind("amazon-2018", {"X.json.gz": gzip.compress(lines(reviews)), "meta_X.json": lines(meta)}, "X.json.gz")
    python = {"reviews_X.json": lines(reviews), "meta_X.json": "".join(f"{row}\n" for row in meta).encode()}
    yield kind("amazon-2014", python, "reviews_X.json")
    newer = [{"user_id": u, "parent_asin": i, "rating": r, "timestamp": 1000 * t} for u, i, r, t in rows]
    newer_meta = [{"parent_asin": i, "title": t, "description": [d], "categories": c} for i, t, d, c in told]
    yield kind("amazon-2023", {"X.jsonl": lines(newer), "meta_X.jsonl": lines(newer_meta)}, "X.jsonl")
    header, named = "user_id,item_id,rating,timestamp", "item_id,title,description,categories"
    cells = [(i, t, d, "Toys|Puzzles") for i, t, d, _ in told]
    csv = {"r.csv": table(header, rows, ","), "m.csv": table(named, cells, ",")}
    yield kind("csv", csv, "r.csv", items="m.csv")
    tsv = {"r.tsv": table(header.replace(",", "\t"), rows, "\t"), "m.jsonl": lines(newer_meta)}
    yield kind("tsv and JSON lines", tsv, "r.tsv", items="m.jsonl", columns={"item": "item_id"})
    folder = root / "frames"
    folder.mkdir(parents=True)
    pl.DataFrame(rows, header.split(","), orient="row").write_parquet(folder / "r.parquet")
    pl.DataFrame(told, named.split(","), orient="row").write_parquet(folder / "m.parquet")
    parquet = {name: (folder / name).read_bytes() for name in ("r.parquet", "m.parquet")}
    shutil.rmtree(folder)
    yield kind("Parquet", parquet, "r.parquet", items="m.parquet")
    inter = table("user_id:token\titem_id:token\trating:float\ttimestamp:float", rows, "\t")
    item = table("item_id:token\ttitle:token_seq\tcategories:token_seq", [(i, t, "Toys") for i, t, *_ in told], "\t")
    yield kind("RecBole", {"x.inter": inter, "x.item": item}, "x.inter")
    plain = [(u[1:], i[1:], r, t) for u, i, r, t in rows]
    hundred = {
        "u.data": table("1\t1\t5\t1400000000", plain, "\t"),
        "u.item": "".join(f"{i[1:]}|{t}||||{'|'.join('010')}\n" for i, t, *_ in told).encode("latin-1"),
        "u.genre": b"unknown|0\nAction|1\nDrama|2\n",
    }
    yield kind("MovieLens 100K", hundred, "u.data")
    million = {
        "ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in plain).encode(),
        "movies.dat": "".join(f"{i[1:]}::{t}::Action|Drama\n" for i, t, *_ in told).encode(),
    }
    yield kind("MovieLens 1M", million, "ratings.dat")
    small = {
        "ratings.csv": table("userId,movieId,rating,timestamp", plain, ","),
        "movies.csv": table("movieId,title,genres", [(i[1:], t, "Action|Drama") for i, t, *_ in told], ","),
    }
    yield kind("MovieLens CSV", small, "ratings.csv")
    clicked: dict[str, list[str]] = {}
    for user, one, *_ in rows:
        clicked.setdefault(user, []).append(one)
    described = {i: {"title": t, "description": d, "categories": "Toys, Puzzles", "brand": ""} for i, t, d, _ in told}
    sequences = {"x.inter.json": json.dumps(clicked).encode(), "x.item.json": json.dumps(described).encode()}
    yield kind("sequence JSON", sequences, "x.inter.json")
    pairs = "".join(f"{u[1:]} {int(i[1:]) + 1}\n" for u, i, *_ in rows).encode()
    numbered = [(int(i[1:]) + 1, t) for i, t, *_ in told]
    sasrec = {"Beauty.txt": pairs, "m.csv": table("item_id,title", numbered, ",")}
    yield kind("SASRec's text", sasrec, "Beauty.txt", items="m.csv")


def models(root: Path) -> Iterator[tuple[str, Kind]]:
    """Language models, adapters, sentence encoders and Longformers in each of their layouts."""
    import tiny_llm
    import torch
    from safetensors.numpy import load_file, save_file

    root.mkdir(parents=True)
    config, params = tiny_llm.config(), tiny_llm.model()[1]

    def llm(name: str, keep: Callable[[Path], list[Path]]) -> tuple[str, Kind]:
        path = root / name.replace(" ", "-")
        save_checkpoint(path, config, params, tiny_llm.tokenizer())
        damaged = keep(path)
        return name, Kind(
            damaged, lambda: hash_of(load_checkpoint(path)[1], repr(load_checkpoint(path)[0]), llm_hash(path))
        )

    def sharded(path: Path) -> list[Path]:
        weights = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        names = sorted(weights)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for shard, keys in shards.items():
            save_file({key: weights[key] for key in keys}, path / shard)
        listed = {key: shard for shard, keys in shards.items() for key in keys}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
        return [path / name for name in (*shards, "model.safetensors.index.json")]

    def pickled(path: Path) -> list[Path]:
        weights = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        torch.save({key: torch.from_numpy(array) for key, array in weights.items()}, path / "pytorch_model.bin")
        return [path / "pytorch_model.bin"]

    yield llm("OPT", lambda path: [path / "config.json", path / "model.safetensors"])
    yield llm("OPT in shards", sharded)
    yield llm("OPT in .bin", pickled)

    words = root / "tokenizer"
    save_checkpoint(words, config, params, tiny_llm.tokenizer())

    def vocabulary(path: Path) -> str:
        tokenizer = load_tokenizer(path)
        return hash_of(tokenizer("Red Fox and a Ghost Ship")["input_ids"], sorted(tokenizer.get_vocab().items()))

    yield (
        "tokenizer.json",
        Kind([words / name for name in ("tokenizer.json", "tokenizer_config.json")], lambda: vocabulary(words)),
    )
    pair = root / "vocabulary"
    shutil.copytree(words, pair)
    body = json.loads((pair / "tokenizer.json").read_text())["model"]
    (pair / "tokenizer.json").unlink()
    (pair / "vocab.json").write_text(json.dumps(body["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["merges"]]
    (pair / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (pair / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "</s>")
    (pair / "special_tokens_map.json").write_text(json.dumps(special))
    (pair / "added_tokens.json").write_text(json.dumps({"<pad>": 1}))
    yield "vocab.json and merges.txt", Kind(files(pair, "config.json", "model.safetensors"), lambda: vocabulary(pair))

    rng = np.random.default_rng(0)
    low: Any = {
        name: {"a": rng.normal(size=(2, 16, 3)).astype(np.float32), "b": rng.normal(size=(2, 3, 16)).astype(np.float32)}
        for name in ("q_proj", "v_proj")
    }
    adapter = root / "adapter"
    save_adapter(adapter, config, LoRA(low, 6.0), dropout=0.0, base_model="opt")
    yield (
        "PEFT adapter",
        Kind(
            files(adapter), lambda: hash_of(load_adapter(adapter, config).adapter, load_adapter(adapter, config).alpha)
        ),
    )

    encoder = sentence_encoder(root / "encoder")
    read = [path for path in files(encoder) if path.name != "README.md"]
    yield "sentence encoder", Kind(read, lambda: _encoder(encoder))
    binary = root / "encoder-bin"
    shutil.copytree(encoder, binary)
    file = pickled(binary)[0]
    tokenizer = json.loads((binary / "tokenizer.json").read_text())["model"]["vocab"]
    (binary / "tokenizer.json").unlink()
    (binary / "vocab.txt").write_text("\n".join(sorted(tokenizer, key=tokenizer.get)) + "\n")
    (binary / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    chosen = [file, binary / "vocab.txt", binary / "tokenizer_config.json"]
    yield "sentence encoder in .bin with vocab.txt", Kind(chosen, lambda: _encoder(binary))

    longformer = _longformer(root / "longformer")
    yield (
        "Longformer",
        Kind(
            [longformer / name for name in ("config.json", "tokenizer.json", "model.safetensors")],
            lambda: load_longformer(longformer).fingerprint,
            slow=True,
        ),
    )


def _encoder(path: Path) -> str:
    read = load_sentence_encoder(path)
    return hash_of(fingerprint(read), read.max_length, read.lowercase)


def sentence_encoder(path: Path) -> Path:
    """A BERT of a few weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "about"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = TextEncoderConfig(len(words), 16, 1, 2, 24, 32)
    made = SentenceEncoder(TextEncoder(config), init_params(config, jax.random.key(0)), tokenizer, {}, 32, True)
    save_sentence_encoder(path, made)
    return path


def _longformer(path: Path) -> Path:
    import planted_texts
    import transformers

    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 34, "pad_token_id": 1}
    config = transformers.LongformerConfig(**sizes, attention_window=[8])
    transformers.LongformerForMaskedLM(config).save_pretrained(path)
    made = planted_texts.tokenizer()
    made.add_special_tokens(["<s>", "<mask>"])
    made.save(str(path / "tokenizer.json"))
    return path


def official_files(root: Path) -> Iterator[tuple[str, Kind]]:
    """The official code's files, taken over as ``convert from-official`` does."""
    import torch
    from safetensors.torch import load_file

    dim, length = 8, 6
    sequences = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 1, 2, 3], [4, 5]]
    count = max(map(max, sequences))
    layout, encoder = Layout(root / "official", "X"), sentence_encoder(root / "encoder")
    for folder in (layout.sequences.parent, layout.cf_folder, layout.stage1("mlp").parent):
        folder.mkdir(parents=True)
    lines = [f"{user} {item}\n" for user, items in enumerate(sequences, 1) for item in items]
    layout.sequences.write_text("".join(lines))
    named = {item: f"Title {item}" for item in range(1, count + 1)}
    layout.texts.write_bytes(pickle.dumps({"title": named, "description": named}))

    def tensors(shapes: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}

    about = argparse.Namespace(maxlen=length, hidden_units=dim, num_blocks=1, num_heads=2, dropout_rate=0.25)
    told = {"user_num": len(sequences), "item_num": count, "args": about}
    torch.save([told, tensors(official.sasrec_shapes(count, dim, 1, length))], layout.cf_folder / "SASRec.pth")
    sbert = {f"0.auto_model.{key}": value for key, value in load_file(encoder / "model.safetensors").items()}
    torch.save(sbert, layout.stage1("sbert"))
    torch.save(tensors(official.autoencoder_shapes(dim, 128)), layout.stage1("mlp"))
    torch.save(tensors(official.autoencoder_shapes(16, 128)), layout.stage1("mlp2"))
    torch.save(tensors(official.projector_shapes(dim, 256)), layout.stage2("log_proj"))
    torch.save(tensors(official.projector_shapes(128, 256)), layout.stage2("item_proj"))

    def read(parts: int) -> str:
        out = root / "taken-over"
        shutil.rmtree(out, ignore_errors=True)
        made = import_official(
            layout.root, "X", out / "data", checkpoints=out / "runs", sentence_encoder=str(encoder), llm="opt-nano"
        )
        return hash_of(*(_exported(path) for path in itertools.islice(made, parts)))

    def _exported(path: Path) -> str:
        return json.dumps([json.loads((path / "DONE").read_text()) if (path / "DONE").is_file() else path.name])

    yield "official texts and interactions", Kind([layout.sequences, layout.texts], lambda: read(2))
    yield (
        "official checkpoints",
        Kind(files(layout.cf_folder) + files(layout.stage1("mlp").parent), lambda: read(4), slow=True),
    )


def given_by_users(root: Path) -> Iterator[tuple[str, Kind]]:
    """Arrays, lists and settings that users give to commands."""
    rng = np.random.default_rng(0)
    data = replace_dataset(
        root / "data",
        name="x",
        items=np.arange(1, 13),
        offsets=np.arange(4) * 4,
        timestamps=None,
        titles=[f"Title {item}" for item in range(1, 13)],
        descriptions=[""] * 12,
    )
    arrays = root / "arrays"
    arrays.mkdir(parents=True)
    np.save(arrays / "items.npy", rng.normal(size=(data.num_items + 1, 4)).astype(np.float32))
    for cut in ("train", "valid", "test"):
        np.save(arrays / f"users_{cut}.npy", rng.normal(size=(data.num_users, 4)))

    def vectors() -> str:
        cf = load_cf(arrays, data)
        return hash_of(cf.item_vectors(), cf.identity)

    yield "arrays of users", Kind(files(arrays), vectors)

    lists = root / "lists"
    lists.mkdir()
    new = [{"id": f"N{item}", "title": f"New {item}", "description": "about"} for item in range(5)]
    (lists / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in new))
    yield "new items", Kind([lists / "items.jsonl"], lambda: hash_of(read_new_items(lists / "items.jsonl")))
    users = pl.DataFrame({"user_id": ["U1", "U2", "U3"], "age": [1, 2, 3]})
    users.write_csv(lists / "users.csv")
    users.write_parquet(lists / "users.parquet")
    (lists / "users.txt").write_text("U1\nU2\nU3\n")
    listed = [lists / f"users.{ending}" for ending in ("csv", "parquet", "txt")]
    yield "lists of users", Kind(listed, lambda: hash_of(*map(read_users, listed)))
    config = lists / "settings.yaml"
    config.write_text("preset: small\nseed: 3\nstage2:\n  steps: 10\n  learning_rate: 1.0e-3\nsteps: 12\n")
    yield "settings in YAML", Kind([config], lambda: hash_of(read_config(config, ["stage2"])))
