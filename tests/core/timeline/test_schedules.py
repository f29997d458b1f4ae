"""Every schedule against its closed form, at every step."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import cos, pi, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.errors import ScheduleError
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock
from stackwise.timeline.schedules import Constant, Cosine, Curve, Knot, Linear, Piecewise, Schedule, WarmupStableDecay, Window

T = 40
CLOCK = compile_clock(Duration.parse(f"{T} steps"), ["a", "b"], [Duration.parse("10 steps"), Duration.parse("100%")], [3, 5])
RUN, PHASE = Window(CLOCK, 0, T), Window(CLOCK, 10, T)


def values(schedule: Schedule, window: Window = RUN, entry: float | None = None) -> list[float]:
    curve = schedule.compile(window, entry)
    return [curve(CLOCK.t(k)) for k in range(T + 1)]


def over_window(form: Callable[[float], float], window: Window) -> list[float]:
    """A closed form in u, the share of the window that has passed, held outside."""
    length = window.stop_step - window.start_step
    return [form(min(max((k - window.start_step) / length, 0.0), 1.0)) for k in range(T + 1)]


finite = st.floats(-10, 10)
windows = st.sampled_from([RUN, PHASE, Window(CLOCK, 0, 10)])


@given(finite, windows)
def test_constant(value: float, window: Window) -> None:
    assert values(Constant(value=value), window) == [value] * (T + 1)


@given(finite, finite, windows)
def test_linear(start: float, end: float, window: Window) -> None:
    expected = over_window(lambda u: start + (end - start) * u, window)
    assert values(Linear(from_=start, to=end), window) == pytest.approx(expected, abs=1e-9)
    assert values(Linear(to=end), window, entry=start) == pytest.approx(expected, abs=1e-9)


@given(finite, finite, windows)
def test_cosine(start: float, end: float, window: Window) -> None:
    expected = over_window(lambda u: end + 0.5 * (start - end) * (1 + cos(pi * u)), window)
    assert values(Cosine(from_=start, to=end), window) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup", ["25%", "10 steps"])
def test_cosine_after_a_warm_up_from_zero(warmup: str) -> None:
    expected = over_window(lambda u: 4 * u / 0.25 if u < 0.25 else 2 * (1 + cos(pi * (u - 0.25) / 0.75)), RUN)
    assert values(Cosine(from_=4.0, warmup=Duration.parse(warmup))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("shape", "ease"), [("linear", lambda u: u), ("cosine", lambda u: (1 - cos(pi * u)) / 2), ("sqrt", sqrt)])
@pytest.mark.parametrize("window", [RUN, PHASE])
def test_warmup_stable_decay(shape: str, ease: Callable[[float], float], window: Window) -> None:
    def form(u: float) -> float:
        if u < 0.1:
            return 3 * u / 0.1
        return 3.0 if u < 0.8 else 3 + (1 - 3) * ease(min((u - 0.8) / 0.2, 1.0))

    declared = WarmupStableDecay(peak=3, warmup=Duration.parse("10%"), decay=Duration.parse("20%"), to=1, shape=shape)  # type: ignore[arg-type]
    assert values(declared, window) == pytest.approx(over_window(form, window), abs=1e-6)


@given(st.integers(0, 40), st.integers(0, 40))
def test_warm_up_and_decay_fill_the_window_at_most_once(warmup: int, decay: int) -> None:
    declared = WarmupStableDecay(peak=1, warmup=Duration(Fraction(warmup), "steps"), decay=Duration(Fraction(decay), "steps"))
    if warmup + decay > T:
        with pytest.raises(ScheduleError, match="overlap"):
            declared.compile(RUN, None)
        return
    expected = [min(k / warmup if k < warmup else 1, (T - k) / decay if decay and k > T - decay else 1) for k in range(T + 1)]
    assert values(declared) == pytest.approx(expected, abs=1e-9)


def test_piecewise_holds_each_value_from_its_instant_and_the_value_at_entry_before() -> None:
    declared = Piecewise(values={"25%": 2.0, "20 steps": 3.0, "110 tokens": 4.0})
    brute = [next(value for start, value in [(32, 4.0), (20, 3.0), (10, 2.0), (0, 9.0)] if k >= start) for k in range(T + 1)]
    assert CLOCK.tokens(26) == 110
    brute = [4.0 if k >= 26 else value for k, value in enumerate(brute)]
    assert values(declared, RUN, entry=9.0) == brute
    with pytest.raises(ScheduleError, match=r"before 25%.*give one at 0%"):
        declared.compile(RUN, None)


@pytest.mark.parametrize("table", [{}, {"50%": 1.0, "10%": 2.0}, {"0%": 1.0, "0 steps": 2.0}])
def test_piecewise_needs_instants_in_order(table: dict[str, float]) -> None:
    with pytest.raises(ScheduleError, match="each later than the one before"):
        Piecewise(values=table).compile(RUN, None)


@pytest.mark.parametrize("declared", [Linear(to=0.0), Cosine(to=0.0)])
def test_without_a_value_at_entry_from_must_be_given(declared: Schedule) -> None:
    with pytest.raises(ScheduleError, match="give `from`"):
        declared.compile(RUN, None)


@pytest.mark.parametrize("text", ["11 steps", "31 tokens", "500 tokens"])
def test_a_duration_longer_than_its_window_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="longer than the 10 steps"):
        Cosine(from_=1.0, warmup=Duration.parse(text)).compile(Window(CLOCK, 0, 10), None)


@given(st.lists(st.tuples(st.floats(0, 1), finite), min_size=1, max_size=5, unique_by=lambda pair: pair[0]), st.floats(-1, 2))
def test_a_curve_is_held_outside_and_interpolated_inside(pairs: list[tuple[float, float]], t: float) -> None:
    pairs = sorted(pairs)
    curve = Curve(tuple(Knot(at, value, "linear") for at, value in pairs))
    expected = pairs[0][1] if t <= pairs[0][0] else pairs[-1][1]
    for (t0, v0), (t1, v1) in pairwise(pairs):
        if t0 <= t < t1:
            expected = v0 + (v1 - v0) * ((t - t0) / (t1 - t0))
    assert curve(t) == pytest.approx(expected, abs=1e-9)
    assert curve.is_constant == (len({value for _, value in pairs}) == 1)
    assert Curve.constant(3)(t) == 3.0 and Curve.constant(3).is_constant
