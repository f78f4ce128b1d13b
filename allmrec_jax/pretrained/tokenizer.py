"""Tokenizers in the Hugging Face format, read from a directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import read_json, refuse_pointer
from allmrec_jax.pretrained.hub import quiet
from allmrec_jax.pretrained.schemas import TokenizerConfigFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What a language model's tokenizer may be made of; they are part of the model's hash in this order."""


def read_tokenizer(path: Path) -> "Tokenizer":
    """A ``tokenizer.json`` of the tokenizers library, with padding and truncation off.

    Raises:
        UserError: it is missing or damaged.
    """
    from tokenizers import Tokenizer

    read_json(path, dict[str, Any])
    with _refusing(path):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_auto_tokenizer(directory: Path) -> Any:
    """What ``transformers.AutoTokenizer`` makes of a directory; it is always a fast tokenizer.

    Raises:
        UserError: a file is damaged, or the tokenizer is of a kind that transformers does not know.
    """
    from transformers import AutoTokenizer

    for file in filter(Path.is_file, (directory / name for name in (*TOKENIZER_FILES, "vocab.txt"))):
        if file.suffix == ".json":
            read_json(file, TokenizerConfigFile if file.name == "tokenizer_config.json" else dict[str, Any])
        else:
            refuse_pointer(file)
    with _refusing(directory), quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer("a text")  # some settings are only used, and found to be of no use, then
        return tokenizer


def check_vocabulary(tokens: int, rows: int, where: Path) -> None:
    """Refuses a tokenizer whose ids go beyond the model's word table: it belongs to another model.

    Args:
        tokens: the largest id and one.
        rows: of the word table.
        where: the directory, for the message.

    Raises:
        UserError: there are more tokens than rows.
    """
    if tokens > rows:
        raise UserError(
            f"{where}: the tokenizer has {tokens} tokens, the model's table of words {rows} rows (vocab_size in "
            "config.json); they do not belong together"
        )


def vocabulary_size(tokenizer: Any) -> int:
    """The largest id of a tokenizer of either library, and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever a library raises while it reads a tokenizer, as a :class:`UserError`."""
    try:
        yield
    except BaseException as error:
        # The Rust library raises plain exceptions, and a panic of its own that is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a tokenizer that can be read ({first_line(error)})") from None
