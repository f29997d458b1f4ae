"""The checkpoints of one run. Each is written whole or not at all, and `newest` finds the newest valid one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from stackwise.errors import DiskError, ProviderError, UserError, disk_errors
from stackwise.storage import disk
from stackwise.storage.checkpoints.background import Writer
from stackwise.storage.checkpoints.manifest import (
    MANIFEST,
    STATE,
    TENSORS,
    DamagedError,
    Manifest,
    check_files,
    own_versions,
    read_manifest,
)
from stackwise.storage.checkpoints.retention import Candidate, Direction, Retention
from stackwise.storage.codec import EncodingError, as_bytes, encode, join_state, refuse_tensor
from stackwise.storage.nested_state import split_state
from stackwise.storage.publish import REPLACED, WRITING, aside_of, publish, recover, writing_beside
from stackwise.storage.regular import Stamp, stamp_of
from stackwise.storage.shared_file import Held, Others, write_shared
from stackwise.storage.tensor_file import FileRecord, read_tensors, write_tensors, write_whole

_NAME = re.compile(r"step-(\d{9,})")
SET_ASIDE = ".set-aside"
"""Suffix of checkpoints that a resume passed over."""
_ABOUT, _STATE = "about", "state"
"""The keys of a checkpoint's document, both encoded."""


@frozen
class Skipped:
    """A checkpoint that was passed over, and why, as a sentence."""

    step: int
    name: str
    reason: str


@frozen(kw_only=True)
class Checkpoint:
    """A valid checkpoint: a whole directory whose digests match."""

    step: int
    path: Path
    about: Mapping[str, Any] = field(repr=False)
    """What was saved beside the state."""
    manifest: Manifest = field(repr=False)
    _encoded: Any = field(repr=False)
    _stamp: Stamp = field(repr=False)

    @property
    def name(self) -> str:
        """`step-` and the step in nine digits."""
        return name_of(self.step)

    def load_state(self, *, mapped: bool = False) -> Any:
        """The nested state, its tensors on the CPU; tied tensors are one object again.

        Args:
            mapped: whether tensors stay on the disk until they are read, for a process that needs some rows of them.

        Raises:
            UserError: the files changed after the checkpoint was opened and its digests were verified.
        """
        try:
            tensors = read_tensors(self.path / TENSORS, mapped=mapped)
            if stamp_of(self.path / TENSORS) != self._stamp:
                raise ValueError(f"{TENSORS} changed since its digest was verified")
            return join_state(self._encoded, tensors.__getitem__)
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {self.path} cannot be loaded: {error}") from None


