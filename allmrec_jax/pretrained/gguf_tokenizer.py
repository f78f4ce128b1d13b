"""The tokenizer inside a GGUF file: byte-level BPE (``gpt2``), or SentencePiece's BPE with scores (``llama``)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from allmrec_jax.errors import UserError
from allmrec_jax.pretrained.gguf import read_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
}
"""How texts are split into words before BPE, by ``tokenizer.ggml.pre``; ``None`` is GPT-2's way."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Types of tokens; all others are pieces of words."""

_SPACE = "▁"


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, a fast one of transformers, with the chat template that the file has.

    Raises:
        UserError: the file has none, or one of a kind that is not known here; or as
            :func:`allmrec_jax.pretrained.gguf.read_gguf`.
    """
    from transformers import PreTrainedTokenizerFast

    values = read_gguf(path).values
    model, tokens = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise UserError(f"{path}: no tokenizer there (tokenizer.ggml.tokens), or one in which a token is there twice")
    if model not in ("gpt2", "llama"):
        raise UserError(f"{path}: tokenizer.ggml.model is {model!r}; known are 'gpt2' and 'llama'")
    tokenizer = _byte_level(path, values, tokens) if model == "gpt2" else _sentence_piece(path, values, tokens)
    _add_tokens(tokenizer, tokens, values.get("tokenizer.ggml.token_type") or [])
    special = {
        f"{token}_token": tokens[number]
        for token, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if isinstance(number := values.get(f"tokenizer.ggml.{name}_token_id"), int) and number < len(tokens)
    }
    begins = model == "llama" or values.get("tokenizer.ggml.pre") == "llama-bpe"
    if values.get("tokenizer.ggml.add_bos_token", begins) and "bos_token" in special:
        _begin(tokenizer, special["bos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=values.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level(path: Path, values: dict[str, Any], tokens: list[str]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = values.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in _SPLITS:
        raise UserError(f"{path}: tokenizer.ggml.pre is {kind!r}; known are {', '.join(_SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in values.get("tokenizer.ggml.merges") or []]
    known = set(tokens)
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= known:
            raise UserError(f"{path}: the tokenizer is damaged: merge {' '.join(merge)[:80]!r} is none of two tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind == "llama-bpe"))
    split = _SPLITS[kind]
    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    if kind == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(path: Path, values: dict[str, Any], tokens: list[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{path}: the tokenizer is damaged: it needs a score (tokenizer.ggml.scores) for each token")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # SentencePiece joins the two neighbours that make the token of the highest score, whatever the two are.
    merges = []
    for number in sorted(range(len(tokens)), key=lambda number: -scores[number]):
        token = tokens[number]
        parts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [part for part in parts if part[0] in vocabulary and part[1] in vocabulary]
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    unknown = tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    plain = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if values.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        plain.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(plain)
    return tokenizer


def _add_tokens(tokenizer: "Tokenizer", tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in a text as they stand, before any word is split."""
    from tokenizers import AddedToken

    for kinds, special in (((_UNKNOWN, _CONTROL), True), ((_USER_DEFINED,), False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, kind in zip(tokens, types, strict=False)
            if kind in kinds
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _begin(tokenizer: "Tokenizer", token: str) -> None:
    """Lets the tokenizer put a token before every text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )
