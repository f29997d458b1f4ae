"""The run directory: resolved config, plan, `events.jsonl`, `metrics.jsonl`, `status.json`, and the final weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import yaml

from stackwise.errors import UserError
from stackwise.events import Evaluated, Event, StepDone, to_json

FLUSH_EVERY_S = 1.0


class RunDirectory:
    """One run's files. An observer of events: call it with each one.

    Args:
        path: a directory that this run has made and owns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: TextIO = (path / "events.jsonl").open("w", encoding="utf-8")  # held open for the run
        self._metrics: TextIO = (path / "metrics.jsonl").open("w", encoding="utf-8")  # closed by close()
        self._flushed = monotonic()

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
                f"{error.filename} exists already: a run never writes over another; give another --output, or remove it"
            ) from None
        except OSError as error:
            raise UserError(f"the run directory cannot be made: {error}") from None

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """The config as it was understood, every `extends` and `--set` applied."""
        (self.path / "config.yaml").write_text(yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True), "utf-8")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON document of the run (`plan`, `status`)."""
        (self.path / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False, default=str) + "\n", "utf-8")

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

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        self._events.flush()
        self._metrics.flush()
        self._flushed = monotonic()

    def close(self) -> None:
        """Flush and close the logs."""
        self._events.close()
        self._metrics.close()

    @staticmethod
    def _write(file: TextIO, line: Mapping[str, Any]) -> None:
        file.write(json.dumps(_finite(line)) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no nan or inf: they are written as text."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not isfinite(value) else value
