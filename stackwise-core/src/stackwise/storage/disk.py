"""Every call that changes files, in one module: a test can make any of them fail, or end the process there.

A file is whole and forced to disk when `write_file` returns; nothing is ever written in place.
"""

# ruff: noqa: PTH101, PTH102, PTH105, PTH106, PTH108, PTH208 -- system calls by their own names, so that a test wraps `os` and has them all
from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stackwise.storage import posix


def make_directory(path: Path) -> None:
    """Make a directory whose parent exists."""
    os.mkdir(path)


def write_file(path: Path, content: bytes) -> int:
    """Make a new small file and force it to disk.

    Args:
        path: a file that does not exist.
        content: the bytes of the file.

    Returns:
        The size in bytes.

    Raises:
        OSError: the disk refuses, or holds fewer bytes than were written.
    """
    handle = os.open(path, posix.CREATE, 0o666)
    try:
        size = _write(handle, memoryview(content))
        os.fsync(handle)
        size_on_disk = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if size_on_disk != size:
        raise OSError(f"{path.name} holds {size_on_disk} bytes on disk, {size} were written")
    return size


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Make a new safetensors file, not yet forced to disk.

    The library writes a temporary file that only its owner may read, and renames it. So the rights of an ordinary new file are restored.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(path, posix.CREATE, 0o666)
    rights = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # safetensors can hold these tensors, so the system refused
        raise OSError(str(error)) from None
    os.chmod(path, rights)


def sync_file(path: Path) -> None:
    """Force a file to disk."""
    handle = os.open(path, posix.WRITE)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, chunk: memoryview) -> int:
    """Write all of a chunk. One call may take less than the whole, on Linux 2 GiB at most."""
    total = 0
    while total < chunk.nbytes:
        total += (count := os.write(handle, chunk[total:]))
        if not count:
            raise OSError("the disk takes no more bytes")
    return total


def sync_directory(path: Path) -> None:
    """Force the entries of a directory to disk, if the system can."""
    if posix.DIRECTORY is None:
        return
    handle = os.open(path, posix.DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(old: Path, new: Path) -> None:
    """Rename a file or directory. `new` does not exist, or is an empty directory, or both are files."""
    os.replace(old, new)


def remove_tree(path: Path, first: str | None = None) -> None:
    """Remove a directory with its content; do nothing if there is none.

    Args:
        path: a directory; a link is unlinked, never followed.
        first: the file that is removed before all others.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return
    for entry in sorted(os.listdir(path), key=lambda name: (name != first, name)):
        remove_tree(path / entry)
    os.rmdir(path)
