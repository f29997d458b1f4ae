"""Where an optimizer trains at other points than those to judge, what leaves it leaves with the weights that were judged.

Schedule-free trains at y = (1 - β₁)z + β₁x and is judged at x (arXiv 2405.15682, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import attrs
import pytest
import schedulefree
import torch
from tiny_walks import VOCAB, base, machine_of, memory, moments, weights
from torch import nn

import stackwise
from stackwise import Built, Evaluated, Phase, PhaseEntered, StepDone, TaskSpec, TensorSpec, UserError
from stackwise.contracts.events import Event
from stackwise.machine.machine import TrainingMachine
from stackwise.planes.optimizer.plane import OptimizerPlane

FREE = {"use": "optim.schedule-free", "lr": 0.05}
HELD = {"heldout": {"every": "100%", "batches": 2}}
LORA = {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}


def walk(*later: dict[str, Any], model: dict[str, Any] | None = None, **sections: Any) -> TrainingMachine:
    """Six steps of schedule-free, then as given, six steps each."""
    ends = [f"{6 * (i + 1)} steps" for i in range(len(later) + 1)]
    names = ["free", "then", "last"]
    phases = {name: {"until": end, **delta} for name, end, delta in zip(names, ends, ({}, *later), strict=False)}
    run = {"name": "kept", "seed": 3, "horizon": ends[-1], "device": "cpu"}
    parts = {**base()["model"], **(model or {})}
    data = {**base()["data"], "sources": {"a": memory(heldout=0.2)}}
    return machine_of(base(**{"run": run, "optimizer": FREE, "evaluate": HELD, "phases": phases, "model": parts, "data": data, **sections}))


def average(y: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """x from y and z."""
    beta1 = float(state["beta1"])
    return (y - (1 - beta1) * state["z"]) / beta1


def losses_around(events: list[Event], step: int) -> tuple[float, float]:
    """Held-out loss before and after the boundary at a step."""
    found = {event.at: event.metrics["loss"] for event in events if isinstance(event, Evaluated) and event.step == step}
    return found["exit"], found["entry"]


def test_another_optimizer_goes_on_from_the_average() -> None:
    machine, events = walk({"optimizer": {"use": "optim.adamw", "lr": 0.01}}), []
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone) and event.step == 5:
            y, state = weights(machine), moments(machine)
        if isinstance(event, PhaseEntered) and event.phase_index:
            for name, value in weights(machine).items():
                torch.testing.assert_close(value, average(y[name], state[name]), rtol=0, atol=1e-6)
                assert float((value - y[name]).abs().max()) > 1e-4
    before, after = losses_around(events, 6)
    assert before == after


def test_what_is_frozen_stays_at_the_average_and_what_trains_stays_where_it_trained() -> None:
    machine, events = walk({"model": {"freeze": ["rack"]}}, {"model": {"freeze": []}}), []
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone) and event.step == 5:
            y, state = weights(machine), moments(machine)
        if isinstance(event, PhaseEntered) and event.phase_index == 1:
            rack, now, kept = [name for name in y if name.startswith("rack.")], weights(machine), moments(machine)
            for name in rack:
                torch.testing.assert_close(now[name], average(y[name], state[name]), rtol=0, atol=1e-6)
            for name in y.keys() - set(rack):
                assert torch.equal(now[name], y[name]) and torch.equal(kept[name]["z"], state[name]["z"])
            assert event.moments_dropped == len(rack) and not kept.keys() & set(rack)
        if isinstance(event, PhaseEntered) and event.phase_index == 2:
            assert all(torch.equal(value, now[name]) for name, value in weights(machine).items() if name in rack)
        if isinstance(event, StepDone) and event.step == 12:
            assert all(float(moments(machine)[name]["step"]) == 1 for name in rack)
    for step in (6, 12):
        before, after = losses_around(events, step)
        assert before == after


def test_a_copy_of_what_is_frozen_trains_on_where_its_source_did() -> None:
    grown = {"model": {"rack": {"stacks": [{"low": 2}, {"base": 2}]}, "freeze": ["rack.stacks.base"]}}
    machine = walk({**grown, "enter": {"growth": {"use": "transformer.stack", "source": "base"}}})
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 5:
            y, state = weights(machine), moments(machine)
        if isinstance(event, PhaseEntered) and event.phase_index:
            now, kept = weights(machine), moments(machine)
            for name in (name for name in now if ".low." in name):
                source = name.replace(".low.", ".base.")
                assert torch.equal(now[name], y[source]) and torch.equal(kept[name]["z"], state[source]["z"])
                torch.testing.assert_close(now[source], average(y[source], state[source]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", [{}, {"rack": "bfloat16"}], ids=["float32", "bfloat16"])
def test_a_frozen_copy_of_what_trains_on_holds_what_was_judged(precision: dict[str, str]) -> None:
    grown = {"model": {"rack": {"stacks": [{"low": 2}, {"base": 2}]}, "freeze": ["rack.stacks.low"]}}
    machine = walk({**grown, "enter": {"growth": {"use": "transformer.stack", "source": "base"}}}, model={"precision": precision})
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 5:
            state, y = moments(machine), {name: tensor.detach().clone() for name, tensor in machine.optimizer.learning.items()}
        if isinstance(event, PhaseEntered) and event.phase_index:
            now, kept = weights(machine), moments(machine)
            for name in (name for name in now if ".low." in name):
                source = name.replace(".low.", ".base.")
                judged = average(y[source], state[source]).to(now[name].dtype)
                torch.testing.assert_close(now[name], judged, rtol=2**-8 if precision else 0, atol=1e-6)
                assert torch.equal(now[source], y[source].to(now[source].dtype))
                assert name not in kept and torch.equal(kept[source]["z"], state[source]["z"])
    assert any(float((average(y[name], state[name]) - y[name]).abs().max()) > 1e-3 for name in y if ".base." in name)


@pytest.mark.parametrize("frozen", [["embedding", "rack"], []], ids=["beside a frozen rack", "beside a rack that trains"])
def test_merged_adapters_are_those_that_were_judged(frozen: list[str]) -> None:
    machine = walk({"model": {"weight_adapters": {"style": None}, "freeze": []}}, model={"weight_adapters": LORA, "freeze": frozen})
    events = list(machine.train())
    before, after = losses_around(events, 6)
    assert abs(before - after) <= 1e-6


def test_a_reference_is_the_model_that_was_judged() -> None:
    drawn = torch.randint(VOCAB, (2, 60, 6), generator=torch.Generator().manual_seed(5))
    arrays = {"chosen": drawn[0], "rejected": drawn[1], "prefix": torch.full((60,), 2)}
    data = {
        "sources": {"a": {"use": "data.memory", "arrays": arrays}},
        "rename": {"tokens": "chosen"},
        "drop": ["rejected"],
        "batch_size": 4,
        "seq_len": 5,
    }
    machine = walk({"task": {"use": "transformer.preference"}, "data": {"rename": {"tokens": None}, "drop": None}}, data=data, evaluate={})
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 5:
            y, state = weights(machine), moments(machine)
        if isinstance(event, PhaseEntered) and event.phase_index:
            assert machine.objective.reference is not None
            for name, value in machine.objective.reference.named_parameters():
                torch.testing.assert_close(value.detach(), average(y[name], state[name]), rtol=0, atol=1e-6)
            assert all(torch.equal(value, y[name]) for name, value in weights(machine).items())


def test_the_probe_judges_what_evaluations_judge() -> None:
    grown = {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}}
    run = {"name": "kept", "seed": 3, "horizon": "12 steps", "device": "cpu", "probe": True}
    phases = {"free": {"until": "6 steps"}, "then": {"optimizer": {"use": "optim.adamw", "lr": 0.01}, **grown}}
    machine = machine_of(base(run=run, optimizer=FREE, phases=phases))
    (entered,) = [event for event in machine.train() if isinstance(event, PhaseEntered) and event.phase_index]
    assert entered.probe_change == 0.0


class Part(nn.Linear):
    """A linear map as embedding, rack or head."""

    def __init__(self, role: str) -> None:
        super().__init__(3, 3)
        self.role = role

    def forward(self, x: torch.Tensor) -> Any:
        return {"out": super().forward(x)} if self.role == "head" else super().forward(x)


class Squares:
    """Mean squared error."""

    def get_spec(self) -> TaskSpec:
        x = TensorSpec("batch width", "float32")
        return TaskSpec(batch={"x": x, "y": x}, inputs={"x": x}, outputs={"out": x})

    def prepare(self, batch: Any, moment: object, generator: torch.Generator) -> Any:
        return batch

    def loss(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, int, dict[str, Any]]:
        return (outputs["out"] - batch["y"]).square().sum(), batch["y"].numel(), {}


LIBRARY = Built(schedulefree.AdamWScheduleFree, lr=0.05)


class Compared(Squares):
    """The same, which asks for a reference that it then makes nothing of."""

    def get_spec(self) -> TaskSpec:
        return attrs.evolve(super().get_spec(), reference="phase entry")

    def loss(self, outputs: Any, batch: Any, reference: Any = None) -> tuple[torch.Tensor, int, dict[str, Any]]:
        return super().loss(outputs, batch)


def of_the_library(*phases: Phase, optimizer: Any = None, task: Any = None) -> TrainingMachine:
    """The authors' own optimizer, which counts its steps and its weights in its groups."""
    drawn = torch.randn(12, 2, 5, 3, generator=torch.Generator().manual_seed(2))
    return stackwise.assemble(
        stackwise.experiment(
            run={"name": "library", "seed": 1, "horizon": "12 steps", "device": "cpu"},
            task=task or Squares(),
            data=[{"x": x, "y": y} for x, y in drawn],
            model={role: Built(Part, role=role) for role in ("embedding", "rack", "head")},
            optimizer=optimizer or LIBRARY,
            phases=list(phases),
        )
    )


