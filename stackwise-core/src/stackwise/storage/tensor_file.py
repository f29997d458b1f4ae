"""Named tensors as one safetensors file. The library writes it; it is hashed and read back while the disk takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from stackwise.storage import disk
from stackwise.storage.regular import open_regular

_INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64)
_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.bool, *_INTEGERS, *_FLOATS, torch.complex64)
"""What a file can hold."""
_PIECE = 1 << 18
_METADATA = "__metadata__"
SAME = "same_as"
"""Key of the names that share a tensor with another one."""


@frozen
class FileRecord:
    """What a manifest says of a file."""

    sha256: str
    bytes: int


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileRecord:
    """Write tensors to a new file, force it to disk and read it back. A tensor with several names is written once.

    Args:
        path: a file that does not exist.
        tensors: name → tensor, of any shape, on any device, contiguous or not.

    Raises:
        TypeError: a tensor that safetensors cannot hold, by name.
        OSError: the disk refuses, or returns other bytes.
    """
    own, same = distinct(tensors)
    plain = _unshared(own)
    disk.write_tensors(
        path, plain, {SAME: json.dumps(same)} if same else {"format": "pt"}
    )  # one key only: the library shuffles the order of several
    reading = _Reading(path, plain)
    reading.start()
    try:
        disk.sync_file(path)
    finally:
        reading.join()
    return reading.result()


def write_whole(path: Path, content: bytes) -> FileRecord:
    """Write a small new file and force it to disk."""
    return FileRecord(sha256(content).hexdigest(), disk.write_file(path, content))


class _Reading(Thread):
    """Reads a file back during the fsync: sha256 runs while the disk works. A plain thread, because an executor takes no work while the
    interpreter ends."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(name="checkpoint digest")
        self._path, self._tensors = path, tensors
        self._outcome: FileRecord | OSError = OSError(f"{path.name} could not be read back")

    def run(self) -> None:
        try:
            self._outcome = _record_of(self._path, self._tensors)
        except OSError as error:
            self._outcome = error

    def result(self) -> FileRecord:
        """The outcome, once the thread has ended."""
        if isinstance(self._outcome, OSError):
            raise self._outcome
        return self._outcome


def _record_of(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileRecord:
    """The record of a file that holds exactly these tensors, read in pieces that fit the processor's cache.

    The file begins with eight bytes that hold the length of the header. Then come the header and the bytes of the tensors, in the order of
    `offset_keys` and without gaps.

    Raises:
        OSError: the file cannot be read, or holds something else.
    """
    wrong = OSError(f"{path.name} does not read back as it was written")
    try:
        with safe_open(path, framework="pt") as held:
            names = held.offset_keys()
    except SafetensorError:
        raise wrong from None
    if set(names) != tensors.keys():
        raise wrong
    digest = sha256()
    with open_regular(path) as file:
        count = file.read(8)
        digest.update(count)
        digest.update(file.read(int.from_bytes(count, "little")))
        for name in names:
            memory = tensors[name].reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(memory), _PIECE):
                expected = bytes(memory[start : start + _PIECE])
                if (piece := file.read(len(expected))) != expected:
                    raise wrong
                digest.update(piece)
        size = file.tell()
        if file.read(1):
            raise wrong
    return FileRecord(digest.hexdigest(), size)


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a file under all their names, as copies in memory, so that the file may change or go; or mapped from the disk.

    Raises:
        ValueError: the file is not a safetensors file that this module wrote.
        OSError: it cannot be read.
    """
    same = same_names(path)
    try:
        own = load_file(path, backend="mmap" if mapped else "pread")
        return own | {name: own[first] for name, first in same.items()}
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"its tensors cannot be read: {error}") from None


def tensor_names(path: Path) -> set[str]:
    """All the names of a file, without its tensors.

    Raises:
        ValueError: the file is not a safetensors file that this module wrote.
    """
    same = same_names(path)
    with safe_open(path, framework="pt") as held:
        own = set(held.keys())
    if not own.issuperset(same.values()):
        raise ValueError("names share tensors that it does not hold")
    return own | same.keys()


def same_names(path: Path) -> dict[str, str]:
    """Name → the first name of the same tensor, for tensors with several names.

    Raises:
        ValueError: the file is not a safetensors file that this module wrote.
    """
    try:
        with safe_open(path, framework="pt") as held:
            same = json.loads((held.metadata() or {}).get(SAME, "{}"))
        return {str(name): str(first) for name, first in same.items()}
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {error}") from None


def distinct(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and for each further name the first name of the same memory, shape and strides."""
    own: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        divided: Any = tensor if hasattr(tensor, "full_tensor") else None
        held = tensor if divided is None else divided.to_local()  # of a divided tensor what this process holds
        memory = (tensor.device, held.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg(), tensor.is_conj())
        if tensor.numel() and memory in first:
            same[name] = first[memory]
        else:
            own[name], first[memory] = tensor, name
    return own, same


def _check(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that the file cannot hold, before anything is written."""
    if name == _METADATA or (not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name)):
        raise TypeError(f"{name!r} cannot name a tensor in a safetensors file: use Unicode text other than '{_METADATA}'")
    if tensor.dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise TypeError(f"{name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: safetensors cannot hold its values")


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, which the library refuses. Only those that share any are copied."""
    plain: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        start = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if start in memory and own.numel() else own
        memory.add(start)
    return plain
