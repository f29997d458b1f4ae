"""The times of a plan's phases as measured on this machine, as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from stackwise.assembly.timing import PhaseTime
from stackwise.reports.terminal import clock, table


def time_as_json(times: Sequence[PhaseTime]) -> list[dict[str, Any]]:
    """Seconds of each phase; the time of a step is null where a phase has only one step, its first."""
    return [
        {
            "phase": time.name,
            "entering_seconds": time.entering,
            "step_seconds": None if isnan(time.step) else time.step,
            "evaluation_seconds": time.evaluations,
            "seconds": time.seconds,
        }
        for time in times
    ]


def time_lines(times: Sequence[PhaseTime], columns: int | None = None) -> list[str]:
    """A table with a row for each phase, and the sum."""
    rows = [["time here", "a step", "boundary, first step", "evaluations", "in all"]]
    for time in times:
        step = "–" if isnan(time.step) else f"{1000 * time.step:,.1f} ms"
        rows.append([time.name, step, f"{time.entering:,.1f} s", clock(time.evaluations), clock(time.seconds)])
    total = sum(time.seconds for time in times)
    return ["", *table(rows, columns), f"about {clock(total)} in all, checkpoints not counted; measured on a few steps of each phase"]
