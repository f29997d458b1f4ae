"""Three kinds of fault, kept apart by class and by exit code.

A `UserError` is mended in the config or the data, a `ProviderError` in an installed provider; every other
exception is a bug of StackWise itself.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from attrs import frozen


@frozen
class Position:
    """A place in a config: a file (or `--set`, or `<config>` for a dict), and 1-based line and column."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.source
        return f"{self.source}:{self.line}:{self.column}"


@frozen
class Problem:
    """One mistake: the dotted key, where it was written, and a sentence with the value, the rule and the fix."""

    message: str
    path: str = ""
    where: Position | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        key = f"{self.path}: " if self.path else ""
        return f"{place}{key}{self.message}"


class StackwiseError(Exception):
    """Base of every error StackWise raises on purpose."""

    exit_code = 1


class UserError(StackwiseError):
    """The user's input is at fault: config, data, command line."""

    exit_code = 2


class ConfigError(UserError):
    """A config with mistakes; `problems` holds every one of them, each once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnknownComponentError(UserError):
    """A component id that no installed provider offers."""

    def __init__(self, message: str, *, id: str, kind: str | None = None) -> None:
        self.id, self.kind = id, kind
        super().__init__(message)


class SelectorError(UserError):
    """A selector that matches nothing, or is not a selector."""

    def __init__(self, message: str, selector: str | None = None) -> None:
        super().__init__(message)
        self.selector = selector


class ScheduleError(UserError):
    """A timeline that does not hold together: empty, overlapping or unfinished phases, impossible durations."""


class DataError(UserError):
    """Data that cannot be trained on: empty, too short, outside the vocabulary, ragged."""


class ProviderError(StackwiseError):
    """An installed provider broke its contract."""

    exit_code = 3

    def __init__(self, message: str, *, provider: str = "", distribution: str = "") -> None:
        self.provider, self.distribution = provider, distribution
        super().__init__(message)


class DiskError(UserError):
    """The disk refuses what is written to it: full, read-only, failing."""


@contextmanager
def disk_errors(place: object, advice: str) -> Iterator[None]:
    """Report what the operating system refuses to write as a disk error.

    Args:
        place: what could not be written.
        advice: what became of it, and what to do.

    Raises:
        DiskError: an `OSError` came.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"disk error: {place} could not be written: {error.strerror or error}; {advice}") from error


class TrainingHalted(StackwiseError):
    """Training stopped by rule: too many steps in a row were not finite."""

    exit_code = 4


class RunStopped(StackwiseError):
    """Training was stopped by a signal, or by its own limit of time; its state is saved."""

    def __init__(self, message: str, *, by: signal.Signals | None) -> None:
        self.by = by
        """None where it is the limit of time, `run.stop.after`."""
        self.exit_code = 5 if by is None else 128 + by
        super().__init__(message)


class RankLost(StackwiseError):
    """A process of the run was ended from outside, or hangs."""

    exit_code = 128 + 9
    """As of a process that was killed."""


class EndedTogether(StackwiseError):
    """Another process ended the run and has said why; this one ends with the same exit code and prints nothing."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__("another process of the run ended it")


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out; for a CPU torch says so in words only, and this module does not import torch."""
    out_on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or out_on_cpu


def asks_too_much(error: BaseException) -> bool:
    """Whether memory ran out, or torch refused a tensor because its size in bytes does not fit into 64 bits."""
    messages = ("Storage size calculation overflowed", "Overflow when unpacking long", "numel: integer multiplication overflow")
    overflow = isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    return lacks_memory(error) or overflow or isinstance(error, OverflowError)


def bytes_asked(error: BaseException) -> str:
    """How much an error about memory says was asked for, as an end of a sentence; empty where it does not say."""
    match = re.search(r"allocate ([0-9.]+ ?(?:bytes|[KMGTPE]iB))", str(error))
    return f" ({match[1]} were asked for at once)" if match else ""


_NO_TEXT = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")
"""Control characters but tabs and newlines, and the marks that turn the direction of text."""


def printable(text: str) -> str:
    """A text that came from outside, for a terminal: what would move its cursor or turn the direction is escaped (`\\x1b`, `\\u202e`)."""
    return _NO_TEXT.sub(lambda match: ascii(match[0])[1:-1], text)


def near_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` — did you mean 'a' or 'b'?`, or, when nothing is near, the known names; empty when there are none."""
    names = sorted(set(known))
    if near := near_names(name, names):
        return " — did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f" — known: {', '.join(names)}" if names else ""
