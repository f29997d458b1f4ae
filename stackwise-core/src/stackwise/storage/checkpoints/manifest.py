"""The manifest: written last, it says what a checkpoint consists of; whatever does not match it is no checkpoint."""

from __future__ import annotations

import json
import platform
import stat
from collections.abc import Mapping
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import torch
from attrs import Factory, frozen
from safetensors import SafetensorError, safe_open

from stackwise import __version__
from stackwise.storage import documents
from stackwise.storage.tensor_file import FileRecord

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT = 1
_LARGEST_MANIFEST = 1 << 20


class DamagedError(ValueError):
    """Why a directory is no valid checkpoint, as a sentence."""


@frozen(kw_only=True)
class Manifest:
    """What one checkpoint consists of."""

    step: int
    files: Mapping[str, FileRecord]
    metrics: Mapping[str, float] = Factory(dict)
    pin: str | None = None
    """Why it is never pruned."""
    versions: Mapping[str, str] = Factory(dict)
    """What wrote it."""

    def to_bytes(self) -> bytes:
        """The manifest as a JSON file, its own digest among its keys."""
        body = {"format": FORMAT, **attrs.asdict(self)}
        return documents.encode({**body, "sha256": _digest(body)})


def own_versions() -> dict[str, str]:
    """What this process writes checkpoints with."""
    return {
        "stackwise": __version__,
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint; its files are not read, but they are there and have their size.

    Raises:
        DamagedError: no checkpoint, with the reason.
    """
    try:
        manifest = _parse(_read(directory / MANIFEST, _LARGEST_MANIFEST))
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}: it was never finished, or is being removed") from None
    except OSError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error.strerror}") from None
    for name, record in manifest.files.items():
        _check_size(directory / name, record)
    return manifest


def check_files(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Read every file of a checkpoint, holding none of its tensors in memory; returns its document.

    Raises:
        DamagedError: bytes that are not those the manifest states, or that are no tensors and document.
    """
    record = manifest.files[TENSORS]
    _check_size(directory / TENSORS, record)
    try:
        with (directory / TENSORS).open("rb") as file:
            _compare(TENSORS, record, file_digest(file, "sha256").hexdigest())
        with safe_open(directory / TENSORS, framework="pt") as tensors:
            tensors.keys()
        return documents.decode(read_verified(directory, manifest, STATE))
    except OSError as error:
        raise DamagedError(f"{TENSORS} cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise DamagedError(f"{TENSORS} has the digest that {MANIFEST} states, but is no safetensors file: {error}") from None
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(f"{STATE} has the digest that {MANIFEST} states, but is no document: {error}") from None


def read_verified(directory: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of one file of a checkpoint.

    Raises:
        DamagedError: they are not those the manifest states.
    """
    record = manifest.files[name]
    _check_size(directory / name, record)
    try:
        content = _read(directory / name, record.bytes)
    except OSError as error:
        raise DamagedError(f"{name} cannot be read: {error.strerror}") from None
    _compare(name, record, sha256(content).hexdigest())
    return content


def _compare(name: str, record: FileRecord, found: str) -> None:
    if found != record.sha256:
        raise DamagedError(f"{name} is damaged: its sha256 is not the one {MANIFEST} states")


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DamagedError(f"{path.name} is larger than {limit} bytes")
    return content


def _check_size(path: Path, record: FileRecord) -> None:
    """Opens nothing, so that a pipe or device in a file's place blocks nobody."""
    try:
        found = path.lstat()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path.name} is no regular file")
    if found.st_size != record.bytes:
        raise DamagedError(f"{path.name} has {found.st_size} bytes, {MANIFEST} states {record.bytes}")


def _parse(content: bytes) -> Manifest:
    try:
        body = documents.decode(content)
        stated = body.pop("sha256", None)
        if body.get("format") != FORMAT:
            raise DamagedError(f"{MANIFEST} has the format {body.get('format')!r}; this version reads {FORMAT}")
        _check_names(body.get("files"))
        if stated != _digest(body):
            raise DamagedError(f"{MANIFEST} is damaged: its content does not match its own sha256")
        return _structured(body)
    except DamagedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} cannot be understood: {error}") from None


def _check_names(files: Any) -> None:
    """The names in a manifest are ours; nothing of it is ever used as a path before this."""
    if not isinstance(files, dict):
        raise DamagedError(f"{MANIFEST} lists no files")
    for name in files:
        if PurePosixPath(name).name != name or name in ("..", "."):
            raise DamagedError(f"{MANIFEST} names {name!r}, which lies outside the checkpoint")
    if files.keys() != {TENSORS, STATE}:
        raise DamagedError(f"{MANIFEST} names {', '.join(sorted(files)) or 'no file'}; a checkpoint is {TENSORS} and {STATE}")


def _structured(body: Mapping[str, Any]) -> Manifest:
    step, pin = body["step"], body["pin"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0 or not isinstance(pin, str | None):
        raise ValueError("its step is no step, or its pin no text")
    files = {name: FileRecord(str(record["sha256"]), int(record["bytes"])) for name, record in body["files"].items()}
    if any(record.bytes < 0 for record in files.values()):
        raise ValueError("it states a negative size")
    metrics = {name: float(value) for name, value in body["metrics"].items()}
    return Manifest(step=step, files=files, metrics=metrics, pin=pin, versions=body["versions"])


def _digest(body: Mapping[str, Any]) -> str:
    """Of the content, not of the layout: keys in order, no spaces."""
    plain = json.loads(documents.encode(body))
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
