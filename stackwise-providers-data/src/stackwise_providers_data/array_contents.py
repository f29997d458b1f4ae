"""What the arrays in files hold: read at once, read by a thread, or known from an earlier run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from attrs import asdict, frozen

from stackwise_providers_data.array_headers import StoredArray
from stackwise_providers_data.cache import recall, remember

Entries = npt.NDArray[Any]

_LARGE_BYTES = 64 << 20
_CHUNK_ENTRIES = 1 << 20
_RACY_NS = 2 * 10**9


@frozen(kw_only=True)
class Content:
    """What an array holds."""

    sha256: str
    low: int = 0
    high: int = 0
    """Bounds of integer entries, both included."""
    broken: int | None = None
    """First row with an entry that is not finite."""


class ArrayContents:
    """The content of one array, once it is known.

    Args:
        known: its content, if it is known already.
        read: reads the whole array; called in a thread at once if nothing is known.
    """

    def __init__(self, known: Content | None, read: Callable[[], Content]) -> None:
        self.known = known
        self._read = read
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="stackwise-array-contents", daemon=True)
        if known is None:
            self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether reading it failed."""
        return self._error is not None

    def _run(self) -> None:
        try:
            self.known = self._read()
        except BaseException as error:  # raised again in the thread that waits
            self._error = error

    def wait(self) -> Content:
        """What the array holds.

        Raises:
            Exception: whatever reading raised.
        """
        if self.known is None and self._error is None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert self.known is not None
        return self.known

    def check(self, refuse: Callable[[Content], None], delivered: torch.Tensor) -> bool:
        """Check rows that are delivered before the whole array has been read. Returns whether no further check is needed.

        Args:
            refuse: raises an error for a content that is not allowed.
            delivered: entries of the array.

        Raises:
            DataError: these rows, or the array as far as it has been read, hold values that are not allowed.
        """
        if self.known is None and self._error is None:
            try:
                refuse(_content_of(delivered))
            except Exception:
                refuse(self.wait())  # says which of all entries it is
                raise
            return False
        refuse(self.wait())
        return True


def _content_of(tensor: torch.Tensor) -> Content:
    if tensor.is_floating_point():
        return Content(sha256="", broken=None if bool(torch.isfinite(tensor).all()) else 0)
    if tensor.dtype == torch.bool or not tensor.numel():
        return Content(sha256="")
    low, high = torch.aminmax(tensor.to(torch.int64))
    return Content(sha256="", low=min(0, int(low)), high=max(0, int(high)))


_READING: dict[str, ArrayContents] = {}
"""Large arrays that this process has opened, by file and place: the training part and each evaluation read the same one."""


def contents_of(array: StoredArray, read: Callable[[], Entries]) -> ArrayContents:
    """The content of an array; a small one is read at once.

    Args:
        array: where it lies.
        read: gives its entries, mapped where they can be.
    """
    status = array.path.stat()
    if status.st_size <= _LARGE_BYTES:
        content = _scan(array, read)
        return ArrayContents(content, lambda: content)
    identity = json.dumps([str(array.path.resolve()), array.key, status.st_size, status.st_mtime_ns])
    name = f"array-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    racy = status.st_mtime_ns > time.time_ns() - _RACY_NS
    if not racy and (known := recall(name)) is not None and set(known) == {"sha256", "low", "high", "broken"}:
        content = Content(**known)
        return ArrayContents(content, lambda: content)
    if racy or name not in _READING or _READING[name].failed:
        _READING[name] = ArrayContents(None, lambda: _remembered(array, read, None if racy else name))
    return _READING[name]


def _remembered(array: StoredArray, read: Callable[[], Entries], name: str | None) -> Content:
    content = _scan(array, read)
    if name is not None:
        remember(name, asdict(content))
    return content


def _scan(array: StoredArray, read: Callable[[], Entries]) -> Content:
    entries = read()
    digest = hashlib.sha256(f"{array.shape.dtype} {list(array.shape.sizes)}\n".encode())
    low, high, broken = 0, 0, None
    rows = max(1, _CHUNK_ENTRIES // max(1, entries[0].size))
    for first in range(0, len(entries), rows):
        chunk = np.ascontiguousarray(entries[first : first + rows])
        digest.update(chunk.data.cast("B") if chunk.size else b"")
        if array.shape.is_integer:
            low, high = min(low, int(chunk.min())), max(high, int(chunk.max()))
        elif array.shape.dtype != "bool" and broken is None and not bool((finite := np.isfinite(chunk)).all()):
            broken = first + int(np.flatnonzero(~finite.reshape(len(chunk), -1).all(axis=1))[0])
    return Content(sha256=digest.hexdigest(), low=low, high=high, broken=broken)
