"""Whole rows for fractional shares: how many rows of each source every step gets, so that no source is ever a row off.

Row m of a source is owed bit by bit while the sum of its shares goes from m - 1 to m, in steps that the source takes part in. These bits
match rows to steps in fractions and fill every step exactly. A bipartite graph with such a matching has a whole one (G. Birkhoff, "Tres
observaciones sobre el álgebra lineal", 1946): every row in a step in which a part of it is owed, every step full. Whichever is taken, a
source has after each step all rows that are fully owed and none that is not owed at all: |delivered - declared| < 1, also where sources
leave and come back, and a source that is away gets nothing.

Only rows that are owed across the end of a step leave a choice. They are matched step by step along augmenting paths (C. Berge, "Two
theorems in graph theory", 1957), and as long as there is a choice by the margins of R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32 (1980) 323-330: of those owed by at least 1/(2n-2) the first that will be owed by more than 1 - 1/(2n-2). That
keeps debts small, which is the best that can be done for changes that are not yet in view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import define, frozen

from stackwise.errors import DataError

UNIT = 1 << 60
"""One row. Shares and debts are whole multiples of 1/UNIT, so that sums of them are exact."""

_ROUNDING = UNIT >> 20  # above what rounding shares to UNIT can sum up to
_NEVER = 1 << 60


@frozen
class Request:
    """What one step asks for: its rows, and the weight of every source that takes part; only ratios matter."""

    rows: int
    shares: Mapping[str, float]


@frozen(slots=False)
class Dealt:
    """One step dealt out."""

    counts: dict[str, int]
    """Source → rows, of those that get any."""
    debts: dict[str, int]
    """What every source met so far is owed after it, in UNIT: declared less delivered."""

    @cached_property
    def order(self) -> list[str]:
        """The source of each row, those of every source spread evenly over the step."""
        return [name for _, name in sorted(((2 * i + 1) / count, name) for name, count in self.counts.items() for i in range(count))]


@define(eq=False)
class _Row:
    """A row that is owed across the end of a step."""

    name: str
    steps: list[int]
    """Those in which a part of it is owed: it comes in one of them."""
    due: int = _NEVER
    """The last of them; never, where the view ends before."""
    ripe: int = _NEVER
    """The step from which on it is owed by Tijdeman's lower margin, and so may better come than others."""
    wanted: int = _NEVER
    """The step in which what it is owed passes his upper margin, or behind which its source leaves with most of it owed."""
    at: int | None = None
    """The step that it comes in."""


@define(eq=False)
class _Line:
    """One source along the steps: since the first, in UNIT and rows."""

    owed: int
    """The sum of its shares."""
    complete: int = 0
    """Rows that are fully owed."""
    open: _Row | None = None
    """The row that is owed in part."""

    @property
    def part(self) -> int:
        """How much of it is."""
        return self.owed - self.complete * UNIT


def apportion(requests: Sequence[Request], debts: Mapping[str, int], keep: int, first: int = 0) -> list[Dealt]:
    """Deal out the rows of consecutive steps.

    Args:
        requests: what each step in view asks for.
        debts: what every source met so far is owed before the first step.
        keep: how many of the steps to deal out; the others are looked at, because what they ask decides which rows come early.
        first: number of the first step, for messages.

    Raises:
        DataError: no source has a weight above zero.
    """
    shares = _exact_shares(requests, first)
    places, certain = _lay_out(requests, shares, debts)
    _match(places, [asked.rows - sum(sure.values()) for asked, sure in zip(requests, certain, strict=True)])
    dealt = []
    for step in range(min(keep, len(requests))):
        rows, counts, owed = requests[step].rows, certain[step], dict(debts)
        for row in places[step]:
            if row.at == step:
                counts[row.name] = counts.get(row.name, 0) + 1
        for name, share in shares[step].items():
            owed[name] = owed.get(name, 0) + share * rows - counts.get(name, 0) * UNIT
        _even_out(counts, owed, shares[step], rows)
        dealt.append(Dealt(counts, owed))
        debts = owed
    return dealt


def _exact_shares(requests: Sequence[Request], first: int) -> list[dict[str, int]]:
    """The weights of each step, by name, as whole parts of UNIT that sum to it, none zero; what rounding leaves goes to the largest."""
    exact: list[dict[str, int]] = []
    weights: Mapping[str, float] | None = None
    for step, asked in enumerate(requests, first):
        if weights is not None and (asked.shares is weights or asked.shares == weights):
            exact.append(exact[-1])
            continue
        weights = asked.shares
        total = sum(weights.values())
        if not total > 0:
            raise DataError(f"the weights of data.mix are {dict(weights)} at step {step}: at least one is above zero")
        shares = {name: int(weight / total * UNIT) for name, weight in sorted(weights.items()) if weight > 0}
        largest = max(shares, key=lambda name: shares[name])
        shares[largest] += UNIT - sum(shares.values())
        exact.append({name: share for name, share in shares.items() if share})
    return exact


