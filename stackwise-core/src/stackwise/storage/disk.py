"""Every call that changes files, in one module: a test can make any of them fail, or end the process there.

A file is whole and forced to disk when `write_file` returns; nothing is ever written in place.
"""

# ruff: noqa: PTH101, PTH102, PTH105, PTH106, PTH108, PTH208 -- system calls by their own names, so that a test wraps `os` and has them all
from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stackwise.storage import posix

_PIECE = 1 << 18


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


def reserve(path: Path, begin: bytes, size: int) -> None:
    """Make a new file that begins with these bytes and has room for the rest.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(path, posix.CREATE, 0o666)
    try:
        _write(handle, memoryview(begin))
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_pieces(path: Path, pieces: Sequence[tuple[int, torch.Tensor]]) -> None:
    """Write tensors into the room of a file, each where it begins, force them to disk and read them back.

    Args:
        path: a file that `reserve` made, which other processes write to as well.
        pieces: byte at which each begins, and its values on any device.

    Raises:
        OSError: the disk refuses, or returns other bytes.
    """
    handle = os.open(path, posix.WRITE)
    try:
        for start, tensor in pieces:
            os.lseek(handle, start, os.SEEK_SET)
            _write(handle, _memory(tensor))
        os.fsync(handle)
        for start, tensor in pieces:
            os.lseek(handle, start, os.SEEK_SET)
            _compare(handle, _memory(tensor), path.name)
    finally:
        os.close(handle)


def _memory(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    view: memoryview = plain.reshape(-1).view(torch.uint8).numpy().data
    return view


def _compare(handle: int, expected: memoryview, name: str) -> None:
    done = 0
    while done < expected.nbytes:
        piece = os.read(handle, min(_PIECE, expected.nbytes - done))
        if not piece or piece != expected[done : done + len(piece)]:
            raise OSError(f"{name} does not read back as it was written")
        done += len(piece)


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
