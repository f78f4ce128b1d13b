"""The cases' pretrained models as directories in the Hugging Face format, for loaders of either side."""

import json
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


def write_sentence_encoder(path: Path, *, bert: bool = False) -> None:
    """The case's sentence encoder as a sentence-transformers directory."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(cases.letter_vocabulary())}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path / "tokenizer.json"))
    config = cases.BERT if bert else cases.TEXT_ENCODER
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
