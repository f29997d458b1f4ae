"""Files that a stranger may have put there: read only where they are regular files, no link among them, of a size that can be meant."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from stackwise.storage.posix import READ

LARGEST_DOCUMENT = 64 << 20
"""Bytes of a JSON or YAML file of ours, far beyond any that was written."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to read.

    Raises:
        OSError: there is none, or a link, pipe, device or directory stands in its place.
    """
    handle = os.open(path, READ)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(handle, "rb")
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
