"""One safetensors file that several processes write together: each its own rows of the tensors that it holds a part of.

A safetensors file is eight bytes with the length of the header, the header, and the bytes of the tensors one behind the other. The rows
that a process holds of a tensor are neighbours in it, so each process writes them where they belong, and no process ever holds a whole
tensor for that. What comes of it is what one process would write, so everything that reads the one reads the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import frozen

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


@frozen
class _Layout:
    """Where everything of a file begins."""

    header: bytes
    size: int
    starts: Mapping[str, int]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> _Layout:
        """The layout of tensors; the same in every process, as names, shapes and dtypes are."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        offsets, offset = {}, 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # each begins at a multiple of its size
            tensor = tensors[name]
            offsets[name], stop = offset, offset + tensor.numel() * tensor.element_size()
            entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, len(header) + offset, {name: len(header) + start for name, start in offsets.items()})


def write_shared(path: Path | None, tensors: Mapping[str, torch.Tensor], others: Others) -> FileRecord:
    """Write tensors to a new file together with the other processes, force it to disk and read it back.

    Args:
        path: in the first process a file that does not exist, on a disk that all of them see; None in the others, which are told it.
        tensors: name → tensor, whole or divided, of the same names, shapes and dtypes in every process.
        others: the processes.

    Returns:
        What a manifest says of the file; in the first process alone with its digest.

    Raises:
        TypeError: a tensor that safetensors cannot hold, by name.
        OSError: the disk of any process refuses, or returns other bytes.
    """
    once, same = distinct(tensors)
    same = others.gather(same)[0]  # the first process holds rows of every tensor; where one holds none, two tensors look like one
    once = {name: tensors[name] for name in tensors if name not in same}
    layout = _Layout.of(once, {SAME: json.dumps(same)} if same else {"format": "pt"})
    with _Together(others) as together:
        if path is not None:
            disk.reserve(path, layout.header, layout.size)
    place = Path(next(given for given in others.gather(path) if given is not None))
    with together:
        pieces = [(name, mine) for name, tensor in once.items() if (mine := others.to_write(tensor)) is not None]
        disk.write_pieces(place, [(layout.starts[name] + _offset(once[name], row), rows) for name, (rows, row) in pieces])
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


def _offset(tensor: torch.Tensor, row: int) -> int:
    return row * (tensor.numel() // tensor.shape[0]) * tensor.element_size() if row else 0
