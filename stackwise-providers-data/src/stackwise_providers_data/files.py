"""Which files a corpus is read from, and which of them a split sees; found without importing torch or reading content.

A file is held out by a hash of its path alone, so that training and evaluations never share one, whatever the seed, and adding files moves
no other across.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import DataError, UserError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def is_heldout(content: str | bytes, share: float) -> bool:
    """Whether something belongs to the evaluations: the first 64 bits of its SHA-256, as a fraction, lie below `share`."""
    raw = content.encode() if isinstance(content, str) else content
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") < share * 2**64


def check_globs(paths: object) -> None:
    """Refuse what is no list of globs.

    Raises:
        UserError: so it is.
    """
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"paths: {paths!r} is no list of globs: write [corpus/**/*.txt]")


def globbed(paths: Sequence[str]) -> dict[str, Path]:
    """The files that globs find, by the path as the glob spells it.

    Raises:
        DataError: a glob without a match, or one that matches a link to nothing.
    """
    files: dict[str, Path] = {}
    for pattern in paths:
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        if broken := [path for path in matches if Path(path).is_symlink() and not Path(path).exists()]:
            raise DataError(f"{broken[0]!r} cannot be read: the link leads nowhere: mend it or leave it out")
        found = [path for path in matches if Path(path).is_file()]
        if not found:
            raise DataError(
                f"paths: no file matches {pattern!r} in the working directory {str(Path.cwd())!r}: mend the glob or change there"
            )
        files |= {Path(path).as_posix(): Path(path) for path in found}
    return files


def stdlib_files() -> dict[str, Path]:
    """Every `.py` file of the running Python's library by its path inside it, the library's tests left out.

    Raises:
        DataError: no sources where the library says they are.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        files |= {(path := Path(folder, name)).relative_to(root).as_posix(): path for name in names if name.endswith(".py")}
    if not files:
        raise DataError(f"python-stdlib: no sources lie in {str(root)!r}: install the library's sources, or use text-files")
    return files


def refuse_none(name: str, heldout: float, total: int, noun: str, *, held: bool) -> DataError:
    """The error of a split without documents."""
    if not total:
        return DataError(f"{name}: there are no {noun}, the data are empty: give some")
    what, fix = ("the evaluations", "raise") if held else ("training", "lower")
    return DataError(f"{name}: a heldout of {heldout:g} leaves none of {total} {noun} for {what}: {fix} heldout or give more {noun}")


@frozen(eq=False)
class FileDocuments:
    """Every file is a document; those of a split in the order of their paths."""

    name: str
    by_path: Mapping[str, Path]
    heldout: float
    noun: str = "files"

    def chosen(self, *, held: bool) -> list[Path]:
        """The files of a split.

        Raises:
            DataError: none.
        """
        paths = [self.by_path[path] for path in sorted(self.by_path) if is_heldout(path, self.heldout) == held]
        if not paths:
            raise refuse_none(self.name, self.heldout, len(self.by_path), self.noun, held=held)
        return paths

    def sizes(self, *, held: bool) -> list[int]:
        """Bytes of each file of a split."""
        return [path.stat().st_size for path in self.chosen(held=held)]

    def files(self) -> list[Path]:
        """All files."""
        return [self.by_path[path] for path in sorted(self.by_path)]

    def identity(self) -> Any:
        """The paths as spelt, which decide what is held out."""
        return [sorted(self.by_path), self.heldout]

    def read(self, *, held: bool) -> Iterator[tuple[str, bytes]]:
        """Path and content of each file of a split.

        Raises:
            DataError: no files, or one that cannot be read.
        """
        for path in self.chosen(held=held):
            yield repr(str(path)), read_bytes(path)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as fault:
        raise DataError(f"{str(path)!r} cannot be read: {fault.strerror}: mend its permissions or leave it out") from fault
