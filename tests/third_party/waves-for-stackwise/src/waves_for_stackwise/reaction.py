"""A brake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackwise import BuildContext
from waves_for_stackwise.options import BrakeOptions, GoalOptions


class Brake:
    """Halves every learning rate, for good, once the training loss is above a bound."""

    def __init__(self, above: float) -> None:
        self._above, self.factor = above, 1.0

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Take in the training loss."""
        if self.factor < 1 or metrics.get("train.loss", 0.0) <= self._above:
            return None
        self.factor = 0.5
        return f"the loss was above {self._above:g}"

    def state_dict(self) -> dict[str, Any]:
        """The factor is all it remembers."""
        return {"factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the saved one was."""
        self.factor = state["factor"]


def build_brake(options: BrakeOptions, context: BuildContext) -> Brake:
    """The factory of reaction `waves.brake`."""
    return Brake(options.above)


class Goal:
    """Ends the run once the training loss is below a bound."""

    factor = 1.0

    def __init__(self, below: float) -> None:
        self._below = below
        self.stops: str | None = None

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Take in the training loss. The factor never changes, so there is nothing to say of it."""
        if metrics.get("train.loss", self._below) < self._below:
            self.stops = f"the loss is below {self._below:g}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Whether the run is to end."""
        return {"stops": self.stops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the saved one was."""
        self.stops = state["stops"]


def build_goal(options: GoalOptions, context: BuildContext) -> Goal:
    """The factory of reaction `waves.goal`."""
    return Goal(options.below)
