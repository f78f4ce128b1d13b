"""Bytes and lines of a file, plain or gzipped; what is no data at all is named, with what to do about it."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from allmrec_jax.errors import UserError

if TYPE_CHECKING:
    from allmrec_jax.data.readers.reading import Reading

PROGRESS_LINES = 1 << 17

NO_DATA = (
    (b"BZh", "is compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "is compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it first (zstd -d)"),
    (b"\x04\x22\x4d\x18", "is compressed with LZ4; unpack it first (lz4 -d)"),
    (b"PK\x03\x04", "is a zip archive (or an Excel workbook); unpack it first (unzip), or export the sheet as CSV"),
    (b"PK\x05\x06", "is an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; unpack it first (7z x)"),
    (b"Rar!\x1a\x07", "is a RAR archive; unpack it first (unrar x)"),
    (b"SQLite format 3\x00", "is an SQLite database; export the tables as CSV"),
    (b"\x89HDF", "is an HDF5 file; export the tables as CSV or Parquet"),
    (b"ARROW1", "is an Arrow (Feather) file; write it as Parquet"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it (git lfs pull)"),
    (b"<!doctype html", "is a web page, not data; download the file again"),
    (b"<html", "is a web page, not data; download the file again"),
)
"""How files begin that hold no lines of data, and what to tell whoever has one."""

ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte-order marks of texts other than UTF-8."""


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The uncompressed bytes of a plain or gzipped file, and a function that says how far reading is in the stored one.

    Raises:
        UserError: the file cannot be opened, is one of :data:`NO_DATA`, or its gzip stream is truncated or damaged.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            _refuse_what_is_no_data(path, stream.peek(512)[:512])
            yield stream, raw.tell  # type: ignore[misc]
    except EOFError as error:
        raise UserError(f"{path}: the gzip stream is truncated; download or copy the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the gzip stream is damaged ({error}); download or copy the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def first_bytes(path: Path, count: int = 4) -> bytes:
    """The first uncompressed bytes of a file."""
    with open_stream(path) as (stream, _):
        return stream.read(count)


def first_line(path: Path) -> str:
    """The first line of a text, whatever its encoding."""
    with open_stream(path) as (stream, _):
        line = stream.readline(1 << 20)
    return line.decode("utf-16" if line[:2] in ENCODINGS else "utf-8-sig", "replace").rstrip("\r\n\x00")


def text_lines(path: Path, reading: "Reading", encoding: str | None = None) -> Iterator[tuple[int, str]]:
    r"""Each line of a text and its number, from 1; lines end at ``\n`` or ``\r\n`` alone.

    UTF-8 (with or without a mark) and UTF-16 are told apart by how the file begins. A file that has bytes beyond ASCII,
    none of whose lines is UTF-8, is Latin-1, and that is remarked; in any other file a line that cannot be decoded
    or that holds a NUL byte is a bad line.

    Args:
        encoding: of the text, where it is known.
    """
    total = path.stat().st_size if path.exists() else 0
    with open_stream(path) as (stream, position):
        if encoding is None and first_bytes(path, 2) in ENCODINGS:
            reading.remark(path, f"text is {ENCODINGS[first_bytes(path, 2)]}")
            stream = io.BytesIO(stream.read().decode("utf-16", "replace").encode())
        for number, line in enumerate(stream, 1):
            if number % PROGRESS_LINES == 0:
                reading.progress(path, position(), total)
            elif number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                text = line.rstrip(b"\r\n").decode(encoding or "utf-8")
            except UnicodeDecodeError:
                if encoding is None:
                    encoding = encoding_of(path)
                    if encoding != "utf-8":
                        reading.remark(path, "text is Latin-1")
                        yield number, line.rstrip(b"\r\n").decode(encoding)
                        continue
                reading.reject(path, f"line {number}", "not UTF-8 text")
                continue
            if "\x00" in text:
                reading.reject(path, f"line {number}", "holds a NUL byte")
                continue
            yield number, text
    reading.progress(path, total, total)


def encoding_of(path: Path) -> str:
    """``"utf-8"``; or ``"latin-1"`` where bytes beyond ASCII occur and no line that has one is UTF-8."""
    foreign = False
    with open_stream(path) as (stream, _):
        for line in stream:
            if line.isascii():
                continue
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                foreign = foreign or _looks_like_latin(line)
            else:
                return "utf-8"
    return "latin-1" if foreign else "utf-8"


def _looks_like_latin(line: bytes) -> bool:
    """Whether the line's bytes beyond ASCII are letters or signs of Latin-1, neither of its control codes nor ÿ."""
    return all(byte < 0x80 or 0xA0 <= byte < 0xFF for byte in line)


def _refuse_what_is_no_data(path: Path, head: bytes) -> None:
    lower = head.lstrip().lower()
    for magic, what in NO_DATA:
        if head.startswith(magic) or (magic.startswith(b"<") and lower.startswith(magic)):
            raise UserError(f"{path}: {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: is a tar archive; unpack it first (tar xf)")
