"""One safetensors file that several processes write together: each its own rows of the tensors that it holds a part of.

A safetensors file is eight bytes with the length of the header, the header, and the bytes of the tensors one after the other. The rows
that a process holds of a tensor are neighbours in it, so each process writes them where they belong, and no process ever holds a whole
tensor for that. What comes of it is what one process would write, so everything that reads the one reads the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from attrs import evolve, frozen

from stackwise.storage import disk
from stackwise.storage.regular import digest_regular
from stackwise.storage.tensor_file import SAME, FileRecord, distinct

NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""What the format calls them."""


class Others(Protocol):
    """The processes that write together, as one of them sees them."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them hold."""

    def gather(self, item: Any) -> list[Any]:
        """What every process gives, told to all of them, by rank."""

    def to_write(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int] | None:
        """The rows that this process writes of a tensor, whole or divided, and where they begin in it; None where that is nothing."""

    def waiting(self) -> AbstractContextManager[object]:
        """The time in which this process waits for a file to be whole."""


class _Form(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of the values under one index of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Of all values."""
        return prod(self.shape) * self.dtype.itemsize


@frozen
class Held:
    """What this process holds of the tensors of a file."""

    forms: Mapping[str, _Form]
    same: Mapping[str, str]
    """Name → the first name of the same memory, as far as this process can tell."""
    rows: Mapping[str, torch.Tensor]
    """What it writes of each tensor, once; nothing of some."""
    begins: Mapping[str, int]
    """The row at which that begins."""

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], others: Others) -> Held:
        """Look at tensors, whole or divided.

        Args:
            tensors: name → tensor, of the same names, shapes and dtypes in every process.
            others: the processes.

        Raises:
            TypeError: a tensor that safetensors cannot hold, by name.
        """
        with torch.no_grad():  # where gradients are recorded, torch makes a view of each part, for half of what this takes
            once, same = distinct(tensors)
            pieces = {name: mine for name, tensor in once.items() if (mine := others.to_write(tensor)) is not None}
        forms = {name: _Form(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return cls(forms, same, {name: rows for name, (rows, _) in pieces.items()}, {name: row for name, (_, row) in pieces.items()})

    def copied(self, copy: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Held:
        """The same with copies, to be written while the tensors change."""
        return evolve(self, rows=copy(self.rows))


@frozen
class _Layout:
    """Where everything of a file begins."""

    header: bytes
    size: int
    starts: Mapping[str, int]

    @classmethod
    def of(cls, forms: Mapping[str, _Form], metadata: Mapping[str, str]) -> _Layout:
        """The layout of tensors; the same in every process, as names, shapes and dtypes are."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        offsets, offset = {}, 0
        for name in sorted(forms, key=lambda name: (-forms[name].dtype.itemsize, name)):  # each begins at a multiple of its size
            form = forms[name]
            offsets[name], stop = offset, offset + form.bytes
            entries[name] = {"dtype": NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, len(header) + offset, {name: len(header) + start for name, start in offsets.items()})


def write_shared(path: Path | None, held: Held, others: Others) -> FileRecord:
    """Write tensors to a new file together with the other processes, force it to disk and read it back.

    Args:
        path: in the first process a file that does not exist, on a disk that all of them see; None in the others, which are told it.
        held: what this process writes of it.
        others: the processes.

    Returns:
        What a manifest says of the file; in the first process alone with its digest.

    Raises:
        OSError: the disk of any process refuses, or returns other bytes.
    """
    same = others.gather(held.same)[0]  # the first process holds rows of every tensor; where one holds none, two tensors look like one
    once = {name: form for name, form in held.forms.items() if name not in same}
    layout = _Layout.of(once, {SAME: json.dumps(same)} if same else {"format": "pt"})
    with _Together(others) as together:
        if path is not None:
            disk.reserve(path, layout.header, layout.size)
    place = Path(next(given for given in others.gather(path) if given is not None))
    with together:
        mine = [name for name in held.rows if name in once]
        disk.write_pieces(place, [(layout.starts[name] + held.begins[name] * once[name].row_bytes, held.rows[name]) for name in mine])
    return FileRecord("" if path is None else digest_regular(path)[0], layout.size)


class _Together:
    """A piece of work on the disk that all processes do, and which failed for all where it failed for one."""

    def __init__(self, others: Others) -> None:
        self._others = others

    def __enter__(self) -> _Together:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, OSError):
            return
        said = self._others.gather(None if error is None else (error.errno, error.strerror or str(error)))
        if error is None and (fault := next((each for each in said if each is not None), None)) is not None:
            raise OSError(*fault)
