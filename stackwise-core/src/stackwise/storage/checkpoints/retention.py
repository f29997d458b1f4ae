"""Which checkpoints stay: a pure function of those that exist."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from attrs import Factory, field, frozen

from stackwise.errors import UserError

Direction = Literal["min", "max"]


@frozen(kw_only=True)
class Candidate:
    """A checkpoint as retention sees it."""

    step: int
    metrics: Mapping[str, float] = Factory(dict)
    pinned: bool = False


@frozen(kw_only=True)
class Retention:
    """The rules of pruning. A checkpoint stays if at least one rule keeps it.

    Args:
        last: how many of the newest stay; None: all of them.
        every: a checkpoint stays if its step is a multiple of this.
        best: a metric and its direction. The checkpoint with the lowest ("min") or highest ("max") value stays, of equal ones the later.
            One without the metric, or with nan, is never the best.

    Raises:
        UserError: a count is below 1, or a direction is neither "min" nor "max".
    """

    last: int | None = field(default=None)
    every: int | None = field(default=None)
    best: tuple[str, Direction] | None = field(default=None)

    def __attrs_post_init__(self) -> None:
        for name, count in (("keep_last", self.last), ("keep_every", self.every)):
            if count is not None and count < 1:
                raise UserError(f"{name} is {count}: at least 1 checkpoint is kept, and the distance is at least 1 step")
        if self.best is not None and self.best[1] not in ("min", "max"):
            raise UserError(f"best is {self.best!r}: the best checkpoint is that with the 'min' or the 'max' of a metric")

    def steps_to_remove(self, present: Collection[Candidate], protected: Iterable[int]) -> tuple[int, ...]:
        """The steps that no rule keeps, oldest first.

        Args:
            present: the checkpoints that exist, each step once.
            protected: steps that stay whatever the rules say.
        """
        if self.last is None:
            return ()
        steps = sorted(each.step for each in present)
        stay = {*protected, *steps[-self.last :], *(each.step for each in present if each.pinned)}
        if self.every is not None:
            stay |= {step for step in steps if step % self.every == 0}
        if (best := self._best(present)) is not None:
            stay.add(best)
        return tuple(step for step in steps if step not in stay)

    def _best(self, present: Iterable[Candidate]) -> int | None:
        if self.best is None:
            return None
        metric, direction = self.best
        sign = 1 if direction == "max" else -1
        scores = [(sign * each.metrics[metric], each.step) for each in present if not math.isnan(each.metrics.get(metric, math.nan))]
        return max(scores)[1] if scores else None
