"""The settlement of leaving sources against trying every choice there is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from stackwise.planes.settlement import Absence, settle

UNIT = 100


@st.composite
def schedules(draw: st.DrawFn) -> list[Absence]:
    """Absences of a few sources, none of a source overlapping another of its own; some of them are decided."""
    absences = []
    for name in "abcde"[: draw(st.integers(1, 5))]:
        edges = sorted(draw(st.sets(st.integers(0, 9), max_size=4)))
        for leave, back in zip(edges[::2], [*edges[1::2], None], strict=False):
            fixed = leave == 0
            owed = draw(st.integers(-UNIT + 1, UNIT - 1) if fixed else st.integers(0, UNIT - 1))
            absences.append(Absence(name, leave, back, owed, not fixed and owed > 0))
    return absences


def stray(absences: Iterable[Absence], given_before: frozenset[tuple[str, int]]) -> int:
    """The largest sum of what is owed to sources that are away at one step, or that leave or come back at it."""
    absences = list(absences)
    edges = sorted({step for a in absences for step in (a.leave, a.back) if step is not None})
    largest = 0
    for edge in edges:
        for inside in (True, False):
            away = [a for a in absences if a.leave <= edge and (a.back is None or a.back > edge or (inside and a.back == edge))]
            largest = max(largest, abs(sum(a.owed - UNIT * ((a.name, a.leave) in given_before) for a in away)))
    return largest


def every_choice(absences: list[Absence]) -> Iterable[frozenset[tuple[str, int]]]:
    undecided = [(a.name, a.leave) for a in absences if a.open]
    for taken in product([False, True], repeat=len(undecided)):
        yield frozenset(key for key, yes in zip(undecided, taken, strict=True) if yes)


@given(schedules())
def test_a_choice_that_keeps_every_sum_within_a_row_is_found_when_there_is_one(absences: list[Absence]) -> None:
    found = settle(tuple(absences), UNIT)
    assert found <= {(a.name, a.leave) for a in absences if a.open}
    if any(stray(absences, choice) < UNIT for choice in every_choice(absences)):
        assert stray(absences, found) < UNIT


@given(schedules())
def test_where_nothing_is_decided_there_is_always_one(absences: list[Absence]) -> None:
    undecided = [a for a in absences if a.leave > 0]
    assert stray(undecided, settle(tuple(undecided), UNIT)) < UNIT


def test_the_nearest_rounding_is_kept_where_it_will_do() -> None:
    absences = (Absence("a", 3, 5, 70, True), Absence("b", 8, None, 20, True))
    assert settle(absences, UNIT) == {("a", 3)}
