"""Rows of numbers in a file that is mapped into memory: written once, read by key.

The file has no name, so nothing is left of it when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

from stackwise.errors import DiskError

_FIRST = 64
"""Rows that there is room for at first; then the room grows by an eighth, and nothing is copied."""


class RowStore:
    """Rows of one shape and dtype.

    Args:
        folder: on the disk that holds the file; the system's folder for temporary files when None.
        shape: of a row.
        dtype: of its entries.
    """

    def __init__(self, folder: Path | None, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._file, path = tempfile.mkstemp(dir=folder, prefix="stackwise-rows-")
        Path(path).unlink()
        weakref.finalize(self, os.close, self._file)
        self._where = Path(tempfile.gettempdir()) if folder is None else folder
        self._shape, self._dtype = tuple(shape), dtype
        self._bytes = torch.Size(self._shape).numel() * dtype.itemsize
        self._slots: dict[bytes, int] = {}
        self._rows = torch.empty(0, *self._shape, dtype=dtype)

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, key: bytes, row: torch.Tensor) -> None:
        """Keep a row.

        Raises:
            DiskError: the disk is full.
        """
        slot = len(self._slots)
        if slot == len(self._rows):
            self._make_room(slot + max(_FIRST, slot // 8))
        self._rows[slot] = row
        self._slots[key] = slot

    def get(self, keys: Sequence[bytes]) -> torch.Tensor:
        """Rows that are there, one after the other; a copy.

        Raises:
            KeyError: one is not.
        """
        return self._rows[torch.tensor([self._slots[key] for key in keys])]

    def _make_room(self, rows: int) -> None:
        """The blocks are taken from the disk now: a page that finds none while it is written ends the process."""
        reserve = getattr(os, "posix_fallocate", None)  # not on every system
        try:
            os.ftruncate(self._file, rows * self._bytes) if reserve is None else reserve(self._file, 0, rows * self._bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise DiskError(
                f"model.cache: no room at {self._where} for {rows:,} rows of hidden states of {self._bytes:,} bytes: free some, or leave "
                "model.cache out"
            ) from error
        mapped = mmap.mmap(self._file, rows * self._bytes)
        self._rows = torch.frombuffer(mapped, dtype=self._dtype).view(rows, *self._shape)
