"""Which source each row comes from: the declared shares, rounded to whole rows that never stray by a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from stackwise.errors import DataError
from stackwise.planes.data.apportionment import Dealt, Request, apportion

BLOCK_STEPS, VIEW_STEPS = 512, 768
"""Steps that are dealt out at a time, and steps that are looked at for that."""


class Mixture:
    """Deals the rows of each step out to sources: |delivered - declared| < 1 for every source after every step, for changes in view.

    Steps are dealt out a block at a time; a block begins at the first step that has several sources to choose from. The choice is a pure
    function of the requests, of where the block began and of what was owed there. Shares are rounded to multiples of 2^-60 of a row,
    which moves their sums by less than 1e-9 in 1e8 rows.

    Args:
        request: what step k asks for, None past the end; a pure function.
        block: steps dealt out at a time.
        view: steps looked at for that.
    """

    def __init__(self, request: Callable[[int], Request | None], *, block: int = BLOCK_STEPS, view: int = VIEW_STEPS) -> None:
        self._request, self._block_steps, self._view_steps = request, block, view
        self._step = self._row = 0
        """The step that is dealt out, and its rows that are."""
        self._debts: dict[str, int] = {}
        """What is owed before `_step`."""
        self._start: tuple[int, dict[str, int]] | None = None
        """The first step of the block and what was owed before it; None between blocks."""
        self._block: list[Dealt] = []
        self._known: tuple[int, dict[str, int]] | None = None
        """The start that `_block` was dealt out for."""

    def take(self, step: int, rows: int) -> dict[str, int]:
        """Deal out the next rows of a step: source → rows, for those that get any.

        Micro-batches of a step come one after the other. A step out of order starts over there with the debts as they are.

        Raises:
            DataError: no source has a weight above zero.
            ValueError: a step past the end, or more rows than it asks for.
        """
        if self._start is None or step != self._step:
            self._start, self._step, self._row = None, step, 0
            asked = self._asked(step)
            only = _only_source(asked, step)
            if only is not None:
                return {only: rows}
            self._start = (step, self._debts)
        dealt = self._dealt()
        whole = sum(dealt.counts.values())
        if (left := whole - self._row) < rows:
            raise ValueError(f"step {step} has {left} rows left and {rows} are taken: the micro-batches of a step sum to its rows")
        counts = dealt.counts if rows == whole else dict(sorted(Counter(dealt.order[self._row : self._row + rows]).items()))
        self._row += rows
        if rows == left:
            self._step, self._row, self._debts = step + 1, 0, dealt.debts
            if self._step == self._start[0] + len(self._block):
                self._start = None
        return counts

    def state_dict(self) -> dict[str, Any]:
        """The place, what is owed there in 2^-60 of a row, and where the block began with what was owed there."""
        return {"step": self._step, "row": self._row, "debts": self._debts, "start": self._start and list(self._start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called; after what is delivered, should the requests have become others."""
        self._step, self._row, self._debts = state["step"], state["row"], dict(state["debts"])
        self._start = None
        if state["start"] is not None:
            first, debts = state["start"]
            self._start = (first, dict(debts))

    def _dealt(self) -> Dealt:
        """The current step, its block dealt out when it is not yet."""
        assert self._start is not None
        if self._start != self._known:
            self._deal_out(self._start)
            before = self._step - self._start[0]
            if before and (before >= len(self._block) or self._block[before - 1].debts != self._debts):
                self._start = (self._step, self._debts)  # the requests are others than those that the block began with
                self._deal_out(self._start)
        return self._block[self._step - self._start[0]]

    def _deal_out(self, start: tuple[int, dict[str, int]]) -> None:
        first, debts = start
        requests: list[Request] = []
        while len(requests) < self._view_steps and (asked := self._request(first + len(requests))) is not None:
            requests.append(asked)
        self._block, self._known = apportion(requests, debts, self._block_steps, first), start

    def _asked(self, step: int) -> Request:
        asked = self._request(step)
        if asked is None:
            raise ValueError(f"step {step} lies past the end of the schedule: no mixture is declared there")
        return asked


def _only_source(asked: Request, step: int) -> str | None:
    """The one source with a weight; None when there are several."""
    names = list(asked.shares) if len(asked.shares) == 1 else [name for name, weight in asked.shares.items() if weight > 0]
    if len(names) == 1 and asked.shares[names[0]] > 0:
        return names[0]
    if len(names) < 2:
        raise DataError(f"the weights of data.mix are {dict(asked.shares)} at step {step}: at least one is above zero")
    return None
