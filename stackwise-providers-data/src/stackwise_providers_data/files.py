"""Which files a corpus is read from, and which of them a split sees; found without importing torch.

A file is held out by a hash of its path, so that adding files moves no other across. Where that would leave one side without a file, as
it does where there are few, every file is cut into blocks instead.
"""

from __future__ import annotations

import glob
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from attrs import frozen

from stackwise import DataError, Reading, UserError
from stackwise_providers_data.splits import Part, is_heldout, is_in, no_documents, readings
from stackwise_providers_data.text_blocks import least_bytes, stretches

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "zip": re.compile(rb"PK\x03\x04"),
}
MAGIC_BYTES = 10
"""As many bytes as show that a file is compressed."""


def is_url(path: str) -> bool:
    """Whether a path is one that fsspec opens."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def check_globs(paths: object) -> None:
    """Check that paths are a list of globs.

    Raises:
        UserError: they are not.
    """
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"paths: {paths!r} is not a list of globs: write [corpus/**/*.txt]")


def globbed(paths: Sequence[str]) -> dict[str, Path]:
    """The files that globs find, by the path as the glob spells it.

    Raises:
        DataError: a glob without a match, one that matches folders alone, a link to nothing, or one file under two paths.
    """
    files: dict[str, Path] = {}
    for pattern in paths:
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        if broken := [path for path in matches if Path(path).is_symlink() and not Path(path).exists()]:
            raise DataError(f"{broken[0]!r} cannot be read: the link leads nowhere: mend it or leave it out")
        regular = [path for path in matches if Path(path).is_file()]
        if not regular:
            raise _no_match(pattern, matches)
        files |= {Path(path).as_posix(): Path(path) for path in regular}
    _refuse_two_paths(files)
    return files


def globbed_names(paths: Sequence[str]) -> list[str]:
    """The resolved paths of the files that globs find, sorted; a URL stands for itself, and nothing is fetched.

    Raises:
        DataError: as `globbed`.
    """
    local = globbed([path for path in paths if not is_url(path)])
    return sorted([*_resolved(local.values()), *(path for path in paths if is_url(path))])


def _resolved(paths: Iterable[Path]) -> list[str]:
    """The resolved path of each file; a folder that holds many of them is resolved once."""
    folders: dict[Path, str] = {}
    resolved = []
    for path in paths:
        if path.is_symlink():
            resolved.append(os.path.realpath(path))
            continue
        folder = path.parent
        if (real := folders.get(folder)) is None:
            real = folders[folder] = os.path.realpath(folder)
        resolved.append(os.path.join(real, path.name))  # noqa: PTH118 - for tens of thousands of files
    return resolved


def _refuse_two_paths(files: Mapping[str, Path]) -> None:
    """One file under two paths would be read twice, and may be trained on under one and held out under the other."""
    seen: dict[tuple[int, int], str] = {}
    for name, path in sorted(files.items()):
        status = path.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            raise DataError(f"paths: {first!r} and {name!r} are one file, which would be read twice: leave one of the two paths out")


def _no_match(pattern: str, matches: Sequence[str]) -> DataError:
    if folders := [path for path in matches if Path(path).is_dir()]:
        inside = f"{folders[0].rstrip('/')}/**/*"
        return DataError(f"paths: no file matches {pattern!r}: {folders[0]!r} is a folder: write {inside!r} to read the files in it")
    if Path(pattern).is_file():
        return DataError(f"paths: no file matches {pattern!r} as a glob, and one has that very name: write {glob.escape(pattern)!r}")
    if pattern.startswith("~") or "$" in pattern:
        return DataError(f"paths: no file matches {pattern!r}: neither ~ nor a variable is filled in: write the whole path")
    where = f"in the working directory {str(Path.cwd())!r}"
    return DataError(f"paths: no file matches {pattern!r} {where}: mend the glob, or run from the folder that holds them")


def parquet_files(folder: str, part: str) -> tuple[str, ...] | None:
    """Globs of the Parquet files of one part of a dataset: those whose name, or the name of whose folder, begins with the part's, as the
    hub lays them out (`data/train-00000-of-00002.parquet`). None where the folder holds what `save_to_disk` wrote, or no Parquet file.

    Raises:
        DataError: Parquet files, and none of this part.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*.parquet") if path.is_file())
    if not files or any((root / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        return None
    begin = re.compile(rf"{re.escape(part)}(?![A-Za-z0-9])")
    chosen = [path for path in files if any(begin.match(name) for name in path.relative_to(root).parts)]
    if not chosen:
        first = files[0].relative_to(root)
        raise DataError(
            f"part: {folder!r} holds Parquet files ({first} first), and none is named after '{part}', as {part}-0.parquet or "
            f"{part}/0.parquet: name another part, or read them with data.parquet"
        )
    return tuple(glob.escape(str(path)) for path in chosen)


def stdlib_files() -> Mapping[str, Path]:
    """Every `.py` file of the running Python's library by its path inside it, the library's tests left out.

    Raises:
        DataError: no sources where the library says they are.
    """
    return _sources_in(Path(sysconfig.get_path("stdlib")))


@cache
def _sources_in(root: Path) -> Mapping[str, Path]:
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        inside = "" if (place := Path(folder)) == root else f"{place.relative_to(root).as_posix()}/"
        files |= {inside + name: place / name for name in names if name.endswith(".py")}
    if not files:
        raise DataError(f"python-stdlib: no sources lie in {str(root)!r}: install the library's sources, or use text-files")
    return files


class Stretch(NamedTuple):
    """A stretch of a file, in bytes."""

    path: Path
    start: int
    stop: int


@frozen(eq=False)
class FileDocuments:
    """Every file is a document, or every stretch of blocks of one part; in the order of their paths."""

    name: str
    by_path: Mapping[str, Path]
    heldout: float
    """Share that is held out."""

    @cached_property
    def _heldout(self) -> frozenset[str]:
        """The paths whose hash holds them out."""
        return frozenset(path for path in self.by_path if is_heldout(path, self.heldout))

    @property
    def by_blocks(self) -> bool:
        """Whether files are cut, because their hashes put all of them on one side."""
        return 0 < self.heldout < 1 and len(self._heldout) in {0, len(self.by_path)}

    @property
    def noun(self) -> str:
        """What a document is, in the plural."""
        return "pieces" if self.by_blocks else "files"

    def documents(self, part: Part) -> list[Stretch]:
        """The documents of a part.

        Raises:
            DataError: none, or a file that cannot be read.
        """
        paths, by_blocks = sorted(self.by_path), self.by_blocks
        if not by_blocks:
            paths = [path for path in paths if is_in(part, heldout=path in self._heldout)]
        documents: list[Stretch] = []
        for path in (self.by_path[path] for path in paths):
            try:
                size = path.stat().st_size
                pieces = stretches(path, size, self.heldout, part) if by_blocks else [(0, size)]
            except OSError as fault:
                raise unreadable(path, fault) from fault
            documents += [Stretch(path, *piece) for piece in pieces]
        if by_blocks and not documents:
            raise DataError(
                f"{self.name}: a heldout of {self.heldout:g} takes one file of at least {least_bytes(self.heldout)} bytes, and the largest "
                f"of {len(paths)} is smaller: give more text, or give the evaluation `sources` of its own and write heldout: 0 here"
            )
        if not documents:
            raise no_documents(self.name, self.heldout, len(self.by_path), "files", part)
        return documents

    def sizes(self, part: Part) -> list[int]:
        """Bytes of each document of a part."""
        return [stop - start for _, start, stop in self.documents(part)]

    def readings(self, part: Part) -> list[Reading]:
        """What is read of each file for a part."""
        if self.by_blocks:
            return readings(_resolved(self.files()), part, self.heldout, ("blocks", self.heldout))
        paths = (path for name, path in self.by_path.items() if is_in(part, heldout=name in self._heldout))
        return [Reading(path) for path in _resolved(paths)]

    def files(self) -> list[Path]:
        """All files."""
        return [self.by_path[path] for path in sorted(self.by_path)]

    def identity(self) -> Any:
        """The paths as spelt, which decide what is held out, and how it is held out."""
        return [sorted(self.by_path), self.heldout, *(["by blocks"] if self.by_blocks else [])]

    def read(self, part: Part) -> Iterator[tuple[str, bytes]]:
        """Place and content of each document of a part.

        Raises:
            DataError: no documents, or a file that cannot be read or is compressed.
        """
        for path, start, stop in self.documents(part):
            label = repr(str(path)) if (start, stop) == (0, path.stat().st_size) else f"{str(path)!r}, bytes {start} to {stop},"
            yield label, read_bytes(path, start, stop)


def read_bytes(path: Path, start: int = 0, stop: int | None = None) -> bytes:
    """The content of a file, or a stretch of it.

    Raises:
        DataError: it cannot be read, or is compressed.
    """
    try:
        with path.open("rb") as file:
            refuse_compressed(path, file.read(MAGIC_BYTES))
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    except OSError as fault:
        raise unreadable(path, fault) from fault


def refuse_compressed(path: Path, begin: bytes) -> None:
    """Check that a file does not begin as a compressed one does.

    Raises:
        DataError: it does.
    """
    for how, magic in _COMPRESSED.items():
        if magic.match(begin):
            raise DataError(f"{str(path)!r} is compressed ({how}), and text is wanted: unpack it")


def unreadable(path: Path, fault: OSError) -> DataError:
    """The error of a file that the system does not let us read."""
    return DataError(f"{str(path)!r} cannot be read: {fault.strerror}: mend its permissions or leave it out")
