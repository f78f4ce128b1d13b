"""What the JSON files of other people's models must look like.

Each kind of file has a schema of the keys that decide anything here; others are left aside. A value of another type or
an absurd size is a :class:`~allmrec_jax.errors.UserError` that names the file, the key and what stands there.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from allmrec_jax.checking import FileName, InnerFolder, checked
from allmrec_jax.fileio import read_json
from allmrec_jax.models.limits import Epsilon, Layers, Share, Size, Token, Word


def read_object(path: Path, schema: type) -> dict[str, Any]:
    """The keys of a JSON file that follows ``schema``, as they stand there, but those that are null.

    Raises:
        UserError: as :func:`allmrec_jax.fileio.read_json`.
    """
    body = read_json(path, Any)
    if isinstance(body, dict):
        body = {key: value for key, value in body.items() if value is not None}
    checked(path, body, schema)
    return body


class ModelFile(msgspec.Struct, frozen=True):
    """``config.json`` of any language model."""

    model_type: Word


class TextEncoderFile(msgspec.Struct, frozen=True):
    """``config.json`` of one of BERT's kin; DistilBERT names the same things differently."""

    model_type: Word
    vocab_size: Size = 30522
    max_position_embeddings: Size = 512
    pad_token_id: Token = 0
    is_decoder: bool = False
    position_embedding_type: Word = "absolute"
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    type_vocab_size: Size = 2
    hidden_act: Word = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    layer_norm_eps: Epsilon = 1e-12
    dim: Size = 768
    n_layers: Layers = 6
    n_heads: Size = 12
    hidden_dim: Size = 3072
    activation: Word = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    relative_attention_num_buckets: Annotated[int, Meta(ge=4, le=2**24)] = 32


class LongformerFile(msgspec.Struct, frozen=True):
    """``config.json`` of a Longformer."""

    model_type: Word
    vocab_size: Size = 50265
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 4098
    type_vocab_size: Size = 1
    attention_window: Size | Annotated[list[Size], Meta(min_length=1)] = 512
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    layer_norm_eps: Epsilon = 1e-5
    pad_token_id: Token = 1


class IndexFile(msgspec.Struct, frozen=True):
    """``*.index.json``: the file of each weight, beside the index."""

    weight_map: Annotated[dict[str, FileName], Meta(min_length=1)]


class ModuleEntry(msgspec.Struct, frozen=True):
    """A module of a sentence-transformers model: its class, and the folder of its files."""

    type: Word
    path: InnerFolder = ""


ModulesFile = list[ModuleEntry]
"""``modules.json`` of a sentence-transformers model."""


class PoolingFile(msgspec.Struct, frozen=True):
    """``config.json`` of a sentence-transformers pooling."""

    pooling_mode: str | list[str] = []
    include_prompt: bool = True


class PromptsFile(msgspec.Struct, frozen=True):
    """``config_sentence_transformers.json``: what stands before texts."""

    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


class SentenceFile(msgspec.Struct, frozen=True):
    """``sentence_bert_config.json``: how a sentence-transformers model reads texts."""

    max_seq_length: Size = 512
    do_lower_case: bool = False


class TokenizerConfigFile(msgspec.Struct, frozen=True):
    """``tokenizer_config.json``. Where a tokenizer has no limit, the length is written as 10³⁰."""

    model_max_length: Annotated[float, Meta(ge=1)] | None = None


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """``adapter_config.json`` of PEFT, one rank and one alpha for all targets."""

    peft_type: Word = "LORA"
    r: Size
    lora_alpha: Annotated[float, Meta(gt=0, lt=1e6)]
    target_modules: Annotated[list[Word], Meta(min_length=1)]
    bias: Word = "none"
    fan_in_fan_out: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, int], Meta(max_length=0)] = {}
    alpha_pattern: Annotated[dict[str, float], Meta(max_length=0)] = {}


class BaseFile(msgspec.Struct, frozen=True):
    """Of ``adapter_config.json``, the model that the adapter belongs to."""

    base_model_name_or_path: str = ""
