"""The mixture against exact arithmetic: no source is ever a row off, whatever the weights do; absent ones are not read; resume is exact."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.errors import DataError
from stackwise.planes.data.apportionment import UNIT, Request
from stackwise.planes.data.mixture import Mixture

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


@st.composite
def changing(draw: st.DrawFn) -> list[Request]:
    """Steps of a few rows, each with a set of sources of its own."""
    names = [f"s{i}" for i in range(draw(st.integers(2, 6)))]
    even = draw(st.booleans())
    sets = draw(st.lists(st.sets(st.sampled_from(names), min_size=1), min_size=3, max_size=30))
    return [Request(draw(st.integers(1, 4)), {name: 1.0 if even else draw(weights) for name in sorted(present)}) for present in sets]


def reader(requests: Sequence[Request]) -> Callable[[int], Request | None]:
    return lambda step: requests[step] if step < len(requests) else None


def exact(shares: Mapping[str, float]) -> dict[str, Fraction]:
    total = sum(map(Fraction, shares.values()))
    return {name: Fraction(weight) / total for name, weight in shares.items()}


def largest_stray(requests: Sequence[Request], mixture: Mixture | None = None) -> Fraction:
    """The largest |delivered - declared| after any step of any source, in exact arithmetic; also that steps are full and nobody absent is
    read."""
    mixture = mixture or Mixture(reader(requests))
    owed: dict[str, Fraction] = {}
    largest = Fraction(0)
    for step, asked in enumerate(requests):
        counts = mixture.take(step, asked.rows)
        assert sum(counts.values()) == asked.rows
        assert all(asked.shares.get(name, 0) > 0 and count > 0 for name, count in counts.items())
        for name, share in exact(asked.shares).items():
            owed[name] = owed.get(name, Fraction(0)) + share * asked.rows - counts.get(name, 0)
        largest = max(largest, *map(abs, owed.values()))
    return largest


@given(lasting())
def test_lasting_sources_stay_within_tijdemans_bound(requests: list[Request]) -> None:
    n = len(requests[0].shares)
    assert largest_stray(requests) <= 1 - Fraction(1, 2 * n - 2) + Fraction(1, 10**12)


@given(coming_or_going())
def test_sources_that_come_in_or_leave_stay_within_a_row(requests: list[Request]) -> None:
    assert largest_stray(requests) < 1


@given(changing())
def test_sources_that_change_with_every_step_stay_within_a_row(requests: list[Request]) -> None:
    assert largest_stray(requests) < 1


@pytest.mark.parametrize(("share", "early"), [(0.55, {"b": 1}), (0.45, {"a": 1})])
def test_who_leaves_has_its_row_before_if_most_of_it_is_owed(share: float, early: dict[str, int]) -> None:
    """b does not come back; a is there in the next step as well."""
    requests = [Request(1, {"a": 1 - share, "b": share}), *[Request(1, {"a": 0.9, "c": 0.1})] * 5]
    assert Mixture(reader(requests)).take(0, 1) == early


@pytest.mark.parametrize("third", ["ac", "ad", "bc", "bd"])
def test_who_comes_early_is_whom_a_later_step_cannot_take(third: str) -> None:
    """One row each for a and b, for c and d, for two of them and for the other two: everyone is owed exactly one row, and which of a
    and b and which of c and d comes first can be told by the third step alone."""
    last = "".join(sorted(set("abcd") - set(third)))
    assert largest_stray([Request(1, dict.fromkeys(names, 1.0)) for names in ("ab", "cd", third, last)]) < 1


@pytest.mark.parametrize("seed", range(6))
def test_blocks_go_on_where_the_last_one_ended(seed: int) -> None:
    """Other sources with each of 300 steps, dealt out 24 steps at a time with eight more in view."""
    draw = random.Random(seed)
    names = [f"s{i}" for i in range(2 + seed % 5)]
    requests = [
        Request(
            draw.choice([1, 1, 3, 8]), {name: draw.choice([1.0, draw.random()]) for name in draw.sample(names, draw.randint(1, len(names)))}
        )
        for _ in range(300)
    ]
    assert largest_stray(requests, Mixture(reader(requests), block=24, view=32)) < 1


@pytest.mark.parametrize("seed", range(40))
def test_sources_that_leave_and_return_stay_within_a_row(seed: int) -> None:
    draw = random.Random(seed)
    names = [f"s{i}" for i in range(draw.randint(2, 5))]
    requests: list[Request] = []
    for _ in range(8):
        shares = {name: draw.choice([draw.random(), draw.random() ** 3, 1.0]) for name in draw.sample(names, draw.randint(1, len(names)))}
        requests += [Request(8, shares)] * draw.randint(1, 6)
    assert largest_stray(requests) < 1


def test_shares_that_are_rounded_still_add_up_to_whole_rows() -> None:
    """Quarters, sixths and thirds: a, c and f are owed exactly one row after these steps, and thirds are no multiples of 2^-60."""
    assert largest_stray([Request(1, dict.fromkeys(names, 1.0)) for names in ("acde", "abcf", "abcdef", "acf")]) < 1


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.integers(1, 9))
def test_weights_that_stay_need_no_view(shares: list[float], rows: int) -> None:
    asked = Request(rows, {f"s{i}": share for i, share in enumerate(shares)})
    requests = [asked] * 60
    assert largest_stray(requests, Mixture(reader(requests), block=1, view=1)) < 1


def test_changes_out_of_view_find_debts_small() -> None:
    """Of stretches longer than the view, each with a set of sources of its own, nearly all stay within a row, and all within two."""
    strays = []
    for seed in range(30):
        draw = random.Random(seed)
        names = [f"s{i}" for i in range(draw.randint(2, 6))]
        requests: list[Request] = []
        for _ in range(12):
            present = draw.sample(names, draw.randint(1, len(names)))
            asked = Request(draw.choice([1, 2, 8]), {name: draw.choice([draw.random(), draw.random() ** 3, 1.0]) for name in present})
            requests += [asked] * draw.randint(20, 40)
        strays.append(largest_stray(requests, Mixture(reader(requests), block=10, view=15)))
    assert max(strays) < 2 and sum(stray >= 1 for stray in strays) <= 1


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
    assert largest_stray(requests) < 1


@given(st.one_of(lasting(4), coming_or_going(), changing()), st.data())
def test_resuming_anywhere_is_as_if_uninterrupted(requests: list[Request], data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([3, 512]))
    mixture, resumed = (Mixture(reader(requests), block=block, view=block + 8) for _ in range(2))
    takes = [(step, 1) for step, asked in enumerate(requests) for _ in range(asked.rows)]
    stop = data.draw(st.integers(0, len(takes)))
    for take in takes[:stop]:
        mixture.take(*take)
    resumed.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
    assert resumed.state_dict() == mixture.state_dict()
    assert [resumed.take(*take) for take in takes[stop:]] == [mixture.take(*take) for take in takes[stop:]]


@given(changing(), changing(), st.integers(1, 20))
def test_other_requests_go_on_from_what_was_delivered(before: list[Request], after: list[Request], stop: int) -> None:
    """A run that is branched: the rows dealt out so far stay dealt out, and what is owed is what they leave."""
    stop = min(stop, len(before))
    mixture, branched = Mixture(reader(before)), Mixture(reader(before[:stop] + after))
    owed: dict[str, Fraction] = {}
    for step, asked in enumerate(before[:stop] + after):
        if step == stop:
            branched.load_state_dict(mixture.state_dict())
        counts = (mixture if step < stop else branched).take(step, asked.rows)
        for name, share in exact(asked.shares).items():
            owed[name] = owed.get(name, Fraction(0)) + share * asked.rows - counts.get(name, 0)
    debts = branched.state_dict()["debts"]
    assert all(abs(Fraction(debts.get(name, 0), UNIT) - debt) < Fraction(1, 10**9) for name, debt in owed.items())


@given(lasting(4), st.randoms(use_true_random=False))
def test_micro_batches_do_not_change_what_a_step_gets(requests: list[Request], draw: random.Random) -> None:
    whole, cut = Mixture(reader(requests)), Mixture(reader(requests))
    for step, asked in enumerate(requests):
        first = draw.randint(0, asked.rows)
        parts = [cut.take(step, rows) for rows in (first, asked.rows - first) if rows]
        summed = {name: sum(part.get(name, 0) for part in parts) for name in asked.shares}
        assert {name: count for name, count in summed.items() if count} == whole.take(step, asked.rows)


def test_micro_batches_are_mixed_as_the_step_is() -> None:
    mixture = Mixture(reader([Request(24, {"much": 3.0, "less": 1.0})]))
    assert [mixture.take(0, 8) for _ in range(3)] == [{"less": 2, "much": 6}] * 3


def test_even_weights_take_turns() -> None:
    requests = [Request(3, {"a": 1, "b": 1, "c": 1})] * 1000
    mixture = Mixture(reader(requests))
    assert all(mixture.take(step, 3) == {"a": 1, "b": 1, "c": 1} for step in range(1000))


def test_a_rare_source_gets_its_rows() -> None:
    asked = Request(50, {"much": 999, "rare": 1})
    mixture = Mixture(lambda step: asked)
    delivered: Counter[str] = Counter()
    for step in range(2000):
        delivered.update(mixture.take(step, 50))
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
    first = mixture.take(0, 5)
    assert mixture.take(1, 3) == {"a": 3} and mixture.take(1, 4) == {"a": 4} and mixture.take(2, 7) == {"a": 7}
    last = mixture.take(3, 4)
    assert {name: first[name] + last[name] for name in "ab"} == {"a": 6, "b": 3}


@pytest.mark.parametrize("alone", [1, 600])
def test_a_long_time_alone_deals_out_nothing(alone: int) -> None:
    """What is owed before it is owed after it, where it lies inside a block and where it is longer than one."""
    requests = [Request(1, {"a": 1.0, "b": 1.0}), *[Request(3, {"c": 1.0})] * alone, Request(1, {"a": 1.0, "b": 1.0})]
    mixture = Mixture(reader(requests))
    rows = [mixture.take(step, asked.rows) for step, asked in enumerate(requests)]
    assert rows[1:-1] == [{"c": 3}] * alone
    assert rows[0].keys() | rows[-1].keys() == {"a", "b"}


def test_a_step_asked_for_again_starts_over_there() -> None:
    asked = Request(3, {"a": 0.5, "b": 0.5})
    mixture = Mixture(lambda step: asked if step == 0 else None)
    delivered: Counter[str] = Counter()
    for _ in range(4):
        delivered.update(mixture.take(0, 3))
    assert delivered == {"a": 6, "b": 6}


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


def test_long_runs_keep_a_few_numbers_and_ask_a_block_at_a_time() -> None:
    asked: list[int] = []

    def request(step: int) -> Request | None:
        asked.append(step)
        return Request(2, {"a": 1.0, "b": 2.0 + step / 1e4, "c": 0.5}) if step < 5000 else None

    mixture = Mixture(request, block=40, view=50)
    for step in range(5000):
        mixture.take(step, 2)
    assert max(asked) == 5000 and len(asked) <= 5000 / 40 * 52
    assert len(json.dumps(mixture.state_dict())) < 400
