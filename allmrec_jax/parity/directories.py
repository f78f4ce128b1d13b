"""The cases as files: pretrained models in the Hugging Face format, and data and checkpoints of the official code."""

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allmrec_jax.parity import cases


def write_opt(directory: Path, config: Mapping[str, Any], rows: int) -> None:
    """OPT with the case's weights as Hugging Face's files; ``rows`` of its table are kept."""
    from safetensors.numpy import save_file

    tensors = cases.weights(cases.opt_shapes(config))
    table = "model.decoder.embed_tokens.weight"
    tensors[table] = tensors[table][:rows]
    save_file(tensors, directory / "model.safetensors")
    body = {**config, "architectures": ["OPTForCausalLM"], "vocab_size": rows}
    (directory / "config.json").write_text(json.dumps(body))


def write_sentence_encoder(path: Path, *, bert: bool = False, dropout: bool = False) -> None:
    """The case's sentence encoder as a sentence-transformers directory, without dropout or with the published one."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(cases.letter_vocabulary())}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path / "tokenizer.json"))
    config = cases.BERT if bert else cases.TEXT_ENCODER | (cases.TEXT_DROPOUT if dropout else {})
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    kinds = ("Transformer", "Pooling")
    files: dict[str, Any] = {
        "config.json": config | {"architectures": ["BertModel" if bert else "DistilBertModel"]},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | special,
        "sentence_bert_config.json": {"max_seq_length": config["max_position_embeddings"]},
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": "1_Pooling" * i,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size" if bert else "dim"],
            "pooling_mode_mean_tokens": True,
        },
    }
    (path / "1_Pooling").mkdir()
    for name, body in files.items():
        (path / name).write_text(json.dumps(body))
    shapes = cases.bert_shapes() if bert else cases.distilbert_shapes()
    save_file(cases.weights(shapes), path / "model.safetensors", metadata={"format": "pt"})


def sasrec_arguments(dropout: float) -> argparse.Namespace:
    """The arguments of the official ``SASRec``, which its checkpoint holds too."""
    return argparse.Namespace(
        device="cpu",
        hidden_units=cases.DIM,
        maxlen=cases.LENGTH,
        num_blocks=cases.BLOCKS,
        num_heads=cases.HEADS,
        dropout_rate=dropout,
    )


def write_official(root: Path) -> None:
    """The case's interactions, texts and CF checkpoint where the official code reads them, below ``root``."""
    import torch

    titles, descriptions = cases.texts()
    data, checkpoint = root / "data" / "amazon", root / "pre_train" / "sasrec" / cases.DATA_NAME
    data.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    lines = [f"{user} {item}\n" for user, items in enumerate(cases.histories(), 1) for item in items]
    (data / f"{cases.DATA_NAME}.txt").write_text("".join(lines))
    names = {"title": titles, "description": descriptions}
    (data / f"{cases.DATA_NAME}_text_name_dict.json.gz").write_bytes(pickle.dumps(names))
    about = {"user_num": cases.ITEMS, "item_num": cases.ITEMS, "args": sasrec_arguments(cases.DROPOUT)}
    torch.save([about, _tensors(cases.weights(cases.sasrec_shapes()))], checkpoint / "sasrec.pth")


def write_official_stage1(root: Path, epoch: int) -> None:
    """The case's autoencoders and sentence encoder as the official code's checkpoints of stage 1."""
    import torch

    folder = root / "models" / "saved_models"
    folder.mkdir(parents=True)
    for part, prefix, shapes in (
        ("mlp", "mlp.", cases.autoencoder_shapes("mlp", cases.DIM)),
        ("mlp2", "mlp2.", cases.autoencoder_shapes("mlp2", cases.TEXT_ENCODER["dim"])),
        ("sbert", "", cases.distilbert_shapes()),
    ):
        state = {name.removeprefix(prefix): value for name, value in cases.weights(shapes).items()}
        torch.save(_tensors(state), folder / f"{cases.DATA_NAME}_sasrec_{epoch}_{part}.pt")


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in state.items()}
