"""Initialisation: constructors are used as they are, and one seed gives one model whatever ran before."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from own_blocks import WIDTH, Deeper, config, linear
from tiny_walks import base, drive, machine_of, weights
from torch import nn

import stackwise
from stackwise import UserError
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.transitions import Enter, Transition
from stackwise.machine.machine import TrainingMachine
from stackwise.planes.model.difference import build_steps
from stackwise.planes.model.initialisation import build_seed, check_shapes, drawing_from

QUARTER = torch.full((WIDTH, WIDTH), 0.25)


def begun(declared: dict[str, Any]) -> TrainingMachine:
    machine = machine_of(declared)
    events = machine.train()
    next(event for event in events if isinstance(event, stackwise.PhaseEntered))
    events.close()
    return machine


def data_of_numpy(layer: nn.Linear) -> None:
    layer.weight.data = torch.from_numpy(numpy.full((WIDTH, WIDTH), 0.25, numpy.float32))


def data_of_teacher(layer: nn.Linear) -> None:
    teacher = linear()
    nn.init.constant_(teacher.weight, 0.25)
    layer.weight.data = teacher.weight.data


def another_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(QUARTER.clone())


def loaded(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": QUARTER.clone(), "bias": torch.zeros(WIDTH)}, assign=True)


def read_back(layer: nn.Linear) -> None:
    known = layer.weight.detach().numpy()
    layer.weight.data = torch.tensor((known - known + 0.25).tolist())


@pytest.mark.parametrize(
    "assign",
    [
        data_of_numpy,
        data_of_teacher,
        another_parameter,
        loaded,
        read_back,
        lambda layer: layer.weight.data.copy_(QUARTER),
        lambda layer: nn.init.constant_(layer.weight, 0.25),
        lambda layer: setattr(layer.weight, "data", QUARTER.clone()),
    ],
)
def test_what_a_constructor_assigns_is_what_every_block_holds(assign: Callable[[nn.Linear], Any]) -> None:
    def block() -> nn.Linear:
        layer = linear()
        assign(layer)
        return layer

    machine = begun(config(block, base_blocks=20))
    held = [machine.model.model.get_parameter(f"rack.stacks.base.{i}.weight") for i in range(20)]
    assert [bool(torch.equal(weight, QUARTER)) for weight in held] == [True] * 20


def shifted() -> nn.Module:
    """A block that draws from all three generators."""
    layer = linear()
    with torch.no_grad():
        layer.weight += float(numpy.random.standard_normal()) + random.random()
    return layer


def test_one_seed_is_one_model_whatever_was_drawn_before_and_no_generator_moves() -> None:
    first = begun(config(shifted))
    torch.rand(3), numpy.random.rand(3), random.random()
    state = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # the old form
    again, other = begun(config(shifted)), begun(config(shifted, run={**base()["run"], "seed": 99}))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert numpy.random.get_state()[1].tolist() == state[1] and random.getstate() == state[2]  # type: ignore[index]  # as above
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(first).items())
    assert not torch.equal(weights(first)["rack.stacks.base.0.weight"], weights(other)["rack.stacks.base.0.weight"])
    assert torch.equal(first.model.model.rack.table, again.model.model.rack.table)


def test_a_constructor_that_fails_leaves_the_generators_as_they_were() -> None:
    state = random.getstate()
    with pytest.raises(ZeroDivisionError), drawing_from(3):
        random.random()
        raise ZeroDivisionError
    assert random.getstate() == state


def test_new_blocks_differ_from_each_other_at_one_boundary_and_between_boundaries() -> None:
    growth = {"growth": Deeper()}
    phases = {
        "one": {"until": "2 steps"},
        "two": {"until": "4 steps", "model": {"rack": {"stacks": [{"base": 3}]}}, "enter": growth},
        "three": {"until": "6 steps", "model": {"rack": {"stacks": [{"base": 2}]}}},
        "four": {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": growth},
    }
    seen = []
    machine = machine_of(config(phases=phases))
    for event in machine.train():
        if isinstance(event, stackwise.PhaseEntered):
            blocks = machine.model.model.get_submodule("rack.stacks.base")
            grown = {"one": (0, 1), "two": (2,), "four": (2, 3)}.get(event.phase, ())
            seen += [blocks.get_submodule(str(i)).get_parameter("weight").detach().clone() for i in grown]
    assert len(seen) == 5
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])


def test_the_parts_of_a_resumed_model_are_built_as_those_of_the_run_were() -> None:
    """What is no parameter and no buffer cannot be saved; its constructor makes it once more, from the same stream."""
    phases = {
        "one": {"until": "2 steps"},
        "two": {"until": "4 steps", "model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": Deeper()}},
        "three": {"optimizer": {"lr": 1e-4}},
    }
    declared = config(phases=phases)
    machine = machine_of(declared)
    tables = {}
    for event in machine.train():
        if isinstance(event, stackwise.StepDone):
            tables[event.step] = machine.model.model.rack.table.clone()
            if event.step == 5:
                saved = machine.state()
                break
    assert not torch.equal(tables[1], tables[2]) and torch.equal(tables[2], tables[5])
    resumed = machine_of(declared)
    resumed.restore(saved)
    assert torch.equal(resumed.model.model.rack.table, tables[5])


def test_the_step_of_a_build_is_that_of_the_last_boundary_that_changed_the_part() -> None:
    machine = machine_of(config(phases={"one": {"until": "2 steps"}, "two": {"optimizer": {"lr": 1e-4}}}))
    phases = machine.schedule.phases
    assert set(build_steps(phases).values()) == {0}
    anew = CompiledPhase(
        name="anew", index=2, start=9, stop=12, state=phases[1].state, enter=Enter(fresh=("head",)), transition=Transition(changes=())
    )
    assert set(build_steps((*phases, anew)).values()) == {9}


def test_the_seed_of_a_build_is_one_of_seed_part_and_step() -> None:
    seeds = {build_seed(seed, part, step) for seed in (1, 2) for part in ("rack", "head") for step in (0, 5)}
    assert len(seeds) == 8


def test_a_lazy_layer_is_refused_with_its_name() -> None:
    with pytest.raises(UserError) as caught:
        check_shapes(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "rack")
    assert str(caught.value).startswith("rack.1.weight has no shape")


def test_growth_keeps_the_values_of_blocks_that_go_on() -> None:
    slow = {"use": "optim.adamw", "lr": 0.0}
    phases = {"one": {"until": "2 steps"}, "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": Deeper()}}}
    machine = machine_of(config(phases=phases, optimizer=slow))
    drive(machine)
    begin = weights(begun(config(optimizer=slow)))
    assert all(torch.equal(tensor, begin[name]) for name, tensor in weights(machine).items() if ".base.2." not in name)