class CheckpointStore(Writer):
    """A directory of checkpoints with one writer.

    Args:
        directory: the place of the checkpoints. The first save makes it; its parent exists.
        keep_last: how many of the newest stay; None keeps all.
        keep_every: checkpoints at multiples of this many steps stay too.
        best: (metric, "min" or "max"): the best one by this metric stays too; `save` takes the values.
        pins: steps that are never pruned, such as the one that a run resumed from.
        others: processes that hold parts of the state and write them, each by `StoreBeside`; None where this one holds all of it.

    Raises:
        UserError: a rule that keeps nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        best: tuple[str, Direction] | None = None,
        pins: Collection[int] = (),
        others: Others | None = None,
    ) -> None:
        super().__init__(others)
        self.directory = directory
        self._retention = Retention(last=keep_last, every=keep_every, best=best)
        self._pins = set(pins)
        self._tidied = False

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        asynchronous: bool = False,
        pin: str | None = None,
    ) -> None:
        """Write one checkpoint, then prune; an older one of the same step stays valid until this one is whole.

        This waits first for a save in flight. If `asynchronous`, the state is copied before this returns, and the next `save`, `wait` or
        `close` raises the errors of the writing thread.

        Args:
            step: steps done so far.
            state: the state to resume from: dicts, lists, tuples, text, booleans, None, numbers and tensors of any shape and dtype, on any
                device; tied tensors are written once.
            about: what the checkpoint says of the run: maps with text keys, lists, text, booleans, None and numbers, nan and infinities
                included.
            metrics: values by which the best checkpoint is chosen.
            asynchronous: write in a thread.
            pin: why this checkpoint is never pruned; None: pruning may remove it.

        Raises:
            DiskError: the disk refuses; nothing of the new checkpoint is left, and those before it are untouched.
            ProviderError: the state holds something else; the message says where.
            TypeError: safetensors cannot hold a tensor, or JSON a value; the message names it.
        """
        self.wait()
        try:
            tensors, encoded = split_state(state)
        except EncodingError as error:
            raise ProviderError(f"{error}; a state_dict is made of nothing else") from None
        document = {_ABOUT: encode(about, _ABOUT), _STATE: encoded}
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        write = self._writer(tensors, asynchronous=asynchronous)
        self._start(lambda: self._save(step, write, document, numbers, pin), asynchronous=asynchronous)

    def _writer(self, tensors: Mapping[str, torch.Tensor], *, asynchronous: bool) -> Callable[[Path], FileRecord]:
        """Writes tensors, or what they are now, to a file, together with the processes that hold the rest of them."""
        if (others := self._others) is None:
            values = self._snapshot.take(tensors) if asynchronous else tensors
            return lambda path: write_tensors(path, values)
        held = Held.of(tensors, others)
        rows = held.copied(self._snapshot.copy) if asynchronous else held
        return lambda path: write_shared(path, rows, others)

    def pin(self, step: int) -> None:
        """Never prune this step while the store is open."""
        self._pins.add(step)

    def forget_after(self, step: int) -> None:
        """Remove every checkpoint of a later step, because training goes another way from this step on.

        Raises:
            DiskError: the disk refuses.
        """
        self.wait()
        try:
            for saved_step, path in self._candidates():
                if saved_step > step:
                    disk.remove_tree(path, first=MANIFEST)
        except OSError as error:
            raise DiskError(f"disk error: {self.directory}: a checkpoint could not be removed: {_reason(error)}") from error

    def set_aside(self, skipped: Iterable[Skipped]) -> None:
        """Rename checkpoints that a resume passed over, so that they count no more.

        Training goes its own way past their steps. If such a checkpoint became readable again (a disk was away, say), it would be the
        newest one, of another history.

        Raises:
            DiskError: the disk refuses.
        """
        with disk_errors(self.directory, "nothing was removed: free space or mend the disk, then resume"):
            for each in skipped:
                place = self.directory / f"{each.name.strip('.')}{SET_ASIDE}"
                disk.remove_tree(place)
                disk.rename(self.directory / each.name, place)
            disk.sync_directory(self.directory)

    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints on disk, valid or not, oldest first."""
        return tuple(dict.fromkeys(name_of(step) for step, _ in self._candidates()))[::-1]

    def newest(self, up_to: int | None = None) -> tuple[Checkpoint | None, list[Skipped]]:
        """The newest valid checkpoint, at most of step `up_to`, and the newer ones that were skipped, each with the reason."""
        skipped: list[Skipped] = []
        for step, path in self._candidates():
            if up_to is not None and step > up_to:
                continue
            try:
                return _open(step, path), skipped
            except DamagedError as reason:
                skipped.append(Skipped(step, path.name, str(reason)))
        return None, skipped

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            UserError: there is none, or it is damaged; the message lists the existing ones.
        """
        reasons = []
        for saved_step, path in self._candidates():
            if saved_step == step:
                try:
                    return _open(step, path)
                except DamagedError as reason:
                    reasons.append(f"{path} is damaged: {reason}")
        names = ", ".join(self.names()) or "none"
        raise UserError("; ".join(reasons) or f"{self.directory} has no checkpoint of step {step} (there: {names})")

    def examine(self) -> Iterator[tuple[Path, list[str]]]:
        """Every checkpoint with its faults, newest first; this reads each file."""
        return ((path, verify(path)) for _, path in self._candidates())

    def _candidates(self) -> Iterator[tuple[int, Path]]:
        """Step and path of every checkpoint, newest first; an old version that stands aside follows the new one."""
        candidates = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in self.directory.iterdir():
                stem = path.name.removeprefix(".").removesuffix(REPLACED)
                aside = path.name == f".{stem}{REPLACED}"
                if (match := _NAME.fullmatch(stem)) and (aside or path.name == stem):
                    candidates.append((int(match[1]), not aside, path))
        return ((step, path) for step, _, path in sorted(candidates, reverse=True))

    def _save(
        self, step: int, write: Callable[[Path], FileRecord], document: Mapping[str, Any], metrics: Mapping[str, float], pin: str | None
    ) -> None:
        place = self.directory / name_of(step)
        try:
            with disk_errors(place, "earlier checkpoints are untouched: free space or mend the disk, then resume"):
                self._tidy()
                self._write(place, Manifest(step=step, files={}, metrics=metrics, pin=pin, versions=own_versions()), write, document)
        except DiskError:
            self._tidied = False
            raise
        try:
            disk.remove_tree(aside_of(place), first=MANIFEST)
            self._prune(step)
        except OSError as error:
            self._tidied = False
            raise DiskError(f"disk error: {place} is saved, but an older one could not be removed: {_reason(error)}") from error

    def _write(self, place: Path, manifest: Manifest, write: Callable[[Path], FileRecord], document: Mapping[str, Any]) -> None:
        """Write the files, force each to disk, the manifest last; then give the directory its name."""

        def fill(fresh: Path) -> None:
            files = {TENSORS: write(fresh / TENSORS), STATE: write_whole(fresh / STATE, as_bytes(document))}
            disk.write_file(fresh / MANIFEST, evolve(manifest, files=files).to_bytes())

        publish(writing_beside(place), fill, [place], replace=True)

    def _prune(self, newest: int) -> None:
        """Remove what the rules do not keep. That is safe, because the new checkpoint was read back before it got its name."""
        present, unfinished = [], []
        for step, path in self._candidates():
            try:
                manifest = read_manifest(path)
                present.append(Candidate(step=step, metrics=manifest.metrics, pinned=manifest.pin is not None))
            except DamagedError:
                if not (path / MANIFEST).exists():
                    unfinished.append(path)
        surplus = [self.directory / name_of(step) for step in self._retention.steps_to_remove(present, {newest, *self._pins})]
        for path in (*unfinished, *surplus):
            disk.remove_tree(path, first=MANIFEST)

    def _tidy(self) -> None:
        """Make the directory, and finish or undo a save that was interrupted."""
        if self._tidied:
            return
        if not self.directory.is_dir():
            disk.make_directory(self.directory)  # without parents: a run directory that was moved away must not come back empty
            disk.sync_directory(self.directory.parent)
        for path in sorted(self.directory.iterdir()):
            name, suffix = path.stem.removeprefix("."), path.suffix
            if path.name.startswith(".") and _NAME.fullmatch(name):
                if suffix == WRITING:
                    disk.remove_tree(path, first=MANIFEST)
                elif suffix == REPLACED:
                    recover(self.directory / name, lambda place: not verify(place))
        self._tidied = True


def name_of(step: int) -> str:
    """The directory name of a step's checkpoint."""
    return f"step-{step:09d}"


