"""Schedules of providers: a finite number at every step of any window, and always the same one."""

from __future__ import annotations

from math import isfinite

from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import NotApplicable, Subject, must
from stackwise.errors import UserError
from stackwise.timeline.provided import ScheduleWindow

WINDOWS = (1, 2, 7, 100, 3000)
"""Steps of the windows that are tried; a schedule refuses one that it cannot fill with a UserError."""


def check_every_step_has_a_number(subject: Subject) -> None:
    """At every step of a window, and at its end, the value is a finite number, with and without a value at entry.

    Usual cause: a division by the number of steps less one; a logarithm or a root at step 0; None after the last row of a table.
    """
    seen = 0
    for steps, entry in [(steps, entry) for steps in WINDOWS for entry in (None, 0.5)]:
        schedule, window = artifact_of(subject), ScheduleWindow.of_steps(steps, entry)
        try:
            for step in range(steps + 1):
                value = schedule.value(step, window)
                number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
                must(number, f"at step {step} of {steps} the value is {value!r}: a finite number is expected")
            seen += 1
        except UserError:
            continue  # a window that its options do not fit into
    if not seen:
        raise NotApplicable("its example fits into none of the windows that are tried")


def check_schedule_is_pure(subject: Subject) -> None:
    """The value of a step depends on the step, the window and the options alone: in any order, from any other that is built alike.

    Usual cause: a counter that every call moves on; random numbers; the clock.
    """
    first, second = artifact_of(subject), artifact_of(subject)
    for steps in WINDOWS:
        window = ScheduleWindow.of_steps(steps, 0.5)
        try:
            forward = [first.value(step, window) for step in range(steps + 1)]
            backward = [second.value(step, window) for step in reversed(range(steps + 1))][::-1]
        except UserError:
            continue  # a window that its options do not fit into
        different = [
            step for step, pair in enumerate(zip(forward, backward, strict=True)) if repr(pair[0]) != repr(pair[1])
        ]  # two values that are nan count as equal
        at = different[0] if different else 0
        must(not different, f"at step {at} of {steps} it gives {forward[at]}, and {backward[at]} when it is asked backwards")