def test_an_optimizer_that_counts_in_its_groups_goes_on_counting_when_a_part_is_frozen() -> None:
    machine = of_the_library(Phase("all", until="6 steps"), Phase("some", model={"freeze": ["rack"]}))
    events = machine.train()
    next(events), next(events)
    model = deepcopy(machine.model.model)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.05)
    optimizer.train()
    for event in events:
        if not isinstance(event, StepDone):
            continue
        if event.step == 6:
            optimizer.eval()
            average = deepcopy(list(model.rack.parameters()))
            optimizer.train()
            for parameter, kept in zip(model.rack.parameters(), average, strict=True):
                parameter.data.copy_(kept)
                parameter.requires_grad_(False)
                parameter.grad = None
        batch = machine.data._sources["data"].loader._source[event.step]  # type: ignore[attr-defined]  # the list it was given
        (model(batch)["out"] - batch["y"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(machine.model.model.get_parameter(name), parameter, rtol=0, atol=1e-6, msg=f"{name} at {event.step}")


def test_a_count_in_a_group_is_not_inherited_by_what_begins_later() -> None:
    machine = of_the_library(Phase("some", until="6 steps", model={"freeze": ["rack"]}), Phase("all", model={"freeze": []}))
    with pytest.raises(UserError, match=r"AdamWScheduleFree counts in its parameter groups \(k, .*\), where rack.weight, which begins"):
        list(machine.train())


def test_what_begins_in_a_group_of_its_own_begins_its_own_count() -> None:
    late = {"use": LIBRARY, "groups": {"late": {"select": ["rack"]}}}
    some = Phase("some", until="6 steps", model={"freeze": ["rack"]})
    machine = of_the_library(some, Phase("all", model={"freeze": []}), optimizer=late)
    list(machine.train())
    assert {group["group"]: group["k"] for group in machine.optimizer.optimizer.param_groups} == {"late": 6, "default": 12}


def test_groups_that_only_divide_what_an_optimizer_counts_change_no_weight() -> None:
    whole, divided = (
        of_the_library(Phase("all")),
        of_the_library(
            Phase("whole", until="3 steps"),
            Phase("two", until="6 steps", optimizer={"groups": {"a": {"select": ["rack"]}}}),
            Phase("three", until="9 steps", optimizer={"groups": {"a": {"select": ["rack.weight"]}, "b": {"select": ["rack.bias"]}}}),
            Phase("again", optimizer={"groups": {"a": None, "b": None}}),
        ),
    )
    for event, other in zip(steps(whole), steps(divided), strict=True):
        assert event.loss == pytest.approx(other.loss, abs=1e-6)
        for name, weight in weights(whole).items():
            torch.testing.assert_close(weights(divided)[name], weight, rtol=0, atol=1e-6, msg=f"{name} at {event.step}")


def test_what_was_counted_apart_is_not_put_under_one_count() -> None:
    late = {"use": LIBRARY, "groups": {"late": {"select": ["rack"]}}}
    phases = (
        Phase("some", until="4 steps", model={"freeze": ["rack"]}),
        Phase("all", until="8 steps", model={"freeze": []}),
        Phase("one", optimizer={"groups": {"late": None}}),
    )
    said = r"AdamWScheduleFree counts in its parameter groups \(.*k.*\), and embedding.weight and rack.weight, which it counted apart"
    with pytest.raises(UserError, match=said):
        list(of_the_library(*phases, optimizer=late).train())


@pytest.mark.parametrize("task", [Squares, Compared])
def test_a_boundary_that_changes_no_weight_moves_none_by_rounding(task: type[Squares]) -> None:
    machine = of_the_library(Phase("one", until="6 steps"), Phase("two", optimizer={"clip": 1.0}), task=task())
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 5:
            before = weights(machine)
        if isinstance(event, PhaseEntered) and event.phase_index:
            assert all(torch.equal(weight, before[name]) for name, weight in weights(machine).items())


def steps(machine: TrainingMachine) -> Iterator[StepDone]:
    return (event for event in machine.train() if isinstance(event, StepDone))


def test_an_optimizer_that_begins_in_evaluation_is_put_into_training() -> None:
    parameter = nn.Parameter(torch.ones(2))
    plane = OptimizerPlane.of(schedulefree.AdamWScheduleFree([parameter], lr=0.05), {"p": parameter})
    parameter.grad = torch.ones(2)
    plane.step(0.0)  # which it refuses in evaluation
    assert float(parameter.detach().max()) < 1


def test_what_is_widened_and_frozen_at_one_boundary_is_widened_from_the_average() -> None:
    """The plan says that the function is kept, so the copy is taken of x; what the frozen copy was trained at goes with it."""
    wider = {"rack": {"width": 16, "heads": 4}, "freeze": ["rack.stacks.base.0"]}
    machine, events = walk({"model": wider, "enter": {"growth": {"use": "transformer.widen"}}}, {"model": {"freeze": []}}), []
    for event in machine.train():
        events.append(event)
        if isinstance(event, PhaseEntered) and event.phase_index == 1:
            assert event.probe_change is not None and event.probe_change <= 1e-6
    before, after = losses_around(events, 6)
    assert before == pytest.approx(after, abs=1e-6)
    assert losses_around(events, 12)[0] == losses_around(events, 12)[1]
