"""Which source each row comes from: the declared shares, rounded to whole rows that never stray by a row.

Every row adds each source's share to what that source is owed, and goes to one of them. Giving it to the largest debt is not enough:
with three sources debts grow past one row. R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980) 323-330, chooses
among the sources that are owed at least 1/(2n-2) the one that would be the first to be owed more than 1 - 1/(2n-2) if it were left out,
which keeps all of them within 1 - 1/(2n-2) and needs to know the shares to come.

A chairman may be chosen while his weight is zero; a source that has left the mixture cannot be read. So what a source is owed when it
leaves is settled beforehand (`settlement.py`), and from when a leave comes into view the margin 1/(2n-2) shrinks to 2^-20 of a row.
While sources stay, Tijdeman's theorem is the proof. Where they leave and come back, the settlement does not see which rows of a step
they can still get: of random schedules whose sources change with every step, one in about a thousand strays by more than a row (at most
1.39 was seen). Schedules whose sets last for a few steps were never seen to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stackwise.errors import DataError
from stackwise.planes.outlook import Outlook
from stackwise.planes.outlook import Request as Request

LOOK_AHEAD_STEPS = 4096


class Mixture:
    """Deals the rows of each step out to sources: |delivered - declared| < 1 for every source after every row, but for what is said above.

    The choice is a pure function of the requests and of the state. Shares are rounded to multiples of 2^-60 of a row, which moves
    their sums by less than 1e-9 in 1e8 rows.

    Args:
        request: what step k asks for, None past the end; a pure function.
        look_ahead: steps; a row that is due further away than that counts as never due.
    """

    def __init__(self, request: Callable[[int], Request | None], *, look_ahead: int = LOOK_AHEAD_STEPS) -> None:
        self._request, self._look_ahead = request, look_ahead
        self._delivered: dict[str, int] = {}
        self._debts: dict[str, int] = {}
        """While no view is open: what was owed before step `_step`, less what its first `_row` rows gave."""
        self._step = self._row = 0
        self._wide = False
        self._view: Outlook | None = None

    def take(self, step: int, rows: int) -> dict[str, int]:
        """Deal out the next rows of a step: source → rows, for those that get any.

        Micro-batches of a step come one after the other. A step out of order starts over there with the debts as they are.

        Raises:
            DataError: no source has a weight above zero.
            ValueError: a step past the end, or more rows than it asks for.
        """
        view = self._view
        if view is None or step != self._step:
            self._close()
            only = _only_source(self._asked(step), step)
            if only is not None:
                self._delivered[only] = self._delivered.get(only, 0) + rows
                return {only: rows}
            view = self._open(step)
        if (left := view.rows - self._row) < rows:
            raise ValueError(f"step {step} has {left} rows left and {rows} are taken: the micro-batches of a step sum to its rows")
        counts = view.deal(self._row, rows)
        for name, count in counts.items():
            self._delivered[name] = self._delivered.get(name, 0) + count
        self._row += rows
        if rows == left:
            self._step, self._row = step + 1, 0
            if not view.move_on():
                self._close()
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Rows delivered by source, what is owed in 2^-60 of a row, the place inside a step, and which margin holds."""
        debts, wide = (self._debts, self._wide) if self._view is None else (self._view.debts(), self._view.wide)
        return {"step": self._step, "row": self._row, "delivered": dict(self._delivered), "debt": dict(debts), "wide": wide}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._view = None
        self._step, self._row = state["step"], state["row"]
        self._delivered, self._debts, self._wide = dict(state["delivered"]), dict(state["debt"]), state["wide"]

    def _asked(self, step: int) -> Request:
        asked = self._request(step)
        if asked is None:
            raise ValueError(f"step {step} lies past the end of the schedule: no mixture is declared there")
        return asked

    def _open(self, step: int) -> Outlook:
        if step != self._step:
            self._step, self._row = step, 0
        view = self._view = Outlook(self._request, self._debts, step, self._look_ahead, self._wide)
        return view

    def _close(self) -> None:
        """Leave the view; what is owed stays, the rows already dealt out of a step that is broken off included."""
        if self._view is not None:
            self._debts, self._wide = self._view.debts(self._row), self._view.wide
            self._view, self._row = None, 0


def _only_source(asked: Request, step: int) -> str | None:
    """The one source with a weight; None when there are several."""
    names = list(asked.shares) if len(asked.shares) == 1 else [name for name, weight in asked.shares.items() if weight > 0]
    if len(names) == 1 and asked.shares[names[0]] > 0:
        return names[0]
    if len(names) < 2:
        raise DataError(f"the weights of data.mix are {dict(asked.shares)} at step {step}: at least one is above zero")
    return None
