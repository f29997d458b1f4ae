"""What a machine counts of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, define, fields

from stackwise.machine.step import NO_TARGET, OVERFLOW, Outcome

MOST = 2.0**63


@define
class Counts:
    """Saved with the state, so that a resumed run goes on counting."""

    seconds: float = 0.0
    """Of training: steps and transitions, without evaluations."""
    cpu_seconds: float = 0.0
    """Of the processor, in the same steps and transitions: all threads of this process."""
    skipped: int = 0
    """Steps that changed nothing because something was not finite."""
    not_finite_in_a_row: int = 0
    without_targets: int = 0
    """Steps that changed nothing because they had no target."""
    without_targets_in_a_row: int = 0

    def add(self, outcome: Outcome, seconds: float, cpu_seconds: float) -> None:
        """Count one step."""
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        if not outcome.skipped:
            self.not_finite_in_a_row = self.without_targets_in_a_row = 0
        elif outcome.skipped == NO_TARGET:
            self.without_targets += 1
            self.without_targets_in_a_row += 1
        else:
            self.skipped += 1
            self.not_finite_in_a_row += outcome.skipped != OVERFLOW  # an overflow lowers the loss scale instead, as far as that can fall

    def as_map(self) -> dict[str, Any]:
        """For the saved state."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Counts:
        """Read what `as_map` wrote; a missing count begins at 0.

        Raises:
            ValueError: what is saved is no count.
        """
        counts = {field.name: saved[field.name] for field in fields(cls) if field.name in saved}
        for name, count in counts.items():
            if type(count) not in ((int, float) if name in ("seconds", "cpu_seconds") else (int,)) or not 0 <= count < MOST:
                raise ValueError(f"{name} is {count!r:.40}, which counts nothing")
        return cls(**counts)
