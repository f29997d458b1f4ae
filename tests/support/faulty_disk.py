"""The disk as checkpoints see it, made to fail, to end the process, or to lose what was not forced down, at any call.

`stackwise.storage.disk` is the one module that changes files, and reaches the system through its name `os` alone. Whatever
stands there instead decides what each call does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from attrs import define, field, frozen

from stackwise.storage import disk
from stackwise.storage.checkpoints.store import Checkpoint, CheckpointStore

CALLS = ("mkdir", "open", "write", "fsync", "fstat", "close", "chmod", "replace", "lstat", "listdir", "unlink", "rmdir")
TENSORS = "save_file"
"""The library's own call: it writes a file of tensors beside its place, and renames it."""

Rule = Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]
"""(number of the call from 0, its name, the real one, its arguments) → what it returns or raises."""


@contextmanager
def ruled(rule: Rule) -> Iterator[None]:
    """Every file-system call of a save goes through the rule."""
    numbers = count()

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        return lambda *arguments: rule(next(numbers), name, real, arguments)

    save_file = disk.save_file
    disk.os = SimpleNamespace(**{name: wrap(name) for name in CALLS})
    disk.save_file = lambda tensors, path, metadata: rule(next(numbers), TENSORS, save_file, (tensors, path, metadata))
    try:
        yield
    finally:
        disk.os, disk.save_file = os, save_file


def failing(at: int, error: int, *, once: bool = True) -> Rule:
    """The call of that number fails; with `once` false all that change something after it do as well, as on a disk that stays full."""

    def rule(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        stays = not once and number > at and name in ("mkdir", "open", "write", TENSORS, "fsync", "replace")
        if number == at or stays:
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    return rule


def exiting(at: int, *, torn: bool = False) -> Rule:
    """The process ends in front of the call of that number; `torn`: after half of it, when it is a write.

    An fsync does nothing here: the end of a process loses nothing that was written, only a power cut does.
    """

    def rule(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == at:
            if torn and name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if torn and name == TENSORS:
                real(*arguments)
                os.truncate(arguments[1], arguments[1].stat().st_size // 2)
            os._exit(CRASHED)
        return None if name == "fsync" else real(*arguments)

    return rule


CRASHED = 77
"""Exit code of a process that `exiting` ended."""


def short_writes(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Every write takes at most seven bytes, as the system is free to."""
    if name == "write":
        return real(arguments[0], arguments[1][:7])
    return real(*arguments)


def count_calls(work: Callable[[], object]) -> list[str]:
    """The names of the calls that some work makes, in order."""
    names: list[str] = []

    def rule(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        names.append(name)
        return real(*arguments)

    with ruled(rule):
        work()
    return names


def tensors_of(which: int) -> dict[str, torch.Tensor]:
    """A small state that differs in every tensor from that of another number: tied, turned, empty and scalar ones, several dtypes."""
    generator = torch.Generator().manual_seed(which)
    weight = torch.randn(4, 3, generator=generator)
    return {
        "model/weight": weight,
        "model/tied": weight,
        "model/turned": torch.randn(3, 2, generator=generator).t(),
        "model/empty": torch.zeros(0, 3),
        "optimizer/step": torch.tensor(float(which)),
        "optimizer/moment": torch.randn(5, generator=generator).to(torch.bfloat16),
        "data/order": torch.randint(1 << 40, (6,), generator=generator),
        "data/seen": torch.rand(9, generator=generator) < 0.5,
        "data/bytes": torch.randint(256, (7,), generator=generator).to(torch.uint8),
    }


def save(store: CheckpointStore, step: int, which: int, **options: Any) -> None:
    """Save the state of that number."""
    store.save(step, tensors_of(which), {"which": which}, **options)


def check_whole(found: Checkpoint) -> int:
    """That a checkpoint holds exactly what was saved with its number; returns the number."""
    which: int = found.about["which"]
    loaded, expected = found.load_state(), tensors_of(which)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    return which


def hidden_entries(directory: Path) -> list[str]:
    """Names in a directory of checkpoints that are none: temporaries, and what stood aside."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("step-"))


@define
class _File:
    content: bytes = b""
    durable: bytes = b""


@define
class _Directory:
    entries: dict[str, _File | _Directory] = field(factory=dict)
    durable: dict[str, _File | _Directory] = field(factory=dict)


@frozen
class PowerCut:
    """What a disk may hold after the power went: what was forced down, and of the rest all or nothing."""

    entries_kept: bool
    """Whether names made, moved or removed since the last fsync of their directory are so on disk."""
    contents_kept: bool
    """Whether bytes written since the last fsync of their file are."""


class RecordingDisk:
    """A rule that passes every call on and repeats it in a model of what the disk holds durably, below a directory.

    Only an fsync makes something durable here: of a file its bytes, of a directory its entries. Real file systems order more than
    this, so what survives here survives there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = _read(root)
        self._opened: dict[int, _File | _Directory] = {}

    def __call__(self, number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = real(*arguments)
        if name == "open":
            self._opened[result] = self._open(*arguments[:2])
        elif name == "write":
            self._opened[arguments[0]].content += bytes(arguments[1][:result])
        elif name == TENSORS:
            parent, leaf = self._place(arguments[1])
            parent.entries[leaf] = _File(arguments[1].read_bytes())
        elif name == "fsync":
            self._force(self._opened[arguments[0]])
        elif name == "mkdir":
            parent, leaf = self._place(arguments[0])
            parent.entries[leaf] = _Directory()
        elif name in ("unlink", "rmdir"):
            parent, leaf = self._place(arguments[0])
            del parent.entries[leaf]
        elif name == "replace":
            (old, leaf), (new, other) = map(self._place, arguments)
            new.entries[other] = old.entries.pop(leaf)
        return result

    def lay_down(self, cut: PowerCut, place: Path) -> None:
        """Write what the disk may hold if the power goes now into a new directory."""
        _lay_down(self._tree, cut, place)

    def _open(self, path: Path, flags: int) -> _File | _Directory:
        if path == self.root:
            return self._tree
        parent, leaf = self._place(path)
        if flags & os.O_CREAT:
            parent.entries[leaf] = _File()
        return parent.entries[leaf]

    def _force(self, opened: _File | _Directory) -> None:
        if isinstance(opened, _File):
            opened.durable = opened.content
        else:
            opened.durable = dict(opened.entries)

    def _place(self, path: Path) -> tuple[_Directory, str]:
        folder = self._tree
        for part in path.relative_to(self.root).parts[:-1]:
            folder = folder.entries[part]
        return folder, path.name


def _read(path: Path) -> _Directory:
    """What lies there, all of it durable."""
    entries = {inner.name: _read(inner) if inner.is_dir() else _File(inner.read_bytes(), inner.read_bytes()) for inner in path.iterdir()}
    return _Directory(entries, dict(entries))


def _lay_down(folder: _Directory, cut: PowerCut, place: Path) -> None:
    place.mkdir()
    for name, inner in (folder.entries if cut.entries_kept else folder.durable).items():
        if isinstance(inner, _Directory):
            _lay_down(inner, cut, place / name)
        else:
            (place / name).write_bytes(inner.content if cut.contents_kept else inner.durable)
