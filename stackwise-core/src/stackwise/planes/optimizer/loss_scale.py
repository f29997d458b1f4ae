"""The factor that keeps the gradients of a float16 model inside the range of float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST, LARGEST = 2.0**12, 2.0**24
PATIENCE_STEPS = 1000
"""Steps without an overflow after which the factor doubles."""


class LossScale:
    """The loss is multiplied before the backward pass, and gradients are divided in float32 (arXiv 1710.03740, section 3.2).

    float16 ends at 65504 above and 6·10⁻⁸ below, and gradients of a mean over thousands of targets are smaller than that. The factor is
    a power of two, so it rounds nothing. It is halved when a gradient overflows, and that step changes nothing; it doubles when there
    was no overflow for a long time.
    """

    def __init__(self) -> None:
        self.factor = FIRST
        self._steps = 0
        """Without an overflow since the factor last changed."""

    def watch(self, *, finite: bool) -> bool:
        """Take in whether the gradients of a step were finite.

        Returns:
            Whether a smaller factor may help: an overflow, and the factor can fall.
        """
        if not finite:
            can_fall = self.factor > 1.0
            self.factor, self._steps = max(self.factor / 2, 1.0), 0
            return can_fall
        self._steps += 1
        if self._steps >= PATIENCE_STEPS:
            self.factor, self._steps = min(self.factor * 2, LARGEST), 0
        return False

    def state_dict(self) -> dict[str, Any]:
        """Everything that later factors depend on."""
        return {"factor": self.factor, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.factor, self._steps = state["factor"], state["steps"]
