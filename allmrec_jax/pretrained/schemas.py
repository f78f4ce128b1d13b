"""What the JSON files of other people's models must look like, and reading them by it.

Each kind of file has a schema of the keys that decide anything here; others are left aside. A value of another type or
an absurd size is a :class:`UserError` that names the file, the key and what stands there.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from allmrec_jax.errors import UserError
from allmrec_jax.models.limits import Epsilon, Layers, Share, Size, Token

LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file that is read; the largest tokenizers have 40 million."""

POINTER = b"version https://git-lfs"

Checked = TypeVar("Checked")


def refuse_pointer(path: Path) -> None:
    """Refuses a Git LFS pointer, the three lines of text that a clone without Git LFS has in a large file's place.

    Raises:
        UserError: ``path`` is one.
    """
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, a Git LFS pointer, larger than :data:`LARGEST_JSON`, or not JSON.
    """
    try:
        refuse_pointer(path)
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; no such file has more than {LARGEST_JSON:,}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON that can be read (nested too deep)") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({str(error)[:120]})") from None


def checked(path: Path, body: Any, schema: type[Checked]) -> Checked:
    """``body``, which was read from ``path``, as ``schema``.

    Raises:
        UserError: it does not follow the schema; the first thing that is wrong is named.
    """
    try:
        return msgspec.convert(body, schema)
    except msgspec.ValidationError as error:
        found = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*)`)?", str(error))
        reason, where = (found[1], found[2]) if found else (str(error), None)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", reason):
        raise UserError(f"{path}: no {missing[1]!r}" + (f" in {where}" if where else ""))
    if "matching regex" in reason:
        reason = "Expected the name of something inside the directory"
    raise UserError(f"{path}: {where or 'the file'}{_shown(body, where)}: {reason[:1].lower()}{reason[1:]}")


def _shown(body: Any, where: str | None) -> str:
    """What stands at a place that msgspec names: ``weight_map[...]`` is some value, ``[0].path`` a certain one."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", (where or "").replace("[...]", "")):
        try:
            body = body[key] if key else body[int(index)]
        except (LookupError, TypeError):
            return ""
    shown = repr(body)
    return f" is {shown if len(shown) <= 60 else shown[:57] + '…'}"


def read_object(path: Path, schema: type) -> dict[str, Any]:
    """The keys of a JSON file that follows ``schema``, as they stand there, but those that are null.

    Raises:
        UserError: as :func:`read_json` and :func:`checked`.
    """
    body = read_json(path)
    if isinstance(body, dict):
        body = {key: value for key, value in body.items() if value is not None}
    checked(path, body, schema)
    return body


PlainName = Annotated[str, Meta(pattern=r"\A(?!\.{1,2}\Z)[^/\\:\x00]+\Z")]
PlainPath = Annotated[str, Meta(pattern=r"\A(?!.*\.\.)(?!/)[^\\:\x00]*\Z")]


class ModelFile(msgspec.Struct, frozen=True):
    """``config.json`` of any language model."""

    model_type: str


class TextEncoderFile(msgspec.Struct, frozen=True):
    """``config.json`` of one of BERT's kin; DistilBERT names the same things differently."""

    model_type: str
    vocab_size: Size = 30522
    max_position_embeddings: Size = 512
    pad_token_id: Token = 0
    is_decoder: bool = False
    position_embedding_type: str = "absolute"
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    type_vocab_size: Size = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    layer_norm_eps: Epsilon = 1e-12
    dim: Size = 768
    n_layers: Layers = 6
    n_heads: Size = 12
    hidden_dim: Size = 3072
    activation: str = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    relative_attention_num_buckets: Annotated[int, Meta(ge=4, le=2**24)] = 32


class LongformerFile(msgspec.Struct, frozen=True):
    """``config.json`` of a Longformer."""

    model_type: str
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

    weight_map: Annotated[dict[str, PlainName], Meta(min_length=1)]


class ModuleEntry(msgspec.Struct, frozen=True):
    """A module of a sentence-transformers model: its class, and the folder of its files."""

    type: str
    path: PlainPath = ""


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

    peft_type: str = "LORA"
    r: Size
    lora_alpha: Annotated[float, Meta(gt=0, lt=1e6)]
    target_modules: Annotated[list[str], Meta(min_length=1)]
    bias: str = "none"
    fan_in_fan_out: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, int], Meta(max_length=0)] = {}
    alpha_pattern: Annotated[dict[str, float], Meta(max_length=0)] = {}


class BaseFile(msgspec.Struct, frozen=True):
    """Of ``adapter_config.json``, the model that the adapter belongs to."""

    base_model_name_or_path: str = "its base model"
