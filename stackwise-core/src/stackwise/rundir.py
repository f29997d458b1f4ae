"""The run directory: resolved config, plan, `events.jsonl`, `metrics.jsonl`, `status.json`, checkpoints, and the final weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import yaml

from stackwise.errors import UserError
from stackwise.events import Evaluated, Event, StepDone, from_json, to_json
from stackwise.run_lock import RunLock

FLUSH_EVERY_S = 1.0
CONFIG, EVENTS, METRICS, CHECKPOINTS, FINAL = "config.yaml", "events.jsonl", "metrics.jsonl", "checkpoints", "final"
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
        self._open_logs()

    @classmethod
    def create(cls, path: Path | None, name: str) -> RunDirectory:
        """Make the directory: the path given, or `runs/<name>-001` and on, the first that is free.

        Raises:
            UserError: the path given exists already, or cannot be made.
        """
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()
                return cls(path)
            Path("runs").mkdir(exist_ok=True)
            number = 1
            while True:
                try:
                    (chosen := Path("runs") / f"{name}-{number:03d}").mkdir()
                    return cls(chosen)
                except FileExistsError:
                    number += 1
        except FileExistsError as error:
            raise UserError(
                f"{error.filename} exists already: a run never writes over another; give another --output, remove it, "
                "or go on with it by `stackwise resume`"
            ) from None
        except OSError as error:
            raise UserError(f"the run directory cannot be made: {error}") from None

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

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """The config as it was understood, every `extends` and `--set` applied."""
        self._put(CONFIG, yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON document of the run (`plan`, `status`)."""
        self._put(f"{name}.json", json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")

    def status(self) -> Mapping[str, Any]:
        """What `status.json` says; empty where there is none to read."""
        return read_status(self.path)

    def __call__(self, event: Event) -> None:
        """Log one event: steps and evaluations as metrics, everything but steps as events."""
        if isinstance(event, StepDone):
            self._write(self._metrics, {key: value for key, value in event._asdict().items() if key != "skipped" or value})
        else:
            self._write(self._events, to_json(event))
            if isinstance(event, Evaluated):
                line = {"step": event.step, "phase": event.phase, "evaluation": event.name, "at": event.at, **event.metrics}
                self._write(self._metrics, line)
        if not isinstance(event, StepDone) or monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def history(self) -> Iterator[Event]:
        """The events that the logs hold, in their order."""
        self.flush()
        return read_history(self.path)

    def cut(self, step: int, of: Path | None = None) -> None:
        """Have the logs tell what happened before step `step`, and no more; each is replaced as a whole or not at all.

        Args:
            step: the step to go on from.
            of: the run directory whose past it is; this one when left out.
        """
        self._close_logs()
        _take_back(of if of is not None else self.path, self.path, step)
        self._open_logs()

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        self._events.flush()
        self._metrics.flush()
        self._flushed = monotonic()

    def close(self) -> None:
        """Flush and close the logs, and let others write here."""
        self._close_logs()
        self._lock.release()

    def _open_logs(self) -> None:
        self._events: TextIO = (self.path / EVENTS).open("a", encoding="utf-8")  # held open for the run
        self._metrics: TextIO = (self.path / METRICS).open("a", encoding="utf-8")  # closed by close()
        self._flushed = monotonic()

    def _close_logs(self) -> None:
        self._events.close()
        self._metrics.close()

    def sync(self) -> None:
        """Force the logs to disk, so that they are never behind a checkpoint."""
        self.flush()
        for log in (self._events, self._metrics):
            os.fsync(log.fileno())

    def _put(self, name: str, text: str) -> None:
        replace_file(self.path / name, text)

    @staticmethod
    def _write(file: TextIO, line: Mapping[str, Any]) -> None:
        file.write(json.dumps(_finite(line), default=str) + "\n")


def read_status(path: Path) -> Mapping[str, Any]:
    """What a run directory's `status.json` says; empty where there is none to read."""
    try:
        content = json.loads((path / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replace_file(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    fresh = path.with_name(f".{path.name}.writing")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _take_back(source: Path, target: Path, step: int) -> None:
    """Write the logs of `source` into `target` as they were when the state before `step` was saved: what happens at `step` comes after."""
    for name in (EVENTS, METRICS):
        kept = [line for line in _whole_lines(source / name) if _is_before(json.loads(line), step)]
        replace_file(target / name, "".join(kept))


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


def _is_before(line: Mapping[str, Any], step: int) -> bool:
    if line.get("event") == "checkpoint_saved":
        return bool(line["step"] <= step)
    return "step" in line and bool(line["step"] < step)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (_restored(json.loads(line)) for line in _whole_lines(path))


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines that are JSON maps; one that a crash cut short is none."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if line.endswith("\n") and isinstance(json.loads(line), dict):
                    yield line
            except ValueError:
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
