"""A context is made longer at a boundary: other rotary wavelengths, the same weights and moments, and the plan says so."""

from __future__ import annotations

from tiny_walks import base, plan_of

import stackwise
from stackwise import PhaseEntered
from stackwise.assembly.pricing import price
from stackwise.reports.plan_text import plan_as_text


def test_weights_and_moments_stay_and_the_plan_names_the_change() -> None:
    scaling = {"kind": "yarn", "factor": 4.0, "original": 4}
    longer = {"model": {"rack": {"rotary": {"scaling": scaling}}}, "data": {"seq_len": 16}}
    plan = plan_of(base(phases={"short": {"until": "6 steps"}, "long": longer}))
    machine = stackwise.assemble(plan)
    events = [event for event in machine.train() if isinstance(event, PhaseEntered)]
    count = len(dict(machine.model.model.named_parameters()))
    assert (events[1].adopted, events[1].copied, events[1].fresh, events[1].dropped) == (count, 0, 0, 0)
    assert (events[1].moments_kept, events[1].moments_copied, events[1].moments_dropped) == (count, 0, 0)
    text = plan_as_text(plan, price(plan))
    assert "model.rack.rotary.scaling.kind: – → yarn" in text and "the function is NOT preserved" in text