def step_of(name: str) -> int:
    """The step of a checkpoint's directory name."""
    return int(name.removeprefix("step-"))


def verify(path: Path) -> list[str]:
    """The faults of a checkpoint directory, as sentences; this reads every file.

    Args:
        path: `.../checkpoints/step-000000640`.
    """
    try:
        manifest = _manifest_of(path)
        check_files(path, manifest)
    except DamagedError as reason:
        return [str(reason)]
    return []


def _open(step: int, path: Path) -> Checkpoint:
    manifest = _manifest_of(path)
    content = check_files(path, manifest)
    if content.document.keys() != {_ABOUT, _STATE}:
        raise DamagedError(f"{STATE} does not hold what a checkpoint says and its state")
    try:
        about = join_state(content.document[_ABOUT], refuse_tensor)
    except ValueError as error:
        raise DamagedError(f"{STATE} cannot be understood: {error}") from None
    if not isinstance(about, dict):
        raise DamagedError(f"{STATE} says nothing of the run")
    return Checkpoint(step=step, path=path, about=about, manifest=manifest, encoded=content.document[_STATE], stamp=content.stamp)


def _manifest_of(path: Path) -> Manifest:
    """The manifest of a directory that is named after its step."""
    manifest = read_manifest(path)
    stem = path.name.removeprefix(".").removesuffix(REPLACED)
    if stem != name_of(manifest.step):
        raise DamagedError(f"{MANIFEST} is that of {name_of(manifest.step)}")
    return manifest


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
