"""Named tensors as one safetensors file, hashed while it is written.

The format (huggingface.co/docs/safetensors): eight bytes with the length of the header, a JSON header with dtype, shape and offsets of
every tensor, then their bytes in that order, little-endian and without holes. Writing it from the tensors' own memory spares the
second copy of everything that the library would build; reading is left to the library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import torch
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load

from stackwise.storage import disk

_DTYPES = {
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
_PIECE = 1 << 18
_METADATA, _SAME = "__metadata__", "same_as"


@frozen
class FileRecord:
    """What a manifest says of a file."""

    sha256: str
    bytes: int


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileRecord:
    """Write tensors to a new file, force it to disk and read it back; one that has several names is written once.

    Args:
        path: a file that does not exist.
        tensors: name → tensor, of any shape, on any device, contiguous or not.

    Raises:
        TypeError: a tensor that safetensors cannot hold, by name.
        OSError: the disk refuses, or gives back other bytes.
    """
    if sys.byteorder != "little":
        raise OSError("safetensors files are written in the machine's byte order, and this machine's is not little-endian")
    own, same = distinct(tensors)
    return _write_verified(path, [_header(own, same), *(_bytes_of(tensor) for tensor in own.values())])


def write_whole(path: Path, content: bytes) -> FileRecord:
    """Write a small new file and force it to disk."""
    return FileRecord(sha256(content).hexdigest(), disk.write_file(path, [content]))


class _Check(Thread):
    """The digest of what is written, and then whether the file reads back so; sha256 lets the writing and the disk go on beside it."""

    def __init__(self, path: Path, chunks: Sequence[bytes | memoryview]) -> None:
        super().__init__(name="checkpoint digest")
        self._path, self._chunks = path, chunks
        self._written, self._abandoned = Event(), False
        self.digest = ""
        self.error: OSError | None = None

    def run(self) -> None:
        digest = sha256()
        for chunk in self._chunks:
            digest.update(chunk)
        self.digest = digest.hexdigest()
        self._written.wait()
        if not self._abandoned:
            try:
                self._compare()
            except OSError as error:
                self.error = error

    def written(self) -> None:
        """The file is complete, though not yet on disk."""
        self._written.set()

    def abandon(self) -> None:
        """There is no file to read back."""
        self._abandoned = True
        self._written.set()

    def _compare(self) -> None:
        """Read in pieces that fit the processor's cache; equal bytes have equal digests, and cost a tenth."""
        with self._path.open("rb") as file:
            for chunk in self._chunks:
                for start in range(0, len(chunk), _PIECE):
                    piece = bytes(chunk[start : start + _PIECE])
                    if file.read(len(piece)) != piece:
                        raise OSError(f"{self._path.name} does not read back as it was written")


def _write_verified(path: Path, chunks: Sequence[bytes | memoryview]) -> FileRecord:
    """Write a new file, force it to disk and read it back."""
    check = _Check(path, chunks)
    check.start()
    try:
        size = disk.write_file(path, chunks, written=check.written)
    except BaseException:
        check.abandon()
        raise
    finally:
        check.join()
    if check.error is not None:
        raise check.error
    return FileRecord(check.digest, size)


def read_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a file's bytes under all their names.

    Raises:
        ValueError: the bytes are no safetensors file of ours.
    """
    same = _same_names(content)
    try:
        own = load(content)
        return own | {name: own[first] for name, first in same.items()}
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"its tensors cannot be read: {error}") from None


def distinct(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors without the repeated ones, and for each repeated name the first one of the same memory, shape and strides."""
    own: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg(), tensor.is_conj())
        if tensor.numel() and memory in first:
            same[name] = first[memory]
        else:
            own[name], first[memory] = tensor, name
    return own, same


def _check(name: str, tensor: torch.Tensor) -> None:
    """Refuse what the file cannot hold before anything is written."""
    if name == _METADATA or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise TypeError(f"{name!r} cannot name a tensor in a safetensors file: use Unicode text other than '{_METADATA}'")
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise TypeError(f"{name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: safetensors cannot hold its values")


def _header(own: Mapping[str, torch.Tensor], same: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {_METADATA: {"format": "pt", _SAME: json.dumps(same)}}
    start = 0
    for name, tensor in own.items():
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A CPU tensor's own memory where it is contiguous, else that of a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _same_names(content: bytes) -> dict[str, str]:
    """The names that share another's tensor, from the header's metadata."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        same = json.loads(header.get(_METADATA, {}).get(_SAME, "{}"))
        return {str(name): str(first) for name, first in same.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from None
