"""The learning rate. Nothing here imports torch: its values are part of the plan."""

from __future__ import annotations

from attrs import frozen

from names_for_stackwise.options import RateOptions
from stackwise import BuildContext, ScheduleWindow


@frozen
class Rate:
    """Rises in a line, then falls with the root of the step."""

    options: RateOptions

    def value(self, step: int, window: ScheduleWindow) -> float:
        """peak · min((step + 1) / warmup, √(warmup / (step + 1)))."""
        warmup = self.options.warmup
        return float(self.options.peak * min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5))


def build_rate(options: RateOptions, context: BuildContext) -> Rate:
    """The factory of schedule `names.rise-and-root`."""
    return Rate(options)
