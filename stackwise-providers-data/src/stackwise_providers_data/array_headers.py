"""What lies in files of arrays, read from their headers alone: npy, npz and safetensors, without numpy or torch."""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any

from attrs import frozen

from stackwise import DataError
from stackwise_providers_data.array_shapes import ArrayShape

_INTEGERS = {f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)}
_NPY = {**_INTEGERS, "f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool"}
_SAFETENSORS = {f"{name[0].upper()}{name.lstrip('uint')}": name for name in _INTEGERS.values()} | {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
}
_MOST_HEADER_BYTES = 100 << 20


@frozen(kw_only=True)
class StoredArray:
    """An array in a file."""

    path: Path
    key: str | None
    """Its name inside the file; None in npy files."""
    shape: ArrayShape
    offset: int | None
    """Byte at which its entries begin; None where they are compressed, or not in C order."""
    label: str
    """What messages call it."""


def find_array(field: str, reference: str) -> StoredArray:
    """The array that a reference names: `a.npy`, `a.npz:key`, `a.safetensors:key`; the key may be left out where there is one array.

    Raises:
        DataError: no such file or array, a damaged file, or entries that are not numbers of this machine's byte order.
    """
    name, _, key = reference.rpartition(":")
    path = Path(name if name.endswith((".npz", ".safetensors")) else reference)
    asked = key if path == Path(name) and name else None
    label = f"files.{field} ({reference!r})"
    readers: dict[str, Callable[[Path, str | None, str], StoredArray]] = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise DataError(f"{label}: a file of arrays ends in .npy, .npz or .safetensors")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{label}: it is no file but a folder, pipe or device: name a file")
    try:
        return readers[path.suffix](path, asked, label)
    except OSError as fault:
        raise DataError(f"{label}: it cannot be read: {fault.strerror}: mend the path or its permissions") from fault
    except (ValueError, KeyError, TypeError, SyntaxError, AttributeError, zipfile.BadZipFile) as fault:
        raise DataError(f"{label}: it is damaged, or no {path.suffix} file ({fault}): save it again") from fault


def _npy(path: Path, key: str | None, label: str) -> StoredArray:
    with path.open("rb") as file:
        shape, in_order, offset = _npy_header(file, label)
        _refuse_short(path.stat().st_size, offset + _bytes(shape), label)
    return StoredArray(path=path, key=None, shape=shape, offset=offset if in_order else None, label=label)


def _npz(path: Path, key: str | None, label: str) -> StoredArray:
    with zipfile.ZipFile(path) as archive:
        held = {name.removesuffix(".npy"): name for name in archive.namelist()}
        key = _chosen(key, held, label)
        info = archive.getinfo(held[key])
        with archive.open(info) as member:
            shape, in_order, header = _npy_header(member, label)
        _refuse_short(info.file_size, header + _bytes(shape), label)
    offset = None
    if in_order and info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)  # the lengths of name and extra field there may differ from those of the directory
        offset = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little") + header
    return StoredArray(path=path, key=key, shape=shape, offset=offset, label=label)


def _safetensors(path: Path, key: str | None, label: str) -> StoredArray:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        entries = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    key = _chosen(key, entries, label)
    entry = entries[key]
    if entry["dtype"] not in _SAFETENSORS:
        raise DataError(f"{label}: entries of {entry['dtype']} are not read from files: save them as float32 or as integers")
    shape = ArrayShape(tuple(map(int, entry["shape"])), _SAFETENSORS[entry["dtype"]])
    offset = 8 + size + int(entry["data_offsets"][0])
    _refuse_short(path.stat().st_size, offset + _bytes(shape), label)
    return StoredArray(path=path, key=key, shape=shape, offset=offset, label=label)


def _npy_header(file: IO[bytes], label: str) -> tuple[ArrayShape, bool, int]:
    """Shape, whether the entries are in C order, and the number of bytes before them (numpy.lib.format)."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin like a numpy file")
    width = 2 if magic[6] == 1 else 4
    size = int.from_bytes(file.read(width), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes")
    header: dict[str, Any] = ast.literal_eval(file.read(size).decode("latin1" if magic[6] < 3 else "utf-8").strip())
    described = header["descr"]
    code = described[1:] if isinstance(described, str) else ""
    if code not in _NPY or described[0] == ">":
        raise DataError(f"{label}: entries of {described!r} are not numbers of this byte order: save integers, floats or bools")
    sizes = tuple(map(int, header["shape"]))
    in_order = not header["fortran_order"] or len(sizes) < 2
    return ArrayShape(sizes, _NPY[code]), in_order, 8 + width + size


def _chosen(key: str | None, held: Any, label: str) -> str:
    if key is None and len(held) == 1:
        return str(next(iter(held)))
    if key is None or key not in held:
        what = "it holds" if key is None else f"it holds no '{key}' but"
        raise DataError(f"{label}: {what} {', '.join(sorted(held)) or 'nothing'}: name one after a colon")
    return key


def _bytes(shape: ArrayShape) -> int:
    bits = shape.dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return prod(shape.sizes) * (int(bits) // 8 if bits else 1)


def _refuse_short(size: int, needed: int, label: str) -> None:
    if size < needed:
        raise DataError(f"{label}: it has {size} bytes where its header speaks of {needed}: the file was cut off: save it again")
