"""Files that a stranger may have put there: read only where they are regular files, no link among them, of a size that can be meant."""

from __future__ import annotations

import errno
import os
import stat
from hashlib import file_digest
from io import BufferedReader, FileIO
from pathlib import Path
from typing import NamedTuple, TextIO

from stackwise.storage.posix import APPEND, READ


class Stamp(NamedTuple):
    """What changes when a file is written or replaced, and not when it is read."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


LARGEST_DOCUMENT = 64 << 20
"""Bytes of a JSON or YAML file of ours, far beyond any that was written."""


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened to read.

    Raises:
        OSError: there is none, or a link, pipe, device or directory stands in its place.
    """
    handle = os.open(path, READ)
    try:
        _refuse_irregular(handle, path)
        return BufferedReader(FileIO(handle))
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, limit: int = LARGEST_DOCUMENT) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`, or more bytes than the limit, of which none is read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {limit:,} at most are read", str(path))
        return file.read(limit)


def append_regular(path: Path) -> TextIO:
    """A text file to add lines to, made where there is none.

    Raises:
        OSError: a link, pipe, device or directory stands in its place.
    """
    handle = os.open(path, APPEND, 0o666)
    try:
        _refuse_irregular(handle, path)
        return os.fdopen(handle, "a", encoding="utf-8")
    except BaseException:
        os.close(handle)
        raise


def _refuse_irregular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def digest_regular(path: Path) -> tuple[str, Stamp]:
    """The sha256 of a regular file, and what tells whether it is still that file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        return file_digest(file, "sha256").hexdigest(), stamp


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now.

    Raises:
        OSError: there is no such file.
    """
    return _stamp(path.lstat())


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
