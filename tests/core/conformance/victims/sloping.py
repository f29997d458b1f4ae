"""Schedules, sound and broken. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from stackwise import ScheduleWindow, UserError


class Slope:
    """Falls from the peak to zero."""

    def __init__(self, options: Any) -> None:
        self.peak = options.peak

    def value(self, step: int, window: ScheduleWindow) -> float:
        return float(self.peak * (1 - step / window.steps))


class Unfounded(Slope):
    """Has nothing for the end of a long run."""

    def value(self, step: int, window: ScheduleWindow) -> float:
        return float("nan") if step == window.steps > 1000 else super().value(step, window)


class Counting(Slope):
    """Falls with every call, in a long run."""

    calls = 0

    def value(self, step: int, window: ScheduleWindow) -> float:
        self.calls += window.steps > 1000
        return super().value(step, window) / (1 + self.calls)


class Long(Slope):
    """Right: says which windows it fills."""

    def value(self, step: int, window: ScheduleWindow) -> float:
        if window.steps < 6:
            raise UserError(f"{window.steps} steps are too few: six at least")
        return super().value(step, window)


def build(options: Any, context: Any) -> Slope:
    return Slope(options)


def build_unfounded(options: Any, context: Any) -> Slope:
    return Unfounded(options)


def build_counting(options: Any, context: Any) -> Slope:
    return Counting(options)


def build_long(options: Any, context: Any) -> Slope:
    return Long(options)
