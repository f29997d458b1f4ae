"""The task in force, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackwise.contracts.specs import TaskSpec
from stackwise.curriculum.parts import Part
from stackwise.planes.objective import Objective
from stackwise.timeline.schedules import Curve


class Remembers:
    """A task that saves the value in force among what it holds."""

    rate = 0.0

    def get_spec(self) -> TaskSpec:
        return TaskSpec(batch={}, inputs={}, outputs={})

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.rate = values["rate"]

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rate = state["rate"]


def test_the_declared_value_is_in_force_after_a_restore_whatever_was_saved() -> None:
    objective = Objective(lambda part: Remembers())  # type: ignore[arg-type,return-value]  # nothing is prepared or lost here
    objective.enter(Part(kind="task", id="a.b", curves={"rate": Curve.constant(0.25)}))
    objective.apply_values(0.0)
    objective.load_state_dict({"rate": 0.75})
    objective.apply_values(0.0)
    assert objective.task.rate == 0.25  # type: ignore[attr-defined]  # of the task above
