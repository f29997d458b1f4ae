"""The run directory: resolved config, plan, `events.jsonl`, `metrics.jsonl`, `status.json`, checkpoints, and the final weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from time import monotonic, time
from typing import Any, TextIO

import yaml

from stackwise.contracts.events import Event, StepDone
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.errors import DiskError, UserError, disk_errors
from stackwise.storage import codec, disk, posix
from stackwise.storage.lock import MovedError, RunLock, is_held
from stackwise.storage.logs import EVENTS, METRICS, Log, lines_of
from stackwise.storage.publish import publish, replace_file, write_tokenizers
from stackwise.storage.regular import append_regular, read_regular

FLUSH_EVERY_S = 1.0
CONFIG, PLAN, STATUS = "config.yaml", "plan.json", "status.json"
CHECKPOINTS, FINAL = "checkpoints", "final"
FINISHED = "finished"
"""The status of a run that has nothing left to do."""
_MAKING, _LEFT_AFTER_S = ".making", 3600.0
"""Suffix of a directory that is being filled, and the age from which on it counts as left by a killed process."""


class RunDirectory:
    """The files of one run, with one writer. It is an observer: call it with each event.

    Args:
        path: an existing directory that holds this run alone.

    Raises:
        UserError: another process writes there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)
        try:
            self._open_logs()
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(cls, path: Path | None, name: str, fill: Callable[[RunDirectory], object]) -> RunDirectory:
        """Make the directory at `path`, or at the first free one of `runs/<name>-001`, `-002`, ….

        It is filled beside its place and renamed when it is whole, so that a run directory always has its config and plan. Directories
        that killed processes left half filled are removed when they are an hour old.

        Args:
            path: the place; it must not exist.
            name: of the run.
            fill: writes what the directory holds from the start: config and plan, for a branch also its past.

        Raises:
            UserError: `path` exists already, or the directory cannot be made.
        """
        if path is not None:
            refuse_existing(path)
        parent = path.parent if path is not None else Path("runs")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            return cls._made(
                parent / f".{os.getpid()}-{token_hex(4)}{_MAKING}", [path] if path is not None else _numbered(parent, name), fill
            )
        except FileExistsError as error:
            raise _taken(error.filename) from None
        except (OSError, DiskError) as error:
            raise DiskError(f"the run directory cannot be made: {error}") from None

    @classmethod
    def _made(cls, fresh: Path, places: Iterable[Path], fill: Callable[[RunDirectory], object]) -> RunDirectory:
        """Fill a directory and give it the first free name; remove it if that fails."""
        opened: list[RunDirectory] = []

        def fill_it(path: Path) -> None:
            opened.append(cls(path))
            fill(opened[0])

        try:
            place = publish(fresh, fill_it, places)
        except BaseException:
            for run in opened:
                run.close()
            raise
        opened[0].path = place
        return opened[0]

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of a run to resume it.

        Raises:
            UserError: it is not a run directory, or another process writes there.
        """
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is not a run directory: there is no {CONFIG} in it")
        try:
            return cls(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None

    def check_place(self) -> None:
        """Check that the path still leads to the directory that was opened; every publication calls this first.

        Raises:
            MovedError: it does not; the logs went with the directory.
            UserError: the lock file is another one.
        """
        if not self._lock.holds(self.path):
            log = posix.place_of(self._logs[EVENTS].fileno())
            raise MovedError(self.path, log.parent if log is not None and self._lock.holds(log.parent) else None)

    def declare(self, config: Mapping[str, Any], plan: Mapping[str, Any], tokenizers: Tokenizers | None = None) -> None:
        """Write the resolved config (every `extends` and `--set` applied), its plan, and the tokenizers of its sources. The plan of another
        config is removed first."""
        self.check_place()
        with self._disk_errors():
            write_tokenizers(self.path, tokenizers if tokenizers is not None else Tokenizers())
            (self.path / PLAN).unlink(missing_ok=True)
            replace_file(self.path / CONFIG, _as_yaml(config))
        self._write_json(PLAN, plan)

    def declares(self, config: Mapping[str, Any], providers: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the directory already holds this config, and a plan made with these providers."""
        try:
            written: Any = json.loads(read_regular(self.path / PLAN))
            return written["providers"] == list(providers) and read_regular(self.path / CONFIG).decode() == _as_yaml(config)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write the status of the run."""
        self._write_json(STATUS, status)

    def status(self) -> Mapping[str, Any]:
        """The content of `status.json`; empty if there is none, or it cannot be read."""
        return read_status(self.path)

    def __call__(self, event: Event) -> None:
        """Log one event: steps and evaluations as metrics, everything but steps as events.

        Raises:
            DiskError: the disk refuses.
        """
        with self._disk_errors():
            for name, line in lines_of(event):
                self._logs[name].write(line)
            if not isinstance(event, StepDone) or monotonic() - self._flushed > FLUSH_EVERY_S:
                self._flush()

    def log(self) -> Log:
        """A reader of the logs, up to now."""
        with self._disk_errors():
            self._flush()
        return Log(self.path)

    def cut(self, step: int, of: Path | None = None) -> None:
        """Cut the logs back to the steps before `step`; each log is replaced whole or not at all.

        Args:
            step: the step to resume from.
            of: the run directory whose logs are taken; this one by default.
        """
        self.check_place()
        with self._disk_errors():
            self._close_logs()
            _take_back(of if of is not None else self.path, self.path, step)
            self._open_logs()

    def sync(self) -> None:
        """Force the logs to disk, so that they are never behind a checkpoint.

        Raises:
            MovedError: the directory was moved.
            DiskError: the disk refuses.
        """
        self.check_place()
        with self._disk_errors():
            self._flush()
            for log in self._logs.values():
                os.fsync(log.fileno())

    def close(self) -> None:
        """Flush and close the logs, and release the lock even if the disk refuses."""
        try:
            with self._disk_errors():
                self._close_logs()
        finally:
            self._lock.release()

    def remove(self) -> None:
        """Remove the directory with its content.

        Raises:
            MovedError: the path leads elsewhere now; nothing is removed.
            DiskError: the disk refuses.
        """
        self.check_place()
        with self._disk_errors():
            disk.remove_tree(self.path)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.path, "the checkpoints in it are untouched: free space or mend the disk, then resume")

    def _flush(self) -> None:
        """Flush the buffers to the operating system."""
        for log in self._logs.values():
            log.flush()
        self._flushed = monotonic()

    def _open_logs(self) -> None:
        """Open both logs or none; `close` closes them."""
        with ExitStack() as opened:
            logs = {name: opened.enter_context(append_regular(self.path / name)) for name in (EVENTS, METRICS)}
            opened.pop_all()
        self._logs: Mapping[str, TextIO] = logs
        self._flushed = monotonic()

    def _close_logs(self) -> None:
        with ExitStack() as closed:
            for log in self._logs.values():
                closed.callback(log.close)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.check_place()
        with self._disk_errors():
            replace_file(self.path / name, codec.to_text(content))


def _sweep(parent: Path) -> None:
    """Remove half-filled directories of processes that were killed."""
    for leftover in parent.glob(f".*{_MAKING}"):
        with suppress(OSError):
            if time() - leftover.stat().st_mtime > _LEFT_AFTER_S and not is_held(leftover):
                disk.remove_tree(leftover)


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    """`<name>-001`, `-002`, …: those that do not exist."""
    return (place for number in count(1) if not os.path.lexists(place := parent / f"{name}-{number:03d}"))


def refuse_existing(path: Path) -> None:
    """Refuse a path that exists, or lies in the directory of another run, before anything is read or built.

    Raises:
        UserError: it does.
    """
    if os.path.lexists(path):
        raise _taken(path)
    if outer := next((parent for parent in path.absolute().parents if (parent / CONFIG).is_file() and (parent / STATUS).is_file()), None):
        raise UserError(f"{path} lies in the directory of another run, {outer}, whose files belong to it alone: give another --output")


def _taken(place: object) -> UserError:
    return UserError(
        f"{place} exists already: a run never writes over another; give another --output, remove it, or go on with it by `stackwise resume`"
    )


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def read_status(path: Path) -> Mapping[str, Any]:
    """The content of a run directory's `status.json`; empty if there is none, or it cannot be read."""
    try:
        content = json.loads(read_regular(path / STATUS))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def final_weights(path: Path) -> Path | None:
    """Where a run directory's final weights are; None before its end, also where the run was extended after an earlier end.

    Raises:
        UserError: there are weights, and `status.json` cannot be read, so nobody knows whether they are the last ones.
    """
    final = path / FINAL
    if not final.is_dir():
        return None
    if not (status := read_status(path)):
        raise UserError(
            f"{path / STATUS} cannot be read, so it is unknown whether the weights in {final} are the last of this run: restore the file, "
            f"choose a checkpoint, or name {final} itself where a directory of weights will do"
        )
    return final if status.get("status") == FINISHED else None


def _take_back(source: Path, target: Path, step: int) -> None:
    """Write the logs of `source` into `target` as they were just before step `step`."""
    for name in (EVENTS, METRICS):
        replace_file(target / name, "".join(Log(source).lines_before(name, step)))
