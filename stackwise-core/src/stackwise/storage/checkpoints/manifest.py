"""The manifest of a checkpoint. It is written last and lists the files; a directory that does not match its manifest is not a
checkpoint.
"""

from __future__ import annotations

import json
import platform
import stat
from collections.abc import Collection, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import torch
from attrs import Factory, frozen

from stackwise import __version__
from stackwise.storage import codec
from stackwise.storage.regular import Stamp, digest_regular, read_regular
from stackwise.storage.tensor_file import FileRecord, tensor_names

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT = 2
_LARGEST_MANIFEST = 1 << 20
_FIELDS = {
    "step": int,
    "files": Mapping[str, dict[str, Any]],
    "metrics": Mapping[str, float],
    "pin": str | None,
    "versions": Mapping[str, str],
}
_FILE_FIELDS = {"sha256": str, "bytes": int}


class DamagedError(ValueError):
    """A directory is not a valid checkpoint; the message says why."""


@frozen(kw_only=True)
class Manifest:
    """The files of one checkpoint, its metrics, its pin, and the versions that wrote it."""

    step: int
    files: Mapping[str, FileRecord]
    metrics: Mapping[str, float] = Factory(dict)
    pin: str | None = None
    """Why this checkpoint is never pruned; None: pruning may remove it."""
    versions: Mapping[str, str] = Factory(dict)
    """Library → the version that wrote the checkpoint."""

    def to_bytes(self) -> bytes:
        """The manifest as a JSON file; one key holds its own digest."""
        body = {"format": FORMAT, **attrs.asdict(self)}
        return codec.to_json({**body, "sha256": _digest(body)})


def own_versions() -> dict[str, str]:
    """Library → the version in this process."""
    return {
        "stackwise": __version__,
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, after a look at the size of each file; no file is read.

    Raises:
        DamagedError: the directory is not a checkpoint; the message says why.
    """
    try:
        manifest = _parse(_read(directory / MANIFEST, _LARGEST_MANIFEST))
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}: it was never finished, or is being removed") from None
    for name, record in manifest.files.items():
        _check_size(directory / name, record)
    return manifest


@frozen
class Content:
    """The content of a checkpoint, without its tensors, which stay on disk."""

    document: Mapping[str, Any]
    """Still encoded; the file holds every tensor that it names."""
    stamp: Stamp
    """Stamp of the file of tensors when its digest was verified."""


def check_files(directory: Path, manifest: Manifest) -> Content:
    """Read every file of a checkpoint without loading its tensors into memory.

    Raises:
        DamagedError: bytes differ from the digests in the manifest, or are not tensors and no document.
    """
    stamp = _check_tensors(directory / TENSORS, manifest.files[TENSORS])
    try:
        document = codec.read_object(_read_verified(directory / STATE, manifest.files[STATE]))
        names = tensor_names(directory / TENSORS)
        if unnamed := names - _tensors_named_in(document, names):
            raise ValueError(f"no state names the tensor {min(unnamed)!r}")
    except DamagedError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"its files have the digests that {MANIFEST} states, but cannot be understood: {error}") from None
    return Content(document, stamp)


def _tensors_named_in(document: Any, names: Collection[str]) -> set[str]:
    """The tensors that an encoded document names; ValueError for one that is not in `names`."""
    named: set[str] = set()

    def note(name: str) -> None:
        if name not in names:
            raise KeyError(name)
        named.add(name)

    codec.join_state(document, note)
    return named


def _check_tensors(path: Path, record: FileRecord) -> Stamp:
    try:
        digest, stamp = digest_regular(path)
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from None
    _compare(path.name, record, digest)
    return stamp


def _read_verified(path: Path, record: FileRecord) -> bytes:
    content = _read(path, record.bytes)
    _compare(path.name, record, sha256(content).hexdigest())
    return content


def _compare(name: str, record: FileRecord, digest: str) -> None:
    if digest != record.sha256:
        raise DamagedError(f"{name} is damaged: its sha256 is not the one {MANIFEST} states")


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from None


def _check_size(path: Path, record: FileRecord) -> None:
    """Compare the size without opening the file, so that a pipe or device in its place does not block."""
    try:
        status = path.lstat()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path.name} is not a regular file")
    if status.st_size != record.bytes:
        raise DamagedError(f"{path.name} has {status.st_size} bytes, {MANIFEST} states {record.bytes}")


def _parse(content: bytes) -> Manifest:
    try:
        body = codec.from_json(content)
        digest = body.pop("sha256", None)
        if body.get("format") != FORMAT:
            raise DamagedError(
                f"{MANIFEST} has the format {body.get('format')!r}, and this version reads {FORMAT}: use the version that wrote it"
            )
        _check_names(body.get("files"))
        if digest != _digest(body):
            raise DamagedError(f"{MANIFEST} is damaged: its content does not match its own sha256")
        return _structured(body)
    except DamagedError:
        raise
    except KeyError as error:
        raise DamagedError(f"{MANIFEST} cannot be understood: {error} is missing") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise DamagedError(f"{MANIFEST} cannot be understood: {error}") from None


def _check_names(files: Any) -> None:
    """Refuse file names that no checkpoint has. No name of a manifest is used as a path before this check."""
    if not isinstance(files, dict):
        raise DamagedError(f"{MANIFEST} lists no files")
    for name in files:
        if PurePosixPath(name).name != name or name in ("..", "."):
            raise DamagedError(f"{MANIFEST} names {name!r}, which lies outside the checkpoint")
    if files.keys() != {TENSORS, STATE}:
        raise DamagedError(f"{MANIFEST} names {', '.join(sorted(files)) or 'no file'}; a checkpoint is {TENSORS} and {STATE}")


def _structured(body: Mapping[str, Any]) -> Manifest:
    fields = {name: codec.typed(body[name], wanted, name) for name, wanted in _FIELDS.items()}
    files = {
        name: FileRecord(**{part: codec.typed(record[part], wanted, f"files.{name}.{part}") for part, wanted in _FILE_FIELDS.items()})
        for name, record in fields["files"].items()
    }
    if fields["step"] < 0 or any(record.bytes < 0 for record in files.values()):
        raise ValueError("its step or a size is negative")
    return Manifest(**{**fields, "files": files})


def _digest(body: Mapping[str, Any]) -> str:
    """The digest of the content, independent of layout: sorted keys, no spaces."""
    plain = json.loads(codec.to_json(body))
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
