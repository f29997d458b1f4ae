"""The run directory: resolved config, plan, `events.jsonl`, `metrics.jsonl`, `status.json`, checkpoints, and the final weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from io import TextIOWrapper
from itertools import count
from math import isfinite
from pathlib import Path
from secrets import token_hex
from time import monotonic, time
from typing import Any, TextIO

import yaml

from stackwise.contracts.events import Evaluated, Event, StepDone, from_json, to_json
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.errors import DiskError, UserError, disk_errors
from stackwise.storage import disk
from stackwise.storage.lock import RunLock, is_held
from stackwise.storage.publish import publish, replace_file, write_tokenizers
from stackwise.storage.regular import append_regular, open_regular, read_regular

FLUSH_EVERY_S = 1.0
CONFIG, PLAN, STATUS, EVENTS, METRICS = "config.yaml", "plan.json", "status.json", "events.jsonl", "metrics.jsonl"
CHECKPOINTS, FINAL = "checkpoints", "final"
FINISHED = "finished"
"""What `status.json` says of a run that has nothing left to do."""
_MAKING, _LEFT_AFTER_S = ".making", 3600.0
"""Ends the name of a directory that is being filled; how old one is at least that a killed process has left."""
_NOT_FINITE = {"nan", "inf", "-inf"}


class RunDirectory:
    """One run's files, with one writer. An observer of events: call it with each one.

    Args:
        path: an existing directory of this run alone.

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
        """Make the directory: the path given, or `runs/<name>-001` and on, the first that is free.

        It is filled beside its place and renamed when it is whole, so that none is ever found without what makes it a run. What
        a process that was killed has left half filled is removed when it is an hour old.

        Args:
            path: where; it must not exist.
            name: of the run.
            fill: puts in what the directory holds from its first moment: config and plan, of a branch also its past.

        Raises:
            UserError: the path given exists already, or the directory cannot be made.
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
        """Fill a directory and give it the first name that is free; nothing is left of it when that fails."""
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
        """Go on in a directory that a run has left.

        Raises:
            UserError: no run directory, or another process writes there.
        """
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is no run directory: there is no {CONFIG} in it")
        try:
            return cls(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None

    def declare(self, config: Mapping[str, Any], plan: Mapping[str, Any], tokenizers: Tokenizers) -> None:
        """Write the config as it was understood, every `extends` and `--set` applied, and its plan, which never stands beside another's;
        and the tokenizers of its sources."""
        with self._disk_errors():
            write_tokenizers(self.path, tokenizers)
            (self.path / PLAN).unlink(missing_ok=True)
            replace_file(self.path / CONFIG, _as_yaml(config))
        self._write_json(PLAN, plan)

    def declares(self, config: Mapping[str, Any], providers: Sequence[Mapping[str, Any]]) -> bool:
        """Whether this config and its plan, made with these providers, are written here already."""
        try:
            written: Any = json.loads(read_regular(self.path / PLAN))
            return written["providers"] == list(providers) and read_regular(self.path / CONFIG).decode() == _as_yaml(config)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write how the run stands."""
        self._write_json(STATUS, status)

    def status(self) -> Mapping[str, Any]:
        """What `status.json` says; empty where there is none to read."""
        return read_status(self.path)

    def __call__(self, event: Event) -> None:
        """Log one event: steps and evaluations as metrics, everything but steps as events.

        Raises:
            DiskError: the disk refuses.
        """
        with self._disk_errors():
            if isinstance(event, StepDone):
                fields = event._asdict().items()
                self._write(self._metrics, {key: value for key, value in fields if value or key not in StepDone._field_defaults})
            else:
                self._write(self._events, to_json(event))
                if isinstance(event, Evaluated):
                    line = {"step": event.step, "phase": event.phase, "evaluation": event.name, "at": event.at, **event.metrics}
                    self._write(self._metrics, line)
            if not isinstance(event, StepDone) or monotonic() - self._flushed > FLUSH_EVERY_S:
                self._flush()

    def history(self) -> Iterator[Event]:
        """The events that the logs hold, in their order."""
        with self._disk_errors():
            self._flush()
        return read_history(self.path)

    def cut(self, step: int, of: Path | None = None) -> None:
        """Have the logs tell what happened before step `step`, and no more; each is replaced as a whole or not at all.

        Args:
            step: the step to go on from.
            of: the run directory whose past it is; this one when left out.
        """
        with self._disk_errors():
            self._close_logs()
            _take_back(of if of is not None else self.path, self.path, step)
            self._open_logs()

    def sync(self) -> None:
        """Force the logs to disk, so that they are never behind a checkpoint."""
        with self._disk_errors():
            self._flush()
            for log in (self._events, self._metrics):
                os.fsync(log.fileno())

    def close(self) -> None:
        """Flush and close the logs, and let others write here, whatever the disk says."""
        try:
            with self._disk_errors():
                self._close_logs()
        finally:
            self._lock.release()

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.path, "the checkpoints in it are untouched: free space or mend the disk, then resume")

    def _flush(self) -> None:
        """Hand what is buffered to the operating system."""
        self._events.flush()
        self._metrics.flush()
        self._flushed = monotonic()

    def _open_logs(self) -> None:
        """Both, or none; `close` closes them."""
        events: TextIO = append_regular(self.path / EVENTS)
        try:
            self._metrics: TextIO = append_regular(self.path / METRICS)
        except BaseException:
            events.close()
            raise
        self._events, self._flushed = events, monotonic()

    def _close_logs(self) -> None:
        try:
            self._events.close()
        finally:
            self._metrics.close()

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with self._disk_errors():
            replace_file(self.path / name, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")

    @staticmethod
    def _write(file: TextIO, line: Mapping[str, Any]) -> None:
        file.write(json.dumps(_finite(line), default=str) + "\n")


def _sweep(parent: Path) -> None:
    """Remove half-filled directories of processes that were killed."""
    for leftover in parent.glob(f".*{_MAKING}"):
        with suppress(OSError):
            if time() - leftover.stat().st_mtime > _LEFT_AFTER_S and not is_held(leftover):
                disk.remove_tree(leftover)


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    """`<name>-001` and on, those that are not there."""
    return (place for number in count(1) if not os.path.lexists(place := parent / f"{name}-{number:03d}"))


def refuse_existing(path: Path) -> None:
    """Look before anything is read or built.

    Raises:
        UserError: something is there already.
    """
    if os.path.lexists(path):
        raise _taken(path)


def _taken(place: object) -> UserError:
    return UserError(
        f"{place} exists already: a run never writes over another; give another --output, remove it, or go on with it by `stackwise resume`"
    )


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def read_status(path: Path) -> Mapping[str, Any]:
    """What a run directory's `status.json` says; empty where there is none to read."""
    try:
        content = json.loads(read_regular(path / STATUS))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def final_weights(path: Path) -> Path | None:
    """Where a run directory's final weights are; None before its end, also where it was extended after an earlier one."""
    finished = (path / FINAL).is_dir() and read_status(path).get("status") == FINISHED
    return path / FINAL if finished else None


def _take_back(source: Path, target: Path, step: int) -> None:
    """Write the logs of `source` into `target` as they were just before step `step`."""
    for name in (EVENTS, METRICS):
        lines = [line for line in _whole_lines(source / name) if json.loads(line).get("step", step) < step]
        replace_file(target / name, "".join(lines))


def read_history(path: Path) -> Iterator[Event]:
    """The events in a run directory, steps among them where they belong."""
    steps = (StepDone(**{"skipped": False, **line}) for line in _lines(path / METRICS) if "evaluation" not in line)
    step = next(steps, None)
    for line in _lines(path / EVENTS):
        event = from_json(line)
        while step is not None and step.step < getattr(event, "step", step.step + 1):
            yield step
            step = next(steps, None)
        yield event
    while step is not None:
        yield step
        step = next(steps, None)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (_restored(json.loads(line)) for line in _whole_lines(path))


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines that are JSON maps; one that a crash cut short is none."""
    if not path.exists():
        return
    with TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if line.endswith("\n") and isinstance(json.loads(line), dict):
                    yield line
            except (ValueError, RecursionError):
                continue


def _finite(value: Any) -> Any:
    """JSON has no nan or inf: they are written as text."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _restored(value: Any) -> Any:
    """What `_finite` wrote as text is a number again."""
    if isinstance(value, Mapping):
        return {key: _restored(inner) for key, inner in value.items()}
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else value
