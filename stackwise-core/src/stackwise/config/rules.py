"""Rules beyond types: each function returns the rule that a value breaks, as a sentence, or None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from unicodedata import normalize

from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant, Piecewise, Schedule

COUNT = "count"
SELECTORS = "list of selectors"

MOST_STEPS = 10**15
"""Or tokens, samples, epochs or seconds of a run."""

MOST_FLOPS = 10**30

MOST_ROWS = 2**24
"""Rows, positions or micro-batches of a step. A mixture deals rows out one by one, which takes some ten seconds for this many; more is a
typing mistake."""

_BEST = re.compile(r"[A-Za-z0-9_-]+\.[^\s.]+(\.[^\s.]+)?( \((min|max)\))?\Z")
_SPAN = re.compile(r"(?=\d)(?:(\d{1,4})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?\Z")
_RUN_NAME = re.compile(r"[\w-][\w.-]{0,99}\Z")
_MOST_NAME_BYTES = 200
"""A file system takes 255, and numbers and temporary names are longer than the name."""


def broken_length(value: Duration) -> str | None:
    """The rule that a horizon breaks."""
    if value.unit == "fraction" or value.value <= 0:
        return f"a horizon of {value} is not a length: give it in steps, tokens, samples, epochs, FLOPs or minutes, above zero"
    most = MOST_FLOPS if value.unit == "flops" else MOST_STEPS
    return f"a horizon above {float(most):g} {value.measure} is never reached" if value.value > most else None


def run_name_of(stem: str) -> str:
    """The stem of a file's name as far as a run can be called that."""
    name = re.sub(r"[^\w.-]", "-", normalize("NFC", stem)).lstrip(".")[:100]
    return name.encode()[:_MOST_NAME_BYTES].decode(errors="ignore") or "run"


def broken_run_name(value: str) -> str | None:
    """The rule that the name of a run breaks."""
    if not _RUN_NAME.match(value) or len(value.encode(errors="surrogatepass")) > _MOST_NAME_BYTES:
        return f"{value[:40]!r} cannot name a run: letters, digits, '.', '_' and '-', not starting with a dot, at most 100 of them"
    return None


def broken_seconds(value: Mapping[str, float] | None) -> str | None:
    """The rule that the times of steps break."""
    return next(
        (f"a step of '{name}' takes {seconds:g} s: give it above zero" for name, seconds in (value or {}).items() if seconds <= 0), None
    )


def broken_cadence(value: Duration | None) -> str | None:
    """The rule that a cadence breaks."""
    return None if value is None or value.value > 0 else f"a cadence of {value} never moves on: give it above zero"


def broken_instants(value: tuple[Duration, ...] | None) -> str | None:
    """The rule that instants of a run break."""
    return next((f"{each} is not an instant of a run: give it from 0 on" for each in value or () if each.value < 0), None)


def broken_clip(value: float | None) -> str | None:
    """The rule that a largest gradient norm breaks."""
    return None if value is None or value > 0 else f"a largest gradient norm of {value:g} stops all learning: give it above zero"


def broken_count(value: int | Schedule | None) -> str | None:
    """The rule that a count of rows, positions or micro-batches breaks."""
    if isinstance(value, Piecewise):
        counts, instants = list(value.values.values()), list(value.values)
        if any(count < 1 or count != int(count) for count in counts):
            return "every value is a whole number of at least 1"
        if max(counts, default=1) > MOST_ROWS:
            return f"{max(counts):g} is above the maximum of {MOST_ROWS:,}"
        if not instants or Duration.parse(instants[0]).value != 0:
            return "the first value holds from the start of the window: give one at 0%"
        return None
    number = value.value if isinstance(value, Constant) else value
    if number is None:
        return None
    if isinstance(number, int | float):
        if number > MOST_ROWS:
            return f"{number} is above the maximum of {MOST_ROWS:,}"
        if number < 1:
            return f"{number} is below the minimum of 1"
        if isinstance(number, int):
            return None
        return f"{number} is not a whole number" + (f": write {number:.0f}" if number.is_integer() else "")
    return "a count is a whole number, or a piecewise schedule of whole numbers"


def broken_base(value: float | None) -> str | None:
    """The rule that the size at which a learning rate holds breaks."""
    return None if value is None or value > 0 else f"a size of {value:g} is none: give it above zero"


def broken_decay(value: Schedule) -> str | None:
    """The rule that the decay of an average breaks."""
    if isinstance(value, Constant) and not 0 <= value.value < 1:
        return f"a decay of {value.value:g} is not a share of an average that still moves: give it at least 0 and below 1"
    return None


def broken_best(value: str | None) -> str | None:
    """The rule that the name of a metric to choose by breaks."""
    if value is None or _BEST.match(value):
        return None
    return f"{value!r} is not a metric: write `<evaluation>.<metric>`, and ` (max)` after it where more is better"


def broken_span(value: str | None) -> str | None:
    """The rule that a span of wall clock breaks."""
    if value is not None and (not _SPAN.match(value) or not seconds_of(value)):
        return f"{value!r} is not a span of time above zero: write `11h50m`, `90m`, `2d12h` or `45s`"
    return None


def seconds_of(span: str) -> int:
    """A span of wall clock in seconds."""
    match = _SPAN.match(span)
    counts = match.groups() if match is not None else ()
    return sum(int(count or 0) * unit for count, unit in zip(counts, (86_400, 3600, 60, 1), strict=False))


def metric_and_direction(text: str) -> tuple[str, Literal["min", "max"]]:
    """`heldout.accuracy (max)` as the metric and which way is better."""
    name, _, direction = text.partition(" ")
    return name, "max" if direction == "(max)" else "min"
