"""The frozen copy that a preference is measured against: nothing live reaches it, and a restored machine has the very same one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_walks import VOCAB, base, machine_of, stream
from whole_runs import digested

from stackwise import PhaseEntered, StepDone
from stackwise.machine.machine import TrainingMachine

PROBE = {"tokens": stream(40).view(2, 20)}
GROWN = {"model": {"rack": {"stacks": [{"base": 3}]}}}
COPIED = {**GROWN, "enter": {"growth": {"use": "transformer.stack"}}}
GATED = {**GROWN, "enter": {"growth": {"use": "transformer.gated", "gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}}}
BESIDE = {
    "model": {"weight_adapters": {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}, "freeze": ["embedding", "rack"]}
}
PREFERENCE = {"task": {"use": "transformer.preference"}, "data": {"rename": {"tokens": None}, "drop": None}}
TIMELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dropout, which the reference has none of": ({"model": {"rack": {"dropout": 0.3}}}, {}),
    "grows on the way": ({}, COPIED),
    "grows as it enters": (COPIED, {}),
    "a gate opens meanwhile": (GATED, {}),
    "a gate later": ({}, GATED),
    "adapters": (BESIDE, {}),
    "adapters that merge": (BESIDE, {"model": {"weight_adapters": None, "freeze": []}}),
    "adapters, then growth": (BESIDE, COPIED),
}


def timeline(name: str) -> dict[str, Any]:
    """Causal for 4 steps, then preferences; the boundaries at 4 and 8 cross as the case says."""
    entry, later = TIMELINES[name]
    drawn = torch.randint(VOCAB, (2, 60, 6), generator=torch.Generator().manual_seed(5))
    arrays = {"chosen": drawn[0], "rejected": drawn[1], "prefix": torch.full((60,), 2)}
    data = {
        "sources": {"a": {"use": "data.memory", "arrays": arrays}},
        "rename": {"tokens": "chosen"},
        "drop": ["rejected"],
        "batch_size": 4,
        "seq_len": 5,
    }
    phases = {"causal": {"until": "4 steps"}, "preference": {"until": "8 steps", **PREFERENCE, **entry}, "later": later}
    return base(data=data, phases=phases)


def saved(machine: TrainingMachine) -> dict[str, Any]:
    return deepcopy(machine.state())


def logits(model: Any) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        found: torch.Tensor = model.eval()(PROBE)["logits"]
    model.train(training)
    return found


@pytest.mark.parametrize("name", TIMELINES)
def test_the_reference_computes_what_the_model_did_at_entry_to_the_end(name: str) -> None:
    machine = machine_of(timeline(name))
    at_entry = torch.empty(0)
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase == "preference":
            at_entry = logits(machine.model.model)
        if isinstance(event, StepDone) and event.step >= 4:
            reference = machine.objective.reference
            assert reference is not None
            assert torch.equal(logits(reference), at_entry), event.step
            assert not {id(m) for m in machine.model.model.modules()} & {id(m) for m in reference.modules()}
    assert not torch.equal(logits(machine.model.model), at_entry)


@pytest.mark.parametrize("name", TIMELINES)
def test_from_any_step_inside_it_goes_on_to_the_same_losses(name: str) -> None:
    machine, states = machine_of(timeline(name)), {}
    trained: list[tuple[int, float, float]] = []
    for event in machine.train():
        if isinstance(event, StepDone):
            trained.append((event.step, event.loss, event.grad_norm))
            states[machine.step] = saved(machine)
    assert len({loss for step, loss, _ in trained if step >= 4}) > 4
    for step in (3, 4, 5, 7, 8, 9, 11):
        again = machine_of(timeline(name))
        again.restore(states[step])
        assert digested(again.state()) == digested(states[step])
        rest = [(e.step, e.loss, e.grad_norm) for e in again.train() if isinstance(e, StepDone)]
        assert rest == trained[step:], step
        assert digested({**again.state(), "seconds": 0, "cpu_seconds": 0}) == digested({**states[12], "seconds": 0, "cpu_seconds": 0})
