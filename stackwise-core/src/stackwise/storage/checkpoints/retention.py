"""Which checkpoints stay: a pure function of what there is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from attrs import Factory, field, frozen

from stackwise.errors import UserError

Direction = Literal["min", "max"]


@frozen(kw_only=True)
class Kept:
    """A checkpoint as retention sees it."""

    step: int
    metrics: Mapping[str, float] = Factory(dict)
    pinned: bool = False


@frozen(kw_only=True)
class Retention:
    """What pruning leaves; each rule keeps what it names, and none takes away what another keeps.

    Args:
        last: the newest that stay; None: all of them.
        every: a checkpoint whose step is a multiple of it stays.
        best: the one with the lowest ("min") or highest ("max") value of a metric stays, the later one of equals; one without
            the metric, or with nan, is not the best.

    Raises:
        UserError: a count below 1, or a direction that is none.
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

    def steps_to_remove(self, present: Collection[Kept], protected: Iterable[int]) -> tuple[int, ...]:
        """The steps that no rule keeps, oldest first.

        Args:
            present: what there is, each step once.
            protected: steps that stay whatever the rules say.
        """
        if self.last is None:
            return ()
        steps = sorted(kept.step for kept in present)
        stay = {*protected, *steps[-self.last :], *(kept.step for kept in present if kept.pinned)}
        if self.every is not None:
            stay |= {step for step in steps if step % self.every == 0}
        if (best := self._best(present)) is not None:
            stay.add(best)
        return tuple(step for step in steps if step not in stay)

    def _best(self, present: Iterable[Kept]) -> int | None:
        if self.best is None:
            return None
        metric, direction = self.best
        sign = 1 if direction == "max" else -1
        scores = [(sign * kept.metrics[metric], kept.step) for kept in present if not math.isnan(kept.metrics.get(metric, math.nan))]
        return max(scores)[1] if scores else None
