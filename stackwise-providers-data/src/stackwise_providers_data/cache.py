"""Results that are computed once and kept on disk, in folders that are published whole or not at all.

An entry is a folder with `entry.json` beside the files that it names. It is built in a temporary folder next to its place, written
through to the disk, and renamed; a lock lets one process build while others wait for the result. The holder of the lock removes what a
killed process left. On opening, the sizes of all files are compared with `entry.json`, and so is a digest: of the whole file up to 32 MiB,
of 64 blocks spread over it above that, so that opening a large entry reads next to nothing. An entry that does not agree is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from stackwise import UserError

ENTRY = "entry.json"

_WHOLE_BYTES = 32 << 20
_BLOCKS, _BLOCK_BYTES = 64, 4096


def cache_folder() -> Path:
    """The folder of all entries: `STACKWISE_CACHE`, else `stackwise` in `XDG_CACHE_HOME` or `~/.cache`, else a private temporary one.

    Raises:
        UserError: `STACKWISE_CACHE` cannot be written to, or no other folder can.
    """
    if setting := os.environ.get("STACKWISE_CACHE"):
        if (reason := _unwritable(Path(setting))) is not None:
            raise UserError(f"STACKWISE_CACHE: {setting!r} cannot be written to: {reason}: name a folder that can")
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME")
    usual = Path(base if base and Path(base).is_absolute() else os.path.expanduser("~/.cache"), "stackwise")  # noqa: PTH111 - Path.expanduser raises where there is no home
    if (reason := _unwritable(usual)) is None:
        return usual
    private = Path(tempfile.gettempdir(), f"stackwise-{os.getuid() if hasattr(os, 'getuid') else 'cache'}")
    if (refused := _unwritable(private, private=True)) is not None:
        raise UserError(
            f"neither {str(usual)!r} ({reason}) nor {str(private)!r} ({refused}) can keep a cache: set STACKWISE_CACHE to a folder"
        )
    print(f"data: {str(usual)!r} cannot be written to ({reason}); the cache is kept in {str(private)!r}", file=sys.stderr)
    return private


def obtain(name: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder of an entry and its notes; the entry is built where it is missing or damaged.

    Args:
        name: key of the entry; it must contain everything that the content depends on.
        build: writes the files of the entry into a folder and returns notes that JSON can hold.

    Raises:
        UserError: the cache cannot be written to.
    """
    folder = cache_folder()
    target = folder / name
    notes = read_entry(target)
    if notes is not None:
        return target, notes
    try:
        with FileLock(folder / f"{name}.lock"):
            notes = read_entry(target)  # another process may have built it meanwhile
            if notes is None:
                if target.exists():
                    print(f"data: the cache entry {str(target)!r} is damaged and is built anew", file=sys.stderr)
                notes = _publish(target, build)
    except OSError as fault:
        raise UserError(
            f"the cache entry {str(target)!r} cannot be written: {fault.strerror}: make room, or set STACKWISE_CACHE"
        ) from fault
    return target, notes


def read_entry(target: Path) -> dict[str, Any] | None:
    """The notes of a whole entry; None where there is none or it is damaged."""
    try:
        entry = json.loads((target / ENTRY).read_bytes())
        whole = all(_digest(target / file) == expected for file, expected in entry["files"].items())
        return dict(entry["notes"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(name: str, value: Mapping[str, Any]) -> None:
    """Keep a small value under a name, in place of an older one."""
    target = cache_folder() / name
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=target.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    Path(temporary).replace(target)


def recall(name: str) -> dict[str, Any] | None:
    """The value that `remember` kept, or None."""
    try:
        value = json.loads((cache_folder() / name).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _publish(target: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    prefix = f".{target.name}.building-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        notes = dict(build(building))
        files = {path.name: _digest(path) for path in sorted(building.iterdir())}
        for path in building.iterdir():
            _to_disk(path)
        (building / ENTRY).write_text(json.dumps({"files": files, "notes": notes}), encoding="utf-8")
        _to_disk(building / ENTRY)
        if target.exists():
            shutil.rmtree(target)
        building.rename(target)
        _to_disk(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return notes


def _digest(path: Path) -> list[int | str]:
    """Size and digest of a file; of a large one, the digest of blocks spread over it, both ends included."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for i in range(_BLOCKS):
                file.seek(i * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return [size, digest.hexdigest()]


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, *, private: bool = False) -> str | None:
    """Why a folder cannot be written to; None if it can. A missing folder is created."""
    try:
        folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        if private and hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
            return "it belongs to somebody else"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as fault:
        return fault.strerror or str(fault)
