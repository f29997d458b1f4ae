"""The task in force, exchanged at boundaries like any declared part."""

from __future__ import annotations

from collections.abc import Callable

from stackwise.contracts import Scheduled, Task
from stackwise.errors import ProviderError
from stackwise.phases import Part


class Objective:
    """Owns the task.

    Args:
        build: makes the task of a declared part; None when it was given finished.
    """

    def __init__(self, build: Callable[[Part], Task] | None = None) -> None:
        self._build = build
        self._part: Part | None = None
        self._values: dict[str, float] = {}
        self.task: Task

    @classmethod
    def of(cls, task: Task) -> Objective:
        """An objective around a finished task."""
        objective = cls()
        objective.task = task
        return objective

    @property
    def lookahead(self) -> int:
        """Entries each row needs beyond seq_len."""
        return self.task.get_spec().lookahead

    def enter(self, part: Part) -> None:
        """Cross into a declared task; a new one is built only when its structure changes."""
        if self._build is not None and (self._part is None or self._part.structure != part.structure):
            self.task = self._build(part)
            if part.curves and not isinstance(self.task, Scheduled):
                raise ProviderError(
                    f"{part.id} declares options that follow time ({', '.join(part.curves)}) but the task has no apply_values"
                )
            self._values = {}
        self._part = part

    def apply_values(self, t: float) -> None:
        """Hand the task the values in force at t, when they changed."""
        if self._part is not None and self._part.curves:
            values = self._part.values_at(t)
            if values != self._values and isinstance(self.task, Scheduled):
                self.task.apply_values(values)
                self._values = values
