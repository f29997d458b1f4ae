"""Files that a stranger may have put there: they are read only if they are regular files, no links, and not absurdly large."""

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
    """Facts about a file that change when it is written or replaced, but not when it is read."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


LARGEST_DOCUMENT = 64 << 20
"""Limit in bytes for a JSON or YAML file of a run, far above any real one."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read.

    Raises:
        OSError: there is no file, or a link, pipe, device or directory stands in its place.
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
        OSError: as `open_regular`, or the file has more bytes than the limit.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {limit:,} at most are read", str(path))
        return file.read(limit)


def append_regular(path: Path) -> TextIO:
    """Open a text file to append lines; create it if there is none.

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
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def digest_regular(path: Path) -> tuple[str, Stamp]:
    """The sha256 of a regular file, and its stamp, which shows later whether the file is still the same.

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


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
