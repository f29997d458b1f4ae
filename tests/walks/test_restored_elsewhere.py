"""A state under another declaration: what is to come may differ, what the state belongs to may not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from tiny_walks import base, machine_of, memory

from stackwise import DataError, StepDone, UserError
from stackwise.machine.machine import TrainingMachine

STEP = 5


def config(rack: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    declared = base(**deepcopy({name: value for name, value in sections.items() if name != "data"}))
    declared |= {"data": sections["data"]} if "data" in sections else {}
    declared["model"]["rack"] |= rack or {}
    return declared


def run(**keys: Any) -> dict[str, Any]:
    return {"run": {"name": "tiny", "seed": 3, "horizon": "12 steps", "device": "cpu", **keys}}


def losses(machine: TrainingMachine) -> list[float]:
    return [event.loss for event in machine.train() if isinstance(event, StepDone)]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    machine = machine_of(config())
    for event in machine.train():
        if isinstance(event, StepDone) and event.step + 1 == STEP:
            return deepcopy(machine.state())
    raise AssertionError


GROWN = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}


@pytest.mark.parametrize(
    ("other", "fault", "rule"),
    [
        (config({"stacks": [{"base": 3}]}), UserError, "missing in the weights: rack.stacks.base.2"),
        (config({"width": 16}), UserError, "of another shape: embedding.weight is [16, 8]"),
        (config(phases={"one": {"until": "3 steps"}, "two": GROWN}), UserError, "missing in the weights: rack.stacks.base.2"),
        (config(optimizer={"use": "optim.sgd", "lr": 0.01}), UserError, "is of the optimizer AdamW, and SGD is declared"),
        (config(optimizer={"use": "optim.muon", "lr": 0.01}), UserError, "is of the optimizer AdamW, and Muon is declared"),
        (config(**run(horizon="4 steps")), UserError, "before step 5, and this run has 4 steps"),
        (config(**run(seed=4)), UserError, "is of seed 3"),
        (
            config(data={"sources": {"b": memory()}, "batch_size": 2, "seq_len": 4}),
            DataError,
            "are of ['a'], the declared sources are ['b']",
        ),
    ],
)
def test_what_the_state_belongs_to_may_not_differ(state: dict[str, Any], other: dict[str, Any], fault: type[Exception], rule: str) -> None:
    machine = machine_of(other)
    with pytest.raises(fault) as caught:
        machine.restore(deepcopy(state))
    assert rule in str(caught.value)


def test_what_is_to_come_may(state: dict[str, Any]) -> None:
    whole = losses(machine_of(config()))
    for other in (config(), config(phases={"one": {"until": "8 steps"}, "two": GROWN})):
        machine = machine_of(other)
        machine.restore(deepcopy(state))
        own = losses(machine)
        assert own[:3] == whole[STEP:8] and len(own) == 12 - STEP
        assert (own == whole[STEP:]) == ("phases" not in other)
