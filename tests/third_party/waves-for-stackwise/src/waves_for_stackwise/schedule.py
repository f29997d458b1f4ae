"""A schedule. Nothing here imports torch: its values are part of the plan."""

from __future__ import annotations

from math import pi, sin

from attrs import frozen

from stackwise import BuildContext, ScheduleWindow
from waves_for_stackwise.options import SwellOptions


@frozen
class Swell:
    """A level that swells and ebbs in whole waves over its window."""

    options: SwellOptions

    def value(self, step: int, window: ScheduleWindow) -> float:
        """level · (1 + depth · sin(2π · waves · share of the window that is over))."""
        share = step / window.steps if window.steps else 0.0
        return self.options.level * (1 + self.options.depth * sin(2 * pi * self.options.waves * share))


def build_swell(options: SwellOptions, context: BuildContext) -> Swell:
    """The factory of schedule `waves.swell`."""
    return Swell(options)
