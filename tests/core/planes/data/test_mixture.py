"""The mixture against exact arithmetic: debts keep their bound whatever the weights do, absent sources are not read, resume is exact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.errors import DataError
from stackwise.planes.data.mixture import UNIT, Mixture

ROUNDING = Fraction(1, 10**12)

weights = st.one_of(st.floats(1e-6, 1.0), st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 3.0]))


class Step(NamedTuple):
    """Rows, and the weight of every source present."""

    rows: int
    weights: dict[str, float]


@st.composite
def lasting(draw: st.DrawFn, most: int = 8) -> list[Step]:
    """Steps of the same sources, every one with weights and rows of its own."""
    names = [f"s{i}" for i in range(draw(st.integers(2, most)))]
    values = st.lists(weights, min_size=len(names), max_size=len(names))
    steps = draw(st.lists(st.tuples(st.integers(1, 9), values), min_size=1, max_size=40))
    return [Step(rows, dict(zip(names, each, strict=True))) for rows, each in steps]


@st.composite
def changing(draw: st.DrawFn, most: int = 8) -> list[Step]:
    """Sources that come and go with every stretch of steps."""
    names = [f"s{i}" for i in range(draw(st.integers(2, most)))]
    steps: list[Step] = []
    for present in draw(st.lists(st.sets(st.sampled_from(names), min_size=1), min_size=3, max_size=30)):
        shares = {name: draw(weights) for name in sorted(present)}
        steps += [Step(draw(st.integers(1, 4)), shares)] * draw(st.sampled_from([1, 1, 2, 7]))
    return steps


def exact(weights: Mapping[str, float]) -> dict[str, Fraction]:
    total = sum(map(Fraction, weights.values()))
    return {name: Fraction(weight) / total for name, weight in weights.items()}


def largest_stray(steps: Sequence[Step]) -> tuple[Fraction, int]:
    """The largest |delivered - declared| after any row of any source, in exact arithmetic, and how many sources were met; also that steps
    are full and nobody absent is read."""
    mixture, owed, largest = Mixture(), dict[str, Fraction](), Fraction(0)
    for step in steps:
        for _ in range(step.rows):
            counts = mixture.take(step.weights, 1)
            assert list(counts.values()) == [1] and counts.keys() <= step.weights.keys()
            for name, share in exact(step.weights).items():
                owed[name] = owed.get(name, Fraction(0)) + share - counts.get(name, 0)
            largest = max(largest, *map(abs, owed.values()))
    return largest, len(owed)


@given(lasting())
def test_while_sources_stay_debts_keep_the_harmonic_bound(steps: list[Step]) -> None:
    largest, n = largest_stray(steps)
    assert largest <= sum((Fraction(1, k) for k in range(2, n + 1)), Fraction(0)) + ROUNDING < 2


@given(changing())
def test_sources_that_come_and_go_keep_the_general_bound_and_two_rows(steps: list[Step]) -> None:
    """(n-1)/2 is the theorem, which allows more than two rows from six sources on; drawn schedules stay within two."""
    largest, n = largest_stray(steps)
    assert largest <= min(Fraction(max(n - 1, 0), 2), Fraction(2)) + ROUNDING


def test_who_is_owed_most_is_seldom_more_than_a_row_short() -> None:
    """Whoever was chosen gets almost no weight any more: the last of four is owed 1/4 + 1/3 + 1/2, the harmonic bound itself."""
    steps = [Step(1, {name: 1.0 if name >= first else 1e-9 for name in "abcd"}) for first in "abcd"]
    largest, _ = largest_stray(steps)
    assert abs(largest - Fraction(13, 12)) < Fraction(1, 10**6)


@given(st.one_of(lasting(4), changing()), st.data())
def test_resuming_anywhere_is_as_if_uninterrupted(steps: list[Step], data: st.DataObject) -> None:
    takes = [step.weights for step in steps for _ in range(step.rows)]
    stop = data.draw(st.integers(0, len(takes)))
    mixture, resumed = Mixture(), Mixture()
    for each in takes[:stop]:
        mixture.take(each, 1)
    resumed.debts = json.loads(json.dumps(mixture.debts))
    assert [resumed.take(each, 1) for each in takes[stop:]] == [mixture.take(each, 1) for each in takes[stop:]]


@given(changing(), st.data())
def test_micro_batches_get_what_their_step_would(steps: list[Step], data: st.DataObject) -> None:
    whole, cut = Mixture(), Mixture()
    for step in steps:
        first = data.draw(st.integers(0, step.rows))
        parts = Counter(cut.take(step.weights, first)) + Counter(cut.take(step.weights, step.rows - first))
        assert parts == whole.take(step.weights, step.rows)


@given(lasting())
def test_what_is_owed_sums_to_nothing(steps: list[Step]) -> None:
    mixture = Mixture()
    for step in steps:
        mixture.take(step.weights, step.rows)
        assert sum(mixture.debts.values()) == 0


def test_micro_batches_are_mixed_as_the_step_is() -> None:
    mixture = Mixture()
    assert [mixture.take({"much": 3.0, "less": 1.0}, 8) for _ in range(3)] == [{"less": 2, "much": 6}] * 3


def test_two_sources_are_rounded_to_the_nearest_row() -> None:
    """With two, half a row is the bound, so the count of the second is its declared share rounded: 0.3 k."""
    mixture, second = Mixture(), 0
    for k in range(1, 200):
        second += mixture.take({"a": 0.7, "b": 0.3}, 1).get("b", 0)
        assert abs(second - 0.3 * k) <= 0.5 + 1e-9


def test_a_rare_source_gets_its_rows() -> None:
    mixture = Mixture()
    delivered: Counter[str] = Counter()
    for _ in range(2000):
        delivered.update(mixture.take({"much": 999.0, "rare": 1.0}, 50))
    assert delivered == {"much": 99_900, "rare": 100}


def test_a_source_of_weight_zero_is_absent_and_keeps_what_it_is_owed() -> None:
    mixture = Mixture()
    mixture.take({"a": 2.0, "b": 1.0}, 5)
    before = dict(mixture.debts)
    assert mixture.take({"a": 1.0, "b": 0.0}, 7) == {"a": 7} == mixture.take({"a": 3.0}, 7)
    assert mixture.debts == before
    assert abs(abs(Fraction(before["b"], UNIT)) - Fraction(1, 3)) < ROUNDING


def test_what_a_source_is_owed_stays_while_others_are_read() -> None:
    """Two thirds of a row are owed to c when it leaves, so c gets the first row after its return."""
    mixture = Mixture()
    mixture.take({"a": 1, "b": 1, "c": 1}, 2)  # one row each to a and b
    owed = mixture.debts["c"]
    mixture.take({"a": 1, "b": 1}, 5)
    assert mixture.debts["c"] == owed > 0
    assert sum(mixture.debts.values()) == 0
    assert mixture.take({"a": 1, "b": 1, "c": 1}, 1) == {"c": 1}


@pytest.mark.parametrize("weights", [{"a": 0.0, "b": 0.0}, {"a": 0.0}])
def test_no_weight_above_zero_is_the_users_mistake(weights: dict[str, float]) -> None:
    with pytest.raises(DataError, match="at least one is above zero"):
        Mixture().take(weights, 2)
