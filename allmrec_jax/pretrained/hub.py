"""Where a pretrained model lies: packaged, in a directory, or on the Hugging Face hub, which is asked once."""

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from allmrec_jax.assets import ASSETS
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import published
from allmrec_jax.pretrained.weights import GGUF_SUFFIX, WEIGHT_FILES, read_index

SMALL_FILES = ("*.json", "*vocab.txt", "merges.txt", "*.jinja")
"""Configurations, tokenizers and indexes of weights: what is fetched of a model before its weights."""

PATIENCE = 5.0
"""Seconds that the hub has to answer a first request; it is not asked again in the same process."""


class Kind(NamedTuple):
    """A kind of pretrained model.

    Attributes:
        what: in words, for messages.
        packaged: the name of the one that the package carries, if any.
        here: what works on a machine without the hub, for messages.
        owner: on the hub, of names without one.
        known: gives names on the hub that one may have meant.
    """

    what: str
    packaged: str | None
    here: str
    owner: str | None = None
    known: Callable[[], Iterable[str]] = tuple


LLM = Kind("LLM", "opt-nano", "--llm opt-nano, a directory, a GGUF file, or --preset small", known=published)
SENTENCE_ENCODER = Kind(
    "sentence encoder",
    "sbert-nano",
    "--sentence-encoder sbert-nano, a directory, or --preset small",
    owner="sentence-transformers",
)
LONGFORMER = Kind("Longformer", None, "a directory, or --start scratch")


def locate(name_or_path: str | Path, kind: Kind) -> Path:
    """The directory of a model with its small files (:data:`SMALL_FILES`), fetched where the name is one on the hub.

    A GGUF file stands for a language model's directory.

    A sentence encoder's name without an owner, ``all-MiniLM-L6-v2``, means that of the sentence-transformers project,
    as it does in that library.

    Raises:
        UserError: there is no such directory, and the hub has no such model or cannot be reached.
    """
    found = _on_disk(name_or_path, kind)
    return found or _fetch(_hub_name(str(name_or_path), kind), kind, SMALL_FILES)


def locate_weights(name_or_path: str | Path, kind: Kind, folder: str = "") -> Path:
    """The directory of a model with its weights too, in the first of the formats of :data:`WEIGHT_FILES` that is there.

    Args:
        name_or_path: see :func:`locate`.
        kind: of model.
        folder: the folder inside the model's directory that holds the weights; the returned path is of that.

    Raises:
        UserError: as :func:`locate`; or the hub has no weights of this model.
    """
    if found := _on_disk(name_or_path, kind):
        return found / folder
    name = _hub_name(str(name_or_path), kind)
    prefix = f"{folder}/" if folder else ""
    for file in WEIGHT_FILES:
        directory = _fetch(name, kind, [*SMALL_FILES, prefix + file]) / folder
        if (directory / file).is_file():
            if file.endswith(".index.json"):
                _fetch(name, kind, [prefix + shard for shard in sorted(set(read_index(directory / file).values()))])
            return directory
    raise UserError(f"{kind.what} {name}: no weights on the hub (looked for {', '.join(WEIGHT_FILES)})")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the Hugging Face libraries log and warn of while the block runs from the user."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _on_disk(name_or_path: str | Path, kind: Kind) -> Path | None:
    """The directory of a packaged or a local model; ``None`` where the name can only be one on the hub."""
    name, path = str(name_or_path), Path(name_or_path)
    if name == kind.packaged:
        return ASSETS / name
    if path.is_dir() or (kind is LLM and path.suffix == GGUF_SUFFIX and path.is_file()):
        return path
    if path.exists():
        raise UserError(f"{kind.what} {name}: a file; give the directory that holds it")
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"{kind.what} {name}: not a directory")
    return None


def _hub_name(name: str, kind: Kind) -> str:
    if "/" in name:
        return name
    if kind.owner is not None:
        return f"{kind.owner}/{name}"
    meant = next((known for known in kind.known() if known.endswith("/" + name)), None)
    raise UserError(
        f"{kind.what} {name}: not a directory, and no name on the hub, which has an owner before a slash"
        + (f": did you mean {meant}?" if meant else f"; what works here: {kind.here}")
    )


def _fetch(name: str, kind: Kind, patterns: Sequence[str]) -> Path:
    """The hub's files of a model that match, from its cache where the hub cannot be reached."""
    from huggingface_hub import constants, errors, snapshot_download

    unreached = None
    if constants.HF_HUB_OFFLINE:
        unreached = "HF_HUB_OFFLINE is set"
    elif not _reachable(constants.ENDPOINT):
        unreached = f"the hub ({constants.ENDPOINT}) cannot be reached"
    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=unreached is not None))
    except errors.HFValidationError:
        reason = "not a directory, and no name of a model on the hub"
    except errors.LocalEntryNotFoundError:
        reason = f"neither a directory nor in the hub's cache, and {unreached or 'the hub cannot be reached'}"
    except errors.GatedRepoError:
        terms = f"{constants.ENDPOINT}/{name}"
        reason = f"not a directory; on the hub its terms have to be accepted at {terms}; then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "not a directory, and the hub has no model of this name (if it is private, run `hf auth login`)"
    except Exception as error:  # the hub's library passes on what its own HTTP library raises
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = f"not a directory, and not fetched from the hub: {told}"
    raise UserError(f"{kind.what} {name}: {reason}; what works here: {kind.here}")


@functools.cache
def _reachable(endpoint: str) -> bool:
    """Whether anything answers there soon. The hub's own calls try for half a minute."""
    from huggingface_hub.utils import get_session

    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            answers.append(get_session().head(endpoint, timeout=PATIENCE))

    # A resolver of names knows no timeout, so that the answer is waited for from outside.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)
