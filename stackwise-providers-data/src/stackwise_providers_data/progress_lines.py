"""Lines on stderr about the progress of long work; short work stays silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_EVERY_S = 2.0


class ProgressLines:
    """At most one line every two seconds.

    Args:
        what: the work, as the line begins.
        total: amount of work at the end; 0: unknown.
        scale: amounts are divided by it before they are shown.
        clock: seconds.
    """

    def __init__(self, what: str, total: int, *, scale: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._scale, self._clock = what, total, scale, clock
        self._printed_at = clock()

    def reached(self, amount: int) -> None:
        """Print how far the work has come, if the last line is two seconds old."""
        now = self._clock()
        if now - self._printed_at < _EVERY_S:
            return
        self._printed_at = now
        goal = f" of {self._total // self._scale:,} ({amount / self._total:.0%})" if self._total else ""
        print(f"{self._what}: {amount // self._scale:,}{goal}", file=sys.stderr, flush=True)
