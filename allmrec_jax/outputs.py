"""The folders that commands write, and the one rule for them: what we did not write is neither deleted nor replaced.

A folder of ours holds a mark, the file ``.allmrec``: which kind of folder it is, and the SHA-256 of what was written in
it. One that is neither empty nor marked as of the command's own kind is refused. Folders made before there were marks
are recognised by what they hold.
"""

import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from allmrec_jax.checking import InnerFile
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, digests, read_json, recover, verify, write_text

MARK = ".allmrec"


class _Mark(TypedDict):
    made_by: str
    files: NotRequired[dict[InnerFile, str]]


@dataclasses.dataclass(frozen=True)
class Output:
    """A kind of folder that a command writes.

    Attributes:
        name: what messages call it, e.g. ``"data set"``.
        signs: patterns of files that a folder of the kind holds, all of them, by which one without a mark is known.
        names: patterns of all files that one without a mark may hold.
        grows: patterns of files that are added to one after it was written.
    """

    name: str
    signs: tuple[str, ...]
    names: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()

    def claim(self, path: Path | str) -> None:
        """Makes ``path`` a folder of this kind that is written file by file, and marks it.

        Raises:
            UserError: it is a file, or holds something and is no folder of this kind.
        """
        path = Path(path)
        self._refuse_foreign(path)
        recover(path / MARK)
        if _read_mark(path) is None:
            write_text(path / MARK, _mark(self.name))

    def claim_file(self, path: Path | str, file: Path) -> Path:
        """Enters ``file`` as ours in a folder that others write too, and returns it.

        Raises:
            UserError: it is there already and was not entered by us.
        """
        path = Path(path)
        name = file.relative_to(path).as_posix()
        recover(path / MARK)
        files = _written(_read_mark(path))
        if file.exists() and name not in files:
            raise UserError(f"{file}: is there already and was not written by this command; move it away")
        if name not in files:
            write_text(path / MARK, _mark(self.name, {**files, name: ""}))
        return file

    @contextlib.contextmanager
    def replacing(self, path: Path | str) -> Iterator[Path]:
        """A new folder to fill; it takes the place of ``path`` on success, whole and marked.

        What others have added to a folder of ours is carried over.

        Raises:
            UserError: as :meth:`claim`; or what was added stands where something new belongs.
        """
        path = Path(path)
        self.check(path)
        with atomic_path(path) as folder:
            folder.mkdir()
            yield folder
            mark = _mark(self.name, digests(folder))
            for name in self._added(path):
                if (folder / name).exists():
                    raise UserError(
                        f"{path / name}: is there already and was not written by this command; move it away"
                    )
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path / name, folder / name, follow_symlinks=False)
            (folder / MARK).write_text(mark, encoding="utf-8")

    def check(self, path: Path | str) -> None:
        """Whether ``path`` may be replaced; the errors are those of :meth:`claim`."""
        recover(path)
        self._refuse_foreign(Path(path))

    def _added(self, path: Path) -> list[str]:
        """The files in a folder of ours that others have put there."""
        written = _written(_read_mark(path))
        patterns = self.grows if written else (*self.names, *self.grows)
        return sorted(name for name in _files(path) if name not in written and not _matches(name, patterns))

    def verify(self, path: Path | str, remedy: str, names: tuple[str, ...] | None = None) -> None:
        """Compares files of a marked folder with what was written; one without a mark is taken as it is.

        Args:
            path: the folder.
            remedy: what to do about a damaged file.
            names: the files to compare; all that were written with the folder where absent.

        Raises:
            UserError: a file is missing or damaged.
        """
        files = _written(_read_mark(Path(path)))
        verify(Path(path), {name: files[name] for name in names or files if name in files}, remedy)

    def _refuse_foreign(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: a file is there; choose another place for the {self.name}")
        if not any(_files(path)):
            return
        mark = _read_mark(path)
        if mark is None and self.signs and all(any(path.glob(sign)) for sign in self.signs):
            return
        if mark is None or mark["made_by"] != self.name:
            what = "no" if mark is None else f"a {mark['made_by']} and no"
            raise UserError(
                f"{path}: this folder is not empty and is {what} {self.name} of allmrec; "
                "choose another place, or move what is in it away"
            )


def _files(path: Path) -> Iterator[str]:
    """What lies in the folder; our own mark, locks and temporary folders do not count."""
    for each in path.rglob("*"):
        name = each.relative_to(path).as_posix()
        parts = name.split("/")
        ours = each.name in (MARK, ".lock") or any(_matches(part, (".*.tmp",)) for part in parts)
        if not ours and not (each.is_dir() and not each.is_symlink()):
            yield name


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read_mark(path: Path) -> _Mark | None:
    if not (path / MARK).is_file():
        return None
    return read_json(path / MARK, _Mark, "it says what made this folder: choose another place, or delete it")


def _written(mark: _Mark | None) -> dict[str, str]:
    return {} if mark is None else mark.get("files", {})


def _mark(name: str, files: dict[str, str] | None = None) -> str:
    about = {"made_by": name, "version": importlib.metadata.version("allmrec-jax")}
    return json.dumps(about if files is None else {**about, "files": files}, indent=1) + "\n"
