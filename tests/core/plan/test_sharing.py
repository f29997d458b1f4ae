"""Two plans share as many first steps as they declare alike, and never more."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_walks import base, memory, plan_of

from stackwise.plan.sharing import first_own_step, shared_steps

PHASES = {
    "first": {"until": "50%"},
    "second": {"optimizer": {"lr": {"linear": {"from": 0.01, "to": 0, "over": "phase"}}}},
}
GATED = {
    "until": "75%",
    "model": {"rack": {"stacks": [{"base": 3}]}},
    "enter": {"growth": {"use": "transformer.gated", "gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}},
}


def shared(left: dict[str, Any], right: dict[str, Any], **sections: Any) -> int:
    config = base(run={"name": "tiny", "seed": 3, "horizon": "12 steps", "device": "cpu"}, **sections)
    return shared_steps(plan_of(config, **left), plan_of(config, **right))


def lr(value: Any) -> dict[str, Any]:
    return {"optimizer": {"lr": value}}


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [
        ({}, {}, 12),
        (lr(0.01), lr(0.02), 0),
        (
            lr({"wsd": {"peak": 0.01, "decay": "50%"}}),
            lr({"wsd": {"peak": 0.01, "decay": "25%"}}),
            7,
        ),  # the values of step 6 are still the peak
        (lr({"wsd": {"peak": 0.01}}), lr(0.01), 12),  # equal values are equal, however they are written
        ({"run": {"seed": 4}}, {}, 0),
        ({"run": {"horizon": "24 steps"}}, {}, 0),
        ({"run": {"precision": "bf16"}}, {}, 0),
        ({"run": {"name": "other", "checkpoint": {"every": "50%"}, "stop": {"after": "1h"}}}, {}, 12),
        ({"phases": PHASES}, {"phases": PHASES | {"second": lr(0.005)}}, 6),
        ({"phases": PHASES}, {"phases": {"first": {"until": "25%"}, "second": PHASES["second"]}}, 3),
        ({"phases": PHASES}, {"phases": {"begin": {"until": "50%"}, "second": PHASES["second"]}}, 0),
        ({"phases": PHASES}, {"phases": {**PHASES, "second": {**PHASES["second"], "data": {"batch_size": 4}}}}, 6),
        ({"data": {"batch_size": {"piecewise": {"values": {"0%": 2, "50%": 4}}}}}, {"data": {"batch_size": 2}}, 6),
    ],
    ids=str,
)
def test_the_steps_that_are_declared_alike_are_counted(left: dict[str, Any], right: dict[str, Any], steps: int) -> None:
    assert shared(left, right) == shared(right, left) == steps


def test_what_follows_the_length_of_a_phase_ends_the_shared_part_where_the_phase_begins() -> None:
    """The gate rises over the phase: a phase that ends earlier has another gate from its second step on."""
    phases = {"first": {"until": "25%"}, "second": GATED, "third": {}}
    shorter = {**phases, "second": {**GATED, "until": "50%"}}
    assert shared({"phases": phases}, {"phases": shorter}) == 3


def test_a_run_that_is_evaluated_otherwise_shares_nothing() -> None:
    data = {"sources": {"a": memory(heldout=0.25)}, "batch_size": 2, "seq_len": 4}
    assert shared({"evaluate": {"held": {"batches": 1}}}, {"evaluate": {"held": {"batches": 2}}}, data=data) == 0


HELD = {
    "data": {"sources": {"a": memory(heldout=0.25)}, "batch_size": 2, "seq_len": 4},
    "evaluate": {"held": {"every": "10%", "batches": 1}},
}
STALLING = {"until": {"stalls": "held.loss", "patience": 1, "at_most": "50%"}}


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [
        ({}, {"run": {"stop": {"metric": "held.loss", "patience": 2}}}, 0),
        ({"run": {"non_finite": "rewind"}}, {"run": {"non_finite": "rewind", "checkpoint": {"every": "50%"}}}, 0),
        ({"phases": {"first": STALLING, "second": lr(0.01)}}, {"phases": {"first": STALLING, "second": lr(0.02)}}, 0),
        (
            {"phases": {"zeroth": {"until": "25%"}, "first": STALLING, "second": {}}},
            {"phases": {"zeroth": {"until": "25%"}, "first": {"until": "50%"}, "second": {}}},
            3,
        ),
    ],
    ids=str,
)
def test_what_a_run_may_decide_on_its_way_ends_the_shared_part(left: dict[str, Any], right: dict[str, Any], steps: int) -> None:
    assert shared(left, right, **HELD) == shared(right, left, **HELD) == steps


def test_a_longer_row_of_a_later_phase_is_in_the_order_of_the_data_from_the_first_step_on() -> None:
    """A loader cuts its pages by the longest row of the run."""
    longer = {"phases": {**PHASES, "second": {**PHASES["second"], "data": {"seq_len": 8}}}}
    assert shared({"phases": PHASES}, longer) == shared(longer, {"phases": PHASES}) == 0


def test_a_run_begins_where_the_state_stands_in_a_phase_of_its_own() -> None:
    """The state before step 3 of the shorter one stands in its second phase, which the longer one has not entered then."""
    config = base()
    short, long = (plan_of(config, phases={"first": {"until": until}, "second": lr(0.02)}) for until in ("25%", "50%"))
    assert (first_own_step(long, short), first_own_step(short, long)) == (3, 2)
    one, two = (plan_of(config, phases={"first": {"until": "50%"}, name: lr(0.02)}) for name in ("second", "last"))
    assert first_own_step(one, two) == first_own_step(two, one) == 5
    whole, split = plan_of(config), plan_of(config, phases={"train": {"until": "75%"}, "last": {}})
    assert (first_own_step(whole, split), first_own_step(split, whole)) == (9, 8)
