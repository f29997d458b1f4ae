"""Time: durations as people write them, the clock that turns them into integer steps, and the instant a step runs at."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from attrs import field, frozen

from stackwise.errors import ScheduleError

_DURATION = re.compile(  # digits and exponents are bounded, because exact fractions would fill the memory with 1e999999999
    r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?|\.[0-9]{1,30}(?:[eE][+-]?[0-9]{1,2})?)\s*(%|[a-z]{1,9})\s*\Z"
)
_UNITS = {"%": "fraction", "step": "steps", "steps": "steps", "token": "tokens", "tokens": "tokens"}

MAX_INSTANTS = 1_000_000
"""Most instants a cadence may have in one run."""


@frozen
class Duration:
    """A length of time with its unit: a `fraction` of the window it stands in, `steps`, or `tokens`.

    The value is exact (a `Fraction`), so that 30 % of 10 steps is 3 steps and never 4.
    """

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read `"30%"`, `"500 steps"` or `"2e6 tokens"`.

        Raises:
            ScheduleError: no unit, an unknown unit, a share above 100 %, or steps or tokens that are not whole.
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            raise ScheduleError(f"{text!r} has no unit: write '500 steps', '30%' or '2e6 tokens'")
        match = _DURATION.match(text)
        if match is None or match[2] not in _UNITS:
            raise ScheduleError(f"{text!r} is not a duration: write '500 steps', '30%' or '2e6 tokens'")
        value, unit = Fraction(match[1].replace("_", "")), _UNITS[match[2]]
        if unit == "fraction":
            value /= 100
            if value > 1:
                raise ScheduleError(f"{text!r} is more than the whole: a share lies between 0% and 100%")
        elif value.denominator != 1:
            raise ScheduleError(f"{text!r} is not a whole number of {unit}")
        return cls(value, unit)

    def __str__(self) -> str:
        if self.unit == "fraction":
            return f"{float(self.value * 100):g}%"
        return f"{int(self.value)} {self.unit}"


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


@frozen
class Clock:
    """The compiled relation between steps, tokens and t; piecewise linear, one piece a phase.

    `starts[i]` is the first step of phase i, `starts[-1]` the number of steps T; `tokens_at[i]` the tokens consumed
    before it; `rates[i]` the tokens a step of phase i consumes (0 where the data has no length to count).
    """

    horizon: Duration
    starts: tuple[int, ...]
    tokens_at: tuple[int, ...]
    rates: tuple[int, ...]
    _span: float = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_span", float(self.horizon.value))

    @property
    def steps(self) -> int:
        """T, the number of steps of the run."""
        return self.starts[-1]

    def phase_index(self, step: int) -> int:
        """The phase that step k belongs to; the last one for k = T."""
        return min(bisect_right(self.starts, step), len(self.rates)) - 1

    def tokens(self, step: int) -> int:
        """Scheduled positions consumed before step k."""
        i = self.phase_index(step)
        return self.tokens_at[i] + (step - self.starts[i]) * self.rates[i]

    def t(self, step: int) -> float:
        """Run time before step k, in [0, 1]."""
        if step >= self.starts[-1]:
            return 1.0
        return (step if self.horizon.unit == "steps" else self.tokens(step)) / self._span

    def step_at(self, t: float | Fraction) -> int:
        """The first step that runs at or after t."""
        step = self._step_reaching(Duration(Fraction(t) * self.horizon.value, self.horizon.unit))
        return step - 1 if step > 0 and self.t(step - 1) >= t else step  # a float lies beside the decimal it was written as

    def step_of(self, duration: Duration) -> int:
        """The step at which a duration counted from the start of the run has passed, rounded up to a step."""
        if duration.unit == "fraction":
            duration = Duration(duration.value * self.horizon.value, self.horizon.unit)
        return self._step_reaching(duration)

    def every(self, duration: Duration) -> tuple[int, ...]:
        """The steps k in (0, T) at which another whole `duration` has passed since the start."""
        if duration.value <= 0:
            raise ScheduleError(f"a cadence of {duration} never moves on: give it above zero")
        if duration.unit == "steps" and self.steps / duration.value <= MAX_INSTANTS:
            return tuple(range(int(duration.value), self.steps, int(duration.value)))
        whole = {"tokens": self.tokens_at[-1], "steps": self.steps, "fraction": 1}[duration.unit]
        if whole / duration.value > MAX_INSTANTS:
            raise ScheduleError(f"a cadence of {duration} comes round more than {MAX_INSTANTS:,} times in the run: give a longer one")
        steps: list[int] = []
        count = 1
        while (step := self.step_of(Duration(duration.value * count, duration.unit))) < self.steps:
            if not steps or step > steps[-1]:
                steps.append(step)
            count += 1
        return tuple(steps)

    def _step_reaching(self, amount: Duration) -> int:
        if amount.unit == "steps":
            return min(ceil(amount.value), self.steps)
        if amount.value <= 0:
            return 0
        if amount.value >= self.tokens_at[-1]:
            return self.steps
        i = bisect_right(self.tokens_at, amount.value, hi=len(self.rates)) - 1
        return min(self.starts[i] + ceil((amount.value - self.tokens_at[i]) / self.rates[i]), self.starts[i + 1])


def compile_clock(horizon: Duration, names: Sequence[str], ends: Sequence[Duration], tokens_per_step: Sequence[int | None]) -> Clock:
    """Resolve every phase end to one integer step.

    Args:
        horizon: length of the run, in steps or tokens.
        names: one name a phase, for messages.
        ends: where each phase ends, counted from the start of the run; a fraction is of the horizon.
        tokens_per_step: scheduled positions (rows × length × accumulation) of a step of each phase; None where the data
            has no length that could be counted.

    Raises:
        ScheduleError: an empty or backward phase, a gap at the end, or tokens asked of data that does not count them. The
            message draws the timeline.
    """
    if horizon.unit == "fraction" or horizon.value <= 0:
        raise ScheduleError(f"a horizon of {horizon} is no length: give it in steps or tokens, above zero")
    starts, tokens_at = [0], [0]
    reached = Fraction(0)
    for name, end, rate in zip(names, ends, tokens_per_step, strict=True):
        target = Duration(end.value * horizon.value, horizon.unit) if end.unit == "fraction" else end
        if target.unit == "tokens" and not rate:
            raise ScheduleError(f"phase '{name}' is measured in tokens, but its data declares no seq_len and batch_size to count them by")
        if target.unit == "steps":
            stop = ceil(target.value)
        else:
            stop = starts[-1] + ceil((target.value - tokens_at[-1]) / Fraction(rate or 1))
        if stop <= starts[-1]:
            what = "ends before it starts" if (target.unit == "steps" and stop < starts[-1]) else "has no step"
            raise ScheduleError(f"phase '{name}' {what}: it would run from step {starts[-1]} until {end}\n{_draw(names, ends)}")
        tokens_at.append(tokens_at[-1] + (stop - starts[-1]) * (rate or 0))
        starts.append(stop)
        reached = Fraction(stop if horizon.unit == "steps" else tokens_at[-1])
    if reached < horizon.value:
        raise ScheduleError(f"the last phase '{names[-1]}' ends at {ends[-1]}, before the horizon of {horizon}\n{_draw(names, ends)}")
    slack = 1 if horizon.unit == "steps" else (tokens_per_step[-1] or 1)
    if reached >= horizon.value + slack:
        raise ScheduleError(f"phase '{names[-1]}' ends at {ends[-1]}, after the horizon of {horizon}\n{_draw(names, ends)}")
    return Clock(horizon, tuple(starts), tuple(tokens_at), tuple(rate or 0 for rate in tokens_per_step))


def _draw(names: Sequence[str], ends: Sequence[Duration]) -> str:
    return "timeline: 0 " + " ".join(f"├─ {name} ─┤ {end}" for name, end in zip(names, ends, strict=True))
