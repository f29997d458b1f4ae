"""The outlook of a mixture: shares of the steps to come, and from them the rows at which each source may and must have its next row."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from operator import attrgetter

from attrs import define, field, frozen

from stackwise.errors import DataError
from stackwise.planes.settlement import Absence, settle

UNIT = 1 << 60
"""One row. Shares and debts are whole multiples of 1/UNIT, so that sums of them are exact."""

_NEVER = 1 << 200
_MOST_OWED = 1 << 100
_WIDE_MARGIN = UNIT >> 20  # above what rounding shares to UNIT can sum up to
_TRIM_STEPS = 1024


@frozen
class Request:
    """What one step asks for: its rows, and the weight of every source that takes part; only ratios matter."""

    rows: int
    shares: Mapping[str, float]


@define(eq=False)
class Line:
    """One source along the steps in view, and its next row. Sums are in UNIT, rows are counted from the opening of the view, from 1."""

    name: str
    sums: list[int]
    """`sums[j]`: what it was owed at the opening and its shares of the steps before step j."""
    shares: list[int] = field(factory=list)
    """Its share of a row of step j."""
    leaves: list[int] = field(factory=list)
    """Steps at which its share falls to zero."""
    returns: list[int] = field(factory=list)
    """Steps at which it rises from zero."""
    given: int = 0
    """UNIT × its rows since the opening."""
    release: int = _NEVER
    """The first row that may be its next."""
    deadline: int = _NEVER
    """Twice the last row that may; odd, where another source that is due at the same row goes first."""


class Outlook:
    """Chooses the source of each row, knowing the shares of the current step and of as many to come as it may look ahead.

    Args:
        request: what step k asks for, None past the end.
        debts: what every source met so far is owed before the first step, in UNIT.
        step: the first step.
        look_ahead: steps, the current one included.
        wide: whether a source has left before.
    """

    def __init__(self, request: Callable[[int], Request | None], debts: Mapping[str, int], step: int, look_ahead: int, wide: bool) -> None:
        self._request, self._look_ahead = request, look_ahead
        self._first, self._now = step, 0
        """The step of index 0, and the index of the current step."""
        self._rows: list[int] = []
        self._starts = [0]
        self._lines = {name: Line(name, [debt]) for name, debt in sorted(debts.items())}
        self._met = set(debts)
        self._ended = False
        self._weights: Mapping[str, float] = {}
        self._shares: dict[str, int] = {}
        self._before_leaving: frozenset[tuple[str, int]] = frozenset()
        self._slack = 0
        self.wide = wide
        """Whether a source has left, or will in view; from then on the margin is next to nothing, which leaves every choice there is."""
        self._present: list[Line] = []
        self._leaves: deque[int] = deque()
        """Every step in view at which a source leaves."""
        self._reach(0)
        self._enter_step()

    @property
    def rows(self) -> int:
        """Rows of the current step."""
        return self._rows[self._now]

    def debts(self, row: int = 0) -> dict[str, int]:
        """What every source met so far is owed, counting the shares of the current step up to `row`."""
        now = self._now
        return {
            line.name: line.sums[now] + (row and row * line.shares[now]) - line.given
            for line in self._lines.values()
            if line.name in self._met
        }

    def deal(self, row: int, rows: int) -> dict[str, int]:
        """Give away rows row..row+rows-1 of the current step."""
        present, first = self._present, self._starts[self._now] + row + 1
        counts = {line.name: 0 for line in present}
        for at in range(first, first + rows):
            chosen: Line | None = None
            earliest = _NEVER
            for line in present:
                if line.release <= at and line.deadline < earliest:
                    chosen, earliest = line, line.deadline
            if chosen is None:
                chosen = max(present, key=lambda line: self._owed(line, at))
            chosen.given += UNIT
            counts[chosen.name] += 1
            self._plan(chosen)
        return {name: count for name, count in counts.items() if count}

    def move_on(self) -> bool:
        """Enter the next step; False when it needs no dealing out: the end, or one source only."""
        self._now += 1
        if not self._reach(self._now) or sum(line.shares[self._now] > 0 for line in self._lines.values()) < 2:
            return False
        if self._now >= _TRIM_STEPS:
            self._forget()
        self._enter_step()
        return True

    def _enter_step(self) -> None:
        now = self._now
        self._reach(now + self._look_ahead - 1)
        lines = self._lines.values()
        self._present = sorted((line for line in lines if line.shares[now] > 0), key=attrgetter("name"))
        self._met.update(line.name for line in self._present)
        self.wide = self.wide or bool(self._leaves)
        slack = _WIDE_MARGIN if self.wide else UNIT // max(2, 2 * len(self._met) - 2)
        anew, self._slack = slack != self._slack, slack
        while self._leaves and self._leaves[0] <= self._first + now:
            self._leaves.popleft()
        if self._leaves:
            before = self._before_leaving
            self._settle()
            anew = anew or before != self._before_leaving
        for line in self._present:
            if anew or line.deadline >= _NEVER >> 1:
                self._plan(line)
        for line in lines:
            if not line.shares[now]:
                line.release = line.deadline = _NEVER

    def _plan(self, line: Line) -> None:
        """Find out from when until when the next row of a source can be given."""
        base, slack = line.given, self._slack
        if line.leaves and line.leaves[-1] > self._first + self._now:
            leave = line.leaves[bisect_right(line.leaves, self._first + self._now)]
            whole = self._row_reaching(line, base + UNIT)
            if whole is None or whole > self._starts[leave - self._first]:
                self._plan_last(line, leave)
                return
        now, sums = self._now, line.sums
        start, low, high, share = self._starts[now], sums[now], sums[now + 1], line.shares[now]
        # most rows are released and due within their step, and asking that here is a third of the cost of dealing out
        if low < (value := base + slack) <= high:
            line.release = start + (value - low - 1) // share + 1
        else:
            released = start if value <= low else self._row_reaching(line, value)
            line.release = _NEVER if released is None else released
        if low < (value := base + UNIT - slack + 1) <= high:
            line.deadline = 2 * (start + (value - low - 1) // share + 1)
            return
        due = self._row_reaching(line, value)
        line.deadline = _NEVER - 1 - (line.sums[self._now] - base + _MOST_OWED) if due is None else 2 * due

    def _plan_last(self, line: Line, leave: int) -> None:
        """The row that is begun but not due when the source leaves: before that, or not until it is back."""
        index = leave - self._first
        owed = line.sums[index] - line.given
        line.release = line.deadline = _NEVER
        if owed > 0 and (line.name, leave) in self._before_leaving:
            released = self._row_reaching(line, line.given + min(owed, self._slack))
            due = self._row_reaching(line, line.given + UNIT - self._slack + 1)
            line.release, line.deadline = released or 0, min(2 * self._starts[index] + 1, 2 * (due or _NEVER))

    def _settle(self) -> None:
        """Decide on the rows that sources in view leave begun."""
        now, absences = self._first + self._now, []
        for line in self._lines.values():
            if not line.shares[self._now] and line.name in self._met:
                back = next((step for step in line.returns if step > now), None)
                absences.append(Absence(line.name, now, back, line.sums[self._now] - line.given, False))
            for leave in line.leaves[bisect_right(line.leaves, now) :]:
                returns = bisect_right(line.returns, leave)
                back = line.returns[returns] if returns < len(line.returns) else None
                total = line.sums[leave - self._first]
                begun = total % UNIT
                given = line.given > total - begun
                absences.append(Absence(line.name, leave, back, begun - UNIT * given, begun > 0 and not given))
        self._before_leaving = settle(tuple(a for a in absences if a.owed), UNIT)

    def _row_reaching(self, line: Line, value: int) -> int | None:
        """The first row at which the summed shares of a source are at least `value`; None: not in view."""
        sums, index = line.sums, self._now
        if sums[index] >= value:
            return self._starts[index]
        if sums[-1] < value:
            return None
        if sums[index + 1] < value:
            index = bisect_left(sums, value, index) - 1
        return self._starts[index] + (value - sums[index] - 1) // line.shares[index] + 1

    def _owed(self, line: Line, at: int) -> int:
        return line.sums[self._now] + (at - self._starts[self._now]) * line.shares[self._now] - line.given

    def _reach(self, index: int) -> bool:
        """Whether step `index` is in view, looking further where that is allowed."""
        while index >= len(self._rows):
            if self._ended or len(self._rows) >= self._now + self._look_ahead or not self._extend():
                return False
        return True

    def _extend(self) -> bool:
        step = self._first + len(self._rows)
        asked = self._request(step)
        if asked is None:
            self._ended = True
            return False
        if asked.shares != self._weights:
            self._shares, self._weights = _exact_shares(asked.shares, step), dict(asked.shares)
            for name in sorted(set(self._shares) - set(self._lines)):
                self._lines[name] = Line(name, [0] * (len(self._rows) + 1), [0] * len(self._rows))
        for name, line in self._lines.items():
            share = self._shares.get(name, 0)
            if not share and line.shares and line.shares[-1]:
                line.leaves.append(step)
                self._leaves.append(step)
            if share and line.shares and not line.shares[-1]:
                line.returns.append(step)
            line.shares.append(share)
            line.sums.append(line.sums[-1] + share * asked.rows)
        self._rows.append(asked.rows)
        self._starts.append(self._starts[-1] + asked.rows)
        return True

    def _forget(self) -> None:
        """Drop the steps that lie behind."""
        behind = self._now
        for line in self._lines.values():
            del line.sums[:behind], line.shares[:behind]
            line.leaves = [step for step in line.leaves if step > self._first + behind]
            line.returns = [step for step in line.returns if step > self._first + behind]
        del self._rows[:behind], self._starts[:behind]
        self._first, self._now = self._first + behind, 0


def _exact_shares(weights: Mapping[str, float], step: int) -> dict[str, int]:
    """Weights as whole parts of UNIT that sum to it, none below zero; what rounding leaves over goes to the largest."""
    total = sum(weights.values())
    if not total > 0:
        raise DataError(f"the weights of data.mix are {dict(weights)} at step {step}: at least one is above zero")
    shares = {name: int(weight / total * UNIT) for name, weight in weights.items() if weight > 0}
    largest = max(shares, key=lambda name: shares[name])
    shares[largest] += UNIT - sum(shares.values())
    return shares
