"""The mixture against exact arithmetic: no source is ever a row off, whatever the weights do; absent ones are not read; resume is exact."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.errors import DataError
from stackwise.planes.mixture import Mixture, Request

weights = st.one_of(st.floats(1e-6, 1.0), st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 3.0]))


@st.composite
def lasting(draw: st.DrawFn, most: int = 6) -> list[Request]:
    """Steps of the same sources, every one with weights and rows of its own."""
    names = [f"s{i}" for i in range(draw(st.integers(2, most)))]
    steps = draw(
        st.lists(st.tuples(st.integers(1, 9), st.lists(weights, min_size=len(names), max_size=len(names))), min_size=1, max_size=40)
    )
    return [Request(rows, dict(zip(names, values, strict=True))) for rows, values in steps]


@st.composite
def coming_or_going(draw: st.DrawFn) -> list[Request]:
    """Phases of a few steps; sources come in one after the other, or leave for good."""
    names = [f"s{i}" for i in range(draw(st.integers(2, 5)))]
    counts = sorted(draw(st.lists(st.integers(1, len(names)), min_size=2, max_size=6)), reverse=draw(st.booleans()))
    requests = []
    for count in counts:
        shares = {name: draw(weights) for name in names[:count]}
        requests += [Request(draw(st.integers(1, 9)), shares)] * draw(st.integers(1, 5))
    return requests


def reader(requests: Sequence[Request]) -> Callable[[int], Request | None]:
    return lambda step: requests[step] if step < len(requests) else None


def exact(shares: Mapping[str, float]) -> dict[str, Fraction]:
    total = sum(map(Fraction, shares.values()))
    return {name: Fraction(weight) / total for name, weight in shares.items()}


def choices(requests: Sequence[Request], mixture: Mixture, start: int = 0) -> Iterator[tuple[Request, str]]:
    """The source of every row, dealt out one by one."""
    for step in range(start, len(requests)):
        for _ in range(requests[step].rows):
            (name,) = mixture.take(step, 1)
            yield requests[step], name


def largest_stray(requests: Sequence[Request], mixture: Mixture | None = None) -> Fraction:
    """The largest |delivered - declared| after any row of any source, in exact arithmetic; also that nobody absent is read."""
    owed: dict[str, Fraction] = {}
    largest = Fraction(0)
    for asked, name in choices(requests, mixture or Mixture(reader(requests))):
        assert asked.shares.get(name, 0) > 0
        for source, share in exact(asked.shares).items():
            owed[source] = owed.get(source, Fraction(0)) + share
        owed[name] -= 1
        largest = max(largest, *map(abs, owed.values()))
    return largest


@given(lasting())
def test_lasting_sources_stay_within_tijdemans_bound(requests: list[Request]) -> None:
    n = len(requests[0].shares)
    assert largest_stray(requests) <= 1 - Fraction(1, 2 * n - 2) + Fraction(1, 10**12)


@given(coming_or_going())
def test_sources_that_come_in_or_leave_stay_within_a_row(requests: list[Request]) -> None:
    assert largest_stray(requests) < 1


@pytest.mark.parametrize("seed", range(40))
def test_sources_that_leave_and_return_stay_within_a_row(seed: int) -> None:
    draw = random.Random(seed)
    names = [f"s{i}" for i in range(draw.randint(2, 5))]
    requests: list[Request] = []
    for _ in range(8):
        shares = {name: draw.choice([draw.random(), draw.random() ** 3, 1.0]) for name in draw.sample(names, draw.randint(1, len(names)))}
        requests += [Request(8, shares)] * draw.randint(1, 6)
    assert largest_stray(requests) < 1


def test_the_largest_debt_first_is_not_enough() -> None:
    """Who was chosen gets almost no weight any more: the last of four would be owed 1/4 + 1/3 + 1/2 > 1 if debts alone decided."""
    requests = [Request(1, {name: 1.0 if name >= first else 1e-9 for name in "abcd"}) for first in "abcd"]
    owed = dict.fromkeys("abcd", Fraction(0))
    largest = Fraction(0)
    for asked in requests:
        owed = {name: debt + exact(asked.shares)[name] for name, debt in owed.items()}
        owed[max(owed, key=lambda name: owed[name])] -= 1
        largest = max(largest, *map(abs, owed.values()))
    assert largest > 1
    assert largest_stray(requests) <= 1 - Fraction(1, 6)


@given(st.one_of(lasting(4), coming_or_going()), st.data())
def test_resuming_anywhere_is_as_if_uninterrupted(requests: list[Request], data: st.DataObject) -> None:
    whole = [name for _, name in choices(requests, Mixture(reader(requests)))]
    stop = data.draw(st.integers(0, len(whole)))
    mixture, resumed = Mixture(reader(requests)), Mixture(reader(requests))
    steps = [step for step, asked in enumerate(requests) for _ in range(asked.rows)]
    for step in steps[:stop]:
        mixture.take(step, 1)
    resumed.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
    assert resumed.state_dict() == mixture.state_dict()
    assert [name for step in steps[stop:] for name in resumed.take(step, 1)] == whole[stop:]
    assert resumed.state_dict()["delivered"] == {name: whole.count(name) for name in set(whole)}


@given(lasting(4), st.randoms(use_true_random=False))
def test_micro_batches_do_not_change_what_a_step_gets(requests: list[Request], draw: random.Random) -> None:
    whole, cut = Mixture(reader(requests)), Mixture(reader(requests))
    for step, asked in enumerate(requests):
        first = draw.randint(0, asked.rows)
        parts = [cut.take(step, rows) for rows in (first, asked.rows - first) if rows]
        summed = {name: sum(part.get(name, 0) for part in parts) for name in asked.shares}
        assert {name: count for name, count in summed.items() if count} == whole.take(step, asked.rows)


def test_even_weights_take_turns() -> None:
    requests = [Request(3, {"a": 1, "b": 1, "c": 1})] * 1000
    mixture = Mixture(reader(requests))
    assert all(mixture.take(step, 3) == {"a": 1, "b": 1, "c": 1} for step in range(1000))


def test_a_rare_source_gets_its_rows() -> None:
    asked = Request(50, {"much": 999, "rare": 1})
    mixture = Mixture(lambda step: asked)
    for step in range(2000):
        mixture.take(step, 50)
    delivered = mixture.state_dict()["delivered"]
    assert delivered == {"much": 99_900, "rare": 100}


def test_a_source_that_waited_comes_before_it_is_due() -> None:
    """Owed 1/2 each when only c is left: exactly one of a and b gets its row before, the other waits and has it when it is back."""
    requests = [Request(3, {"a": 0.5, "b": 0.5}), Request(20, {"c": 1.0}), Request(4, {"a": 0.5, "b": 0.5})]
    mixture = Mixture(reader(requests))
    first = mixture.take(0, 3)
    assert sorted(first.values()) == [1, 2]
    assert mixture.take(1, 20) == {"c": 20}
    assert mixture.take(2, 4) == {"a": 2, "b": 2}


def test_one_source_needs_no_dealing_out_and_keeps_what_others_are_owed() -> None:
    requests = [
        Request(5, {"a": 2.0, "b": 1.0}),
        Request(7, {"a": 1.0}),
        Request(7, {"a": 1.0, "b": 0.0}),
        Request(4, {"a": 2.0, "b": 1.0}),
    ]
    mixture = Mixture(reader(requests))
    mixture.take(0, 5)
    owed = mixture.state_dict()["debt"]
    assert mixture.take(1, 3) == {"a": 3} and mixture.take(1, 4) == {"a": 4} and mixture.take(2, 7) == {"a": 7}
    assert mixture.state_dict()["debt"] == owed
    assert sum(mixture.take(3, 4).values()) == 4
    assert sum(mixture.state_dict()["debt"].values()) == 0
    assert mixture.state_dict()["delivered"] == {"a": 6 + 14, "b": 3}


def test_a_step_asked_for_again_starts_over_there() -> None:
    asked = Request(3, {"a": 0.5, "b": 0.5})
    mixture = Mixture(lambda step: asked if step == 0 else None)
    for _ in range(4):
        mixture.take(0, 3)
    assert mixture.state_dict()["delivered"] == {"a": 6, "b": 6}


@pytest.mark.parametrize(
    ("requests", "step", "rows", "fault", "message"),
    [
        ([Request(2, {"a": 0.0, "b": 0.0})], 0, 2, DataError, r"weights of data.mix are \{'a': 0.0, 'b': 0.0\} at step 0"),
        ([Request(2, {"a": 0.0})], 0, 2, DataError, "at least one is above zero"),
        ([Request(2, {"a": 1.0, "b": 1.0})], 1, 2, ValueError, "step 1 lies past the end"),
        ([Request(2, {"a": 1.0, "b": 1.0})], 0, 3, ValueError, "step 0 has 2 rows left and 3 are taken"),
    ],
)
def test_requests_that_make_no_sense(requests: list[Request], step: int, rows: int, fault: type[Exception], message: str) -> None:
    with pytest.raises(fault, match=message):
        Mixture(reader(requests)).take(step, rows)


def test_long_runs_forget_the_steps_behind_and_read_each_step_once() -> None:
    asked: list[int] = []

    def request(step: int) -> Request | None:
        asked.append(step)
        return Request(2, {"a": 1.0, "b": 2.0 + step / 1e4, "c": 0.5}) if step < 5000 else None

    mixture = Mixture(request, look_ahead=50)
    for step in range(5000):
        mixture.take(step, 2)
    assert asked[1:] == list(range(5001))
    assert len(json.dumps(mixture.state_dict())) < 400
