"""The logs of a run, written and read: every event is a line, and steps and evaluations are lines of metrics.

A log is evidence, not a program. So a line that cannot be understood stops no run: the reader passes over it and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, get_args, get_type_hints

from attrs import field, frozen

from stackwise.contracts.events import Evaluated, Event, StepDone
from stackwise.errors import UserError
from stackwise.storage import codec
from stackwise.storage.regular import open_regular

EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
MOST_REMARKS = 3
"""So many lines that cannot be understood are named one by one; further ones are counted."""


@frozen
class Log:
    """Reads the two logs of a run directory.

    Args:
        directory: the run directory.
    """

    directory: Path
    _faults: list[str] = field(factory=list, init=False)

    def events(self) -> Iterator[Event]:
        """The events in order, with the steps between them.

        Events and fields of a newer version are left out. After the last event `remarks` says which other lines were passed over.
        """
        self._faults.clear()
        steps = self._steps()
        step = next(steps, None)
        for place, line in self._placed(EVENTS):
            event = self._understood(place, line, _KINDS.get(_text(line.get("event"))))
            if event is None:
                continue
            while step is not None and step.step < getattr(event, "step", step.step + 1):
                yield step
                step = next(steps, None)
            yield event
        while step is not None:
            yield step
            step = next(steps, None)

    def remarks(self) -> list[str]:
        """A sentence for each of the first lines that were passed over, and one that counts the others."""
        others = len(self._faults) - MOST_REMARKS
        more = [f"{others:,} more lines of the logs are passed over"] if others > 0 else []
        return [*(f"{fault}: passed over" for fault in self._faults[:MOST_REMARKS]), *more]

    def documents(self, name: str) -> Iterator[dict[str, Any]]:
        """The JSON objects of one log as they are written; `skipped_lines` counts the other lines, and events that are none."""
        for place, line in self._placed(name):
            kind = _KINDS.get(_text(line.get("event"))) if name == EVENTS else None
            if kind is None or self._understood(place, line, kind) is not None:
                yield line

    @property
    def skipped_lines(self) -> int:
        """How many lines the reader has passed over so far."""
        return len(self._faults)

    def lines_before(self, name: str, step: int) -> Iterator[str]:
        """The lines of one log about the steps before `step`, as they are written."""
        for _, text, line in self._lines(name):
            at = line.get("step", step)
            if isinstance(at, int) and at < step:
                yield text

    def _steps(self) -> Iterator[StepDone]:
        """The steps of the metrics, each once and in order."""
        last = -1
        for place, line in self._placed(METRICS):
            if "evaluation" in line:
                continue
            step = self._understood(place, {"metrics": {}, "rates": {}, **line}, StepDone)  # maps of its own, as of a step just done
            if step is None:
                continue
            if step.step <= last:
                self._faults.append(f"{place}: step {step.step} is logged after step {last}")
                continue
            if step.step > last + 1:
                self._faults.append(f"{place}: step {step.step} follows step {last}, so those between are missing")
            last = step.step
            yield step

    def _understood(self, place: str, line: Mapping[str, Any], kind: Any) -> Any:
        """The event of a line; None for an event of a newer version, and for a line that is not an event."""
        if kind is None:
            if not isinstance(line.get("event"), str):
                self._faults.append(f"{place}: event is not a name")
            return None
        try:
            return kind(**{name: codec.typed(line[name], wanted, name) for name, wanted in _FIELDS[kind].items() if name in line})
        except ValueError as error:
            self._faults.append(f"{place}: {error}")
        except TypeError:
            missing = next(name for name in kind._fields if name not in line and name not in kind._field_defaults)
            self._faults.append(f"{place}: {missing} is missing")
        return None

    def _placed(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((f"{self.directory / name}:{number}", line) for number, _, line in self._lines(name))

    def _lines(self, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Number, text and content of the lines that are JSON objects, without a last line that a crash cut short."""
        path = self.directory / name
        if not path.exists():
            return
        try:
            opened = open_regular(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}: put the log back, or remove what stands in its place") from None
        with TextIOWrapper(opened, encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                try:
                    content = codec.read_object(text.encode())
                except ValueError:
                    if text.endswith("\n"):
                        self._faults.append(f"{path}:{number}: it is not a JSON object")
                    continue
                if text.endswith("\n"):
                    yield number, text, content


def lines_of(event: Event) -> Iterator[tuple[str, str]]:
    """The lines of an event, each with the log that it goes to: steps and evaluations are metrics, all but steps are events."""
    if isinstance(event, StepDone):
        fields = event._asdict().items()
        yield METRICS, codec.to_line({key: value for key, value in fields if value or key not in StepDone._field_defaults})
        return
    yield EVENTS, codec.to_line({"event": name_of(type(event)), **event._asdict()})
    if isinstance(event, Evaluated):
        yield METRICS, codec.to_line({"step": event.step, "phase": event.phase, "evaluation": event.name, "at": event.at, **event.metrics})


def name_of(kind: type) -> str:
    """The name of a class of events in a log: `run_started`."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in kind.__name__).lstrip("_")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


_KINDS: dict[str, Any] = {name_of(kind): kind for kind in get_args(Event)}
_FIELDS: dict[Any, dict[str, Any]] = {kind: get_type_hints(kind) for kind in get_args(Event)}