def _lay_out(
    requests: Sequence[Request], shares: Sequence[Mapping[str, int]], debts: Mapping[str, int]
) -> tuple[list[list[_Row]], list[dict[str, int]]]:
    """For each step the rows that may come in it, and how many of each source must, because they are owed in no other."""
    lines = {name: _Line(owed) for name, owed in debts.items()}
    margin = UNIT // max(2, 2 * len(set(debts).union(*shares)) - 2)
    places: list[list[_Row]] = []
    certain: list[dict[str, int]] = []
    for step, asked in enumerate(requests):
        if step and shares[step] is not shares[step - 1]:
            _mark_leaves(lines, shares[step - 1].keys() - shares[step].keys(), step)
        here: list[_Row] = []
        sure: dict[str, int] = {}
        for name, share in shares[step].items():
            line = lines.get(name)
            if line is None:
                line = lines[name] = _Line(0)
            line.owed = owed = line.owed + share * asked.rows
            complete = max((owed + _ROUNDING) // UNIT, 0)
            row, ended = line.open, complete - line.complete
            if row is not None:
                here.append(row)
                row.steps.append(step)
            if ended:
                line.complete = complete
                if row is not None:
                    row.due, row.wanted, ended = step, min(row.wanted, step), ended - 1
                    row = line.open = None
                if ended:
                    sure[name] = ended
            if (part := owed - complete * UNIT) > _ROUNDING:
                if row is None:
                    row = line.open = _Row(name, [step])
                    here.append(row)
                if part >= margin and row.ripe == _NEVER:
                    row.ripe = step
                if part > UNIT - margin and row.wanted > step:
                    row.wanted = step
        places.append(here)
        certain.append(sure)
    return places, certain


def _mark_leaves(lines: Mapping[str, _Line], leaving: Iterable[str], step: int) -> None:
    """A row of which most is owed had better come before its source leaves."""
    for name in leaving:
        line = lines[name]
        if line.open is not None and 2 * line.part > UNIT:
            line.open.wanted = min(line.open.wanted, step - 1)


def _match(places: Sequence[Sequence[_Row]], room: Sequence[int]) -> None:
    """Give every row its step, so that each step gets as many as it has room for, and none comes late."""
    for step, here in enumerate(places):
        waiting = [row for row in here if row.at is None]
        if len(waiting) > 1:
            waiting.sort(key=lambda row: (row.due > step, row.ripe > step, row.wanted))  # used within the round
        free = max(room[step], 0)
        for row in waiting[:free]:
            row.at = step
        for _ in range(free - len(waiting)):
            _bring_forward(places, step)
        for row in waiting[free:]:
            if row.due == step:
                _make_room(places, row, step)


def _bring_forward(places: Sequence[Sequence[_Row]], step: int) -> None:
    """Fill a step that too few rows wait for: one comes here from an earlier step, another takes its place there, and so on."""
    came: dict[int, tuple[_Row, int] | None] = {step: None}
    queue = [step]
    for here in queue:
        for row in places[here]:
            if row.at is None:
                row.at = here
                while (moved := came[here]) is not None:
                    moved[0].at = here = moved[1]
                return
            if row.at not in came:
                came[row.at] = (row, here)
                queue.append(row.at)


def _make_room(places: Sequence[Sequence[_Row]], late: _Row, step: int) -> None:
    """Place a row that would come late: it takes the step of another, which takes that of a third, and so on to one that can wait."""
    came: dict[int, _Row | None] = {id(late): None}
    queue = [late]
    for row in queue:
        for other in (other for place in row.steps if place <= step for other in places[place] if other.at == place):
            if id(other) in came:
                continue
            came[id(other)] = row
            queue.append(other)
            if other.due > step:
                place, other.at = other.at, None
                while (taker := came[id(other)]) is not None:
                    place, taker.at = taker.at, place
                    other = taker
                return


def _even_out(counts: dict[str, int], owed: dict[str, int], shares: Mapping[str, int], rows: int) -> None:
    """Where what lay out of view left no matching: those owed most get what is missing, those owed least lose what is too much."""
    while missing := rows - sum(counts.values()):
        sign = 1 if missing > 0 else -1
        name = max((name for name in shares if sign > 0 or counts.get(name)), key=lambda name: sign * owed[name])
        counts[name] = counts.get(name, 0) + sign
        owed[name] -= sign * UNIT
        if not counts[name]:
            del counts[name]
