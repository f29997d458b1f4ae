"""Time: durations as people write them, and the instant a step runs at. `clock.py` turns the one into the other."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from attrs import frozen

from stackwise.errors import ScheduleError

_DURATION = re.compile(  # digits and exponents are bounded, because exact fractions would fill the memory with 1e999999999
    r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?|\.[0-9]{1,30}(?:[eE][+-]?[0-9]{1,2})?)\s*"
    r"(%|[A-Za-z]{1,9})(?:\s+(?:of\s+)?([A-Za-z0-9_-]{1,100}))?\s*\Z"
)
_PLURALS = {"steps": "steps", "tokens": "tokens", "samples": "samples", "epochs": "epochs", "flops": "flops", "FLOPs": "flops"}
_UNITS = {"%": "fraction"} | {word: unit for plural, unit in _PLURALS.items() for word in (plural, plural[:-1])}
_SPANS = {"seconds": 1, "minutes": 60, "hours": 3600}
_SECONDS = {word: count for plural, count in _SPANS.items() for word in (plural, plural[:-1])}
_WHOLE = ("steps", "tokens", "samples", "flops")
_SHARES_OF = (*_WHOLE, "seconds")
"""What a share may name: `15% flops` is one of a horizon in FLOPs, and of no other."""
_OTHER_WAYS = "'30%', '2e6 tokens', '10000 samples', '1e13 flops', '10 minutes' or '3 epochs of <source>'"
_WAYS = f"write '500 steps', {_OTHER_WAYS}"


@frozen
class Duration:
    """A length of time with its unit: a `fraction` of the window it stands in, `steps`, `tokens`, `samples`, training `flops`, `seconds`
    of training, or `epochs` of a source.

    The value is exact (a `Fraction`), so that 30 % of 10 steps is 3 steps and never 4.
    """

    value: Fraction
    unit: str
    source: str | None = None
    """Whose epochs, None where there is only one source; of a fraction what the horizon has to count, None where anything will do."""

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read `"30%"`, `"500 steps"`, `"2e6 tokens"`, `"10000 samples"`, `"1e13 flops"`, `"10 minutes"`, `"1.5 epochs"`,
        `"1.5 epochs of web"`, or `"15% flops"` of a horizon in FLOPs.

        Raises:
            ScheduleError: no unit, an unknown unit, a share above 100 %, or steps, tokens, samples or FLOPs that are not whole.
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            number = isinstance(text, int) and not isinstance(text, bool)
            ways = f"write '{text} steps' or '{text} epochs', or in another unit {_OTHER_WAYS}" if number else _WAYS
            raise ScheduleError(f"{text!r} has no unit: {ways}")
        match = _DURATION.match(text)
        if match is None or match[2] not in (*_UNITS, *_SECONDS):
            raise ScheduleError(f"{text!r} is not a duration: {_WAYS}")
        value, unit, of = Fraction(match[1].replace("_", "")), _UNITS.get(match[2], "seconds"), match[3]
        if of is not None and not (unit == "epochs" and " of " in text):
            of = _UNITS.get(of, "seconds" if of in _SECONDS else of)
            if unit != "fraction" or of not in _SHARES_OF:
                raise ScheduleError(f"{text!r} is not a duration: {_WAYS}")
        if unit == "fraction":
            value /= 100
            if value > 1:
                raise ScheduleError(f"{text!r} is more than the whole: a share lies between 0% and 100%")
        elif unit in _WHOLE and value.denominator != 1:
            raise ScheduleError(f"{text!r} is not a whole number of {unit}")
        return cls(value * _SECONDS.get(match[2], 1), unit, of)

    @property
    def measure(self) -> str:
        """What it is counted in: the unit, and for epochs whose."""
        return self.unit if self.source is None else f"{self.unit} of {self.source}"

    def __str__(self) -> str:
        if self.unit == "fraction":
            return f"{float(self.value * 100):g}%" + ("" if self.source is None else f" {self.source}")
        if self.unit in ("epochs", "flops"):
            return f"{float(self.value):g} {self.measure}"
        return f"{float(self.value):g} seconds" if self.unit == "seconds" else f"{int(self.value)} {self.unit}"


class Moment(NamedTuple):
    """The instant at which one step runs: half-open in the run and in its phase."""

    step: int
    """Step index k in {0..T-1}; T for the end of the run."""
    t: float
    """Run time, consumed-before-k / horizon: in [0, 1) for a step, 1 after the last."""
    phase: str
    phase_index: int
    phase_t: float
    """Time inside the phase, in [0, 1) for a step."""
    tokens: int
    """Scheduled positions consumed before this step, padding included."""
