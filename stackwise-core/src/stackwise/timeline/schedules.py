"""Schedules: a number as a function of time, declared once and compiled into a curve of knots.

The same family serves learning rates, dropout, mask rates, mixture weights and gates. In a config a schedule is a number or
a map with one tag: `{linear: {from: 0.3, to: 0.15}}`, `{wsd: {peak: 2e-3, warmup: 2%, decay: 20%}}`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import cos, pi, sqrt
from typing import Literal, NamedTuple, Protocol

from attrs import evolve, field, frozen

from stackwise.errors import ScheduleError
from stackwise.timeline.clock import Clock, share
from stackwise.timeline.duration import Duration

Shape = Literal["hold", "linear", "cosine", "sqrt"]
Over = Literal["run", "phase"]

_EASE: dict[str, Callable[[float], float]] = {
    "hold": lambda u: 0.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1.0 - cos(pi * u)) / 2.0,
    "sqrt": sqrt,  # value falls with 1 - sqrt(u): the decay of Hägele et al., arXiv 2405.18392, section 3
}


class Knot(NamedTuple):
    """The value at time t, and how it moves to the next knot."""

    t: float
    value: float
    shape: Shape


class _Piece(NamedTuple):
    """The segment from one knot to the next: value + rise · ease((t - start) / span)."""

    start: float
    value: float
    rise: float
    span: float
    ease: Callable[[float], float]


@frozen
class Curve:
    """A compiled schedule: knots in increasing t, constant before the first and after the last. Curves are equal if their knots are."""

    knots: tuple[Knot, ...]
    _times: tuple[float, ...] = field(init=False, repr=False, eq=False)
    _pieces: tuple[_Piece, ...] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_times", tuple(knot.t for knot in self.knots))
        pairs = zip(self.knots, self.knots[1:], strict=False)
        pieces = [_Piece(one.t, one.value, next.value - one.value, next.t - one.t, _EASE[one.shape]) for one, next in pairs]
        last = self.knots[-1]
        object.__setattr__(self, "_pieces", (*pieces, _Piece(last.t, last.value, 0.0, 1.0, _EASE["hold"])))

    @classmethod
    def constant(cls, value: float) -> Curve:
        """The curve that is `value` at every t."""
        return cls((Knot(0.0, float(value), "hold"),))

    @property
    def is_constant(self) -> bool:
        """Whether the value never changes."""
        return all(knot.value == self.knots[0].value for knot in self.knots)

    def __call__(self, t: float) -> float:
        """The value at run time t."""
        i = bisect_right(self._times, t) - 1
        if i < 0:
            return self.knots[0].value
        start, value, rise, span, ease = self._pieces[i]
        return value + rise * ease((t - start) / span)


@frozen
class Window:
    """The steps a schedule spans: the run, or the phase that declares it. Shares are shares of the window."""

    clock: Clock
    start_step: int
    stop_step: int

    @property
    def start(self) -> float:
        """Run time at which the window opens."""
        return self.clock.t(self.start_step)

    @property
    def stop(self) -> float:
        """Run time at which it closes."""
        return self.clock.t(self.stop_step)

    def after_start(self, duration: Duration) -> float:
        """Run time at which `duration` has passed since the window opened."""
        return self._shift(duration, self.start_step, forward=True)

    def before_stop(self, duration: Duration) -> float:
        """Run time at which `duration` is left until the window closes."""
        return self._shift(duration, self.stop_step, forward=False)

    def _shift(self, duration: Duration, step: int, *, forward: bool) -> float:
        sign, clock = (1 if forward else -1), self.clock
        if duration.unit == "fraction":
            t = clock.t(step) + sign * float(share(duration, clock.horizon)) * (self.stop - self.start)
        else:
            amount = clock.consumed(step, duration.measure) + sign * duration.value
            fits = 0 <= amount <= clock.consumed(clock.steps, duration.measure)
            t = clock.t(clock.step_of(evolve(duration, value=amount))) if fits else 2.0 * sign
        if not self.start - 1e-12 <= t <= self.stop + 1e-12:
            raise ScheduleError(f"{duration} is longer than the {self.stop_step - self.start_step} steps it has to fit into")
        return t


class Schedule(Protocol):
    """A declared number over time. `over` says which window it spans: the run, or the phase that declares it."""

    @property
    def over(self) -> Over: ...

    def compile(self, window: Window, entry: float | None) -> Curve:
        """Resolve every duration against `window`; `entry` is the value the option had just before, if any.

        Raises:
            ScheduleError: a duration that does not fit, or a value at entry that is needed and unknown.
        """
        ...


_OVER = {"doc": "in every schedule: the window that shares and ends are counted in", "examples": ("{linear: {to: 0, over: phase}}",)}


def _read_duration(text: object) -> Duration:
    return Duration.parse(text)


@frozen(kw_only=True)
class Constant:
    """The same value at every t."""

    value: float = field(metadata={"doc": "the value", "examples": ("{constant: {value: 0.1}}",)})
    over: Over = field(default="run", metadata=_OVER)

    def compile(self, window: Window, entry: float | None) -> Curve:
        """One knot."""
        return Curve.constant(self.value)


@frozen(kw_only=True)
class Linear:
    """A straight line from `from` (the value at entry when omitted) to `to` across the window, then held."""

    to: float = field(metadata={"doc": "value at the end of the window", "examples": ("{linear: {from: 0.3, to: 0.15}}",)})
    from_: float | None = field(
        default=None, alias="from_", metadata={"key": "from", "doc": "value at its start", "absent": "the value at entry"}
    )
    over: Over = field(default="run", metadata=_OVER)

    def compile(self, window: Window, entry: float | None) -> Curve:
        """Two knots."""
        return Curve((Knot(window.start, _at_entry(self.from_, entry), "linear"), Knot(window.stop, self.to, "hold")))


@frozen(kw_only=True)
class Cosine:
    """Half a cosine from `from` down (or up) to `to`, after an optional linear warm-up from 0 (SGDR, arXiv 1608.03983, eq. 5)."""

    to: float = field(default=0.0, metadata={"doc": "value at the end of the window", "examples": ("{cosine: {from: 3e-4, warmup: 5%}}",)})
    from_: float | None = field(
        default=None,
        alias="from_",
        metadata={"key": "from", "doc": "value that the half cosine starts from", "absent": "the value at entry"},
    )
    warmup: Duration = field(
        default=Duration.parse("0%"), converter=_read_duration, metadata={"doc": "length of the linear rise from 0 before it"}
    )
    over: Over = field(default="run", metadata=_OVER)

    def compile(self, window: Window, entry: float | None) -> Curve:
        """Two knots, three with a warm-up."""
        peak = _at_entry(self.from_, entry)
        top = Knot(window.after_start(self.warmup), peak, "cosine")
        end = Knot(window.stop, self.to, "hold")
        return Curve((Knot(window.start, 0.0, "linear"), top, end) if self.warmup.value else (top, end))


@frozen(kw_only=True)
class WarmupStableDecay:
    """Linear warm-up from 0, a plateau at `peak`, a decay to `to` that fills the end of the window (arXiv 2404.06395, section 4.2)."""

    peak: float = field(metadata={"doc": "value on the plateau", "examples": ("{wsd: {peak: 2e-3, warmup: 2%, decay: 20%}}",)})
    warmup: Duration = field(default=Duration.parse("0%"), converter=_read_duration, metadata={"doc": "length of the linear rise from 0"})
    decay: Duration = field(
        default=Duration.parse("0%"), converter=_read_duration, metadata={"doc": "length of the fall at the end of the window"}
    )
    to: float = field(default=0.0, metadata={"doc": "value at the end of the fall"})
    shape: Literal["linear", "cosine", "sqrt"] = field(default="linear", metadata={"doc": "form of the fall"})
    over: Over = field(default="run", metadata=_OVER)

    def compile(self, window: Window, entry: float | None) -> Curve:
        """Up to four knots.

        Raises:
            ScheduleError: warm-up and decay overlap.
        """
        top, fall = window.after_start(self.warmup), window.before_stop(self.decay)
        if top > fall + 1e-12:
            raise ScheduleError(f"a warm-up of {self.warmup} and a decay of {self.decay} overlap: together they may fill the window once")
        knots = [Knot(window.start, 0.0, "linear")] if self.warmup.value else []
        knots.append(Knot(top, self.peak, "hold"))
        if self.decay.value:
            knots += [Knot(max(fall, top), self.peak, self.shape), Knot(window.stop, self.to, "hold")]
        return Curve(tuple(knots))


@frozen(kw_only=True)
class Piecewise:
    """Steps: each value holds from its instant in the window until the next."""

    values: Mapping[str, float] = field(
        metadata={
            "form": "instant → number",
            "doc": "each value holds from its instant on; before the first, the value at entry",
            "examples": ("{piecewise: {values: {0%: 1, 50%: 0.5}}}",),
        }
    )
    over: Over = field(default="run", metadata=_OVER)

    def compile(self, window: Window, entry: float | None) -> Curve:
        """One knot a value.

        Raises:
            ScheduleError: no values, or instants out of order.
        """
        times = [window.after_start(Duration.parse(at)) for at in self.values]
        if not times or sorted(set(times)) != times:
            raise ScheduleError("the instants of a piecewise schedule are given at least once, each later than the one before")
        knots = tuple(Knot(t, float(value), "hold") for t, value in zip(times, self.values.values(), strict=True))
        if times[0] > window.start:
            if entry is None:
                raise ScheduleError(
                    f"nothing is said of the time before {next(iter(self.values))}, and no value at entry holds there: give one at 0%"
                )
            knots = (Knot(window.start, entry, "hold"), *knots)
        return Curve(knots)


TAGS: Mapping[str, type[Constant] | type[Linear] | type[Cosine] | type[WarmupStableDecay] | type[Piecewise]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "wsd": WarmupStableDecay,
    "piecewise": Piecewise,
}
"""Config tag → schedule class; the whole family."""


def _at_entry(declared: float | None, entry: float | None) -> float:
    if declared is not None:
        return declared
    if entry is None:
        raise ScheduleError("`from` is left out, but there is no value at entry to start from: give `from`")
    return entry
