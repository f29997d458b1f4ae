"""The sum of what steps cost, against adding them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stackwise.timeline.spent import Spent


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**6)), min_size=1, max_size=5))
def test_the_sum_is_that_of_every_step(stretches: list[tuple[int, int]]) -> None:
    starts, rates, at = [], [], 0
    for steps, rate in stretches:
        starts.append((at, rate))
        rates += [rate] * steps
        at += steps
    spent = Spent.of(starts)
    assert spent is not None
    assert [spent.before(step) for step in range(at + 1)] == [sum(rates[:step]) for step in range(at + 1)]
    assert spent.before(0.5) == rates[0] / 2


def test_one_unknown_price_leaves_the_sum_unknown() -> None:
    assert Spent.of([(0, 3), (4, None)]) is None is Spent.of([])
