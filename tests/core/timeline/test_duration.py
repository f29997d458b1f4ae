"""Durations and the clock, against brute force over every step."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stackwise.errors import ScheduleError
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock


@pytest.mark.parametrize(
    ("text", "value", "unit", "shown"),
    [
        ("30%", Fraction(3, 10), "fraction", "30%"),
        ("0.1%", Fraction(1, 1000), "fraction", "0.1%"),
        (" 500  steps ", Fraction(500), "steps", "500 steps"),
        ("1 step", Fraction(1), "steps", "1 steps"),
        ("2e6 tokens", Fraction(2_000_000), "tokens", "2000000 tokens"),
        ("1_000 steps", Fraction(1000), "steps", "1000 steps"),
        ("2.5e1 steps", Fraction(25), "steps", "25 steps"),
        ("100%", Fraction(1), "fraction", "100%"),
        ("15% flops", Fraction(3, 20), "fraction", "15% flops"),
        ("15% of tokens", Fraction(3, 20), "fraction", "15% tokens"),
        ("1e13 FLOPs", Fraction(10**13), "flops", "1e+13 flops"),
        ("1.5 minutes", Fraction(90), "seconds", "90 seconds"),
    ],
)
def test_durations_are_read_exactly(text: str, value: Fraction, unit: str, shown: str) -> None:
    duration = Duration.parse(text)
    assert (duration.value, duration.unit, str(duration)) == (value, unit, shown)
    assert Duration.parse(duration) is duration


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (5, "has no unit"),
        ("5", "is not a duration"),
        ("5 parsecs", "is not a duration"),
        ("2 steps of web", "is not a duration"),
        ("30% of web", "is not a duration"),
        ("1.5 flops", "not a whole number of flops"),
        ("-5 steps", "is not a duration"),
        ("nan%", "is not a duration"),
        ("101%", "more than the whole"),
        ("2.5 steps", "not a whole number of steps"),
        ("1e-3 tokens", "not a whole number of tokens"),
        ("1e999999999 steps", "is not a duration"),
        ("", "is not a duration"),
        (None, "has no unit"),
    ],
)
def test_what_is_no_duration_is_refused_with_its_rule(text: object, rule: str) -> None:
    with pytest.raises(ScheduleError, match=rule):
        Duration.parse(text)


@given(st.integers(1, 400), st.lists(st.fractions(0, 1, max_denominator=200), min_size=1, max_size=4, unique=True))
def test_shares_of_a_horizon_in_steps_end_at_the_first_step_not_before_them(steps: int, shares: list[Fraction]) -> None:
    ends = [Duration(share, "fraction") for share in sorted({*shares, Fraction(1)}) if share > 0]
    expected = [min(k for k in range(steps + 1) if Fraction(k, steps) >= end.value) for end in ends]
    assume(len(set(expected)) == len(expected) and 0 not in expected)
    clock = compile_clock(Duration(Fraction(steps), "steps"), [str(end) for end in ends], ends, [None] * len(ends))
    assert clock.starts == (0, *expected)
    for k in range(steps):
        assert clock.t(k) == k / steps < 1
        assert clock.phase_index(k) == sum(k >= stop for stop in expected)
    assert clock.t(steps) == 1.0 and clock.phase_index(steps) == len(ends) - 1


@given(
    st.integers(1, 60),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.fractions(0, 1, max_denominator=40), max_size=3),
)
def test_a_horizon_in_tokens_is_walked_as_one_would_by_hand(scale: int, rates: list[int], cuts: list[Fraction]) -> None:
    horizon = scale * 10
    shares = [*sorted({cut for cut in cuts if 0 < cut < 1})[: len(rates) - 1], Fraction(1)]
    ends, rates = [Duration(share, "fraction") for share in shares], rates[: len(shares)]
    starts, tokens, k, consumed = [0], [0], 0, 0
    for end, rate in zip(ends, rates, strict=True):
        while consumed < end.value * horizon:
            consumed, k = consumed + rate, k + 1
        starts.append(k)
        tokens.append(consumed)
    assume(len(set(starts)) == len(starts))
    clock = compile_clock(Duration(Fraction(horizon), "tokens"), [str(i) for i in range(len(ends))], ends, list(rates))
    assert (clock.starts, [clock.tokens(step) for step in clock.starts]) == (tuple(starts), tokens)
    seen = [clock.tokens(step) for step in range(clock.steps + 1)]
    brute = [0]
    for index in range(len(rates)):
        brute += [brute[-1] + rates[index] * (i + 1) for i in range(starts[index + 1] - starts[index])]
    assert seen == brute
    assert all(clock.t(step) == seen[step] / horizon < 1 for step in range(clock.steps)) and clock.t(clock.steps) == 1.0


def three_phases() -> Clock:
    ends = [Duration.parse(text) for text in ("40 tokens", "50 steps", "100%")]
    return compile_clock(Duration.parse("100 steps"), ["a", "b", "c"], ends, [4, 2, 10])


@given(st.integers(0, 100))
def test_step_at_is_the_first_step_not_before_t(numerator: int) -> None:
    clock, t = three_phases(), Fraction(numerator, 100)
    assert clock.step_at(t) == min(k for k in range(101) if Fraction(k, 100) >= t)


@given(st.integers(0, 700))
def test_step_of_tokens_is_the_first_step_by_which_they_have_passed(tokens: int) -> None:
    clock = three_phases()
    reached = [k for k in range(clock.steps + 1) if clock.tokens(k) >= tokens]
    assert clock.step_of(Duration(Fraction(tokens), "tokens")) == (reached[0] if reached else clock.steps)


@given(st.sampled_from(["7 steps", "10%", "3%", "25 tokens", "1 tokens", "100%", "200 steps"]))
def test_a_cadence_falls_on_the_first_step_after_each_whole_length(text: str) -> None:
    clock, every = three_phases(), Duration.parse(text)
    done = {"steps": lambda k: k, "fraction": lambda k: Fraction(k, 100), "tokens": clock.tokens}[every.unit]
    expected = [k for k in range(1, 100) if done(k) // every.value > done(k - 1) // every.value]
    assert clock.every(every) == tuple(expected)


def test_a_cadence_of_nothing_is_refused() -> None:
    with pytest.raises(ScheduleError, match="never moves on"):
        three_phases().every(Duration.parse("0%"))


@pytest.mark.parametrize(
    ("horizon", "ends", "rates", "rule"),
    [
        ("10 steps", ["50%", "50%"], [None, None], "'p1' has no step"),
        ("10 steps", ["8 steps", "5 steps"], [None, None], "'p1' ends before it starts"),
        ("10 steps", ["50%"], [None], "before the horizon"),
        ("10 steps", ["50%", "12 steps"], [None, None], "after the horizon"),
        ("10 tokens", ["100%"], [None], "declares no seq_len"),
        ("10 steps", ["0%", "100%"], [None, None], "'p0' has no step"),
        ("0 steps", ["100%"], [None], "not a length"),
        ("50%", ["100%"], [None], "not a length"),
    ],
)
def test_a_timeline_that_does_not_hold_together_is_drawn(horizon: str, ends: list[str], rates: list[int | None], rule: str) -> None:
    names = [f"p{i}" for i in range(len(ends))]
    with pytest.raises(ScheduleError, match=rule) as caught:
        compile_clock(Duration.parse(horizon), names, [Duration.parse(end) for end in ends], rates)
    assert "timeline: 0" in str(caught.value) or "horizon of" in str(caught.value) or "seq_len" in str(caught.value)


def test_thirty_percent_of_ten_steps_is_three_and_never_four() -> None:
    clock = compile_clock(Duration.parse("10 steps"), ["a", "b"], [Duration.parse("30%"), Duration.parse("100%")], [None, None])
    assert clock.starts == (0, 3, 10) and ceil(0.1 * 3 * 10) == 4
