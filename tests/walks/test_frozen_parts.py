"""What frozen parts cost and do, what an unfreezing trains, and growth from the top down over a frozen rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import VOCAB, base, drive, held, machine_of, stream, weights
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stackwise import Built, PhaseEntered, StepDone
from stackwise.machine.machine import TrainingMachine

BATCH = {"tokens": stream(40).view(2, 20)}


def began(config: dict[str, Any], phase: int = 0) -> TrainingMachine:
    """A machine right after it entered a phase."""
    machine = machine_of(config)
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase_index == phase:
            return machine
    raise AssertionError("there is no such phase")


def flops(machine: TrainingMachine) -> tuple[int, int]:
    """Of a forward pass, and of the backward pass after it."""
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = machine.model.model(BATCH)["logits"]
    forward = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with counter:
        outputs.sum().backward()
    return forward, counter.get_total_flops()


def deep(freeze: list[str]) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 8}]}
    return base(model={**base()["model"], "rack": rack, "head": {"use": "transformer.lm", "tied": False}, "freeze": freeze})


def test_a_frozen_prefix_costs_no_backward_pass() -> None:
    forward, everything = flops(began(deep([])))
    assert everything == pytest.approx(2 * forward, rel=0.25)  # a gradient for each of the two factors of a product; recomputed scores
    same, half = flops(began(deep(["embedding", "rack.stacks.base.0-3"])))
    head_forward = 2 * BATCH["tokens"].numel() * 8 * VOCAB
    per_block = (everything - 2 * head_forward) / 8
    below = per_block / 2  # the lowest trained block still multiplies gradients for its weights, and for its input only inside
    assert same == forward
    assert 4 * per_block - below <= half - 2 * head_forward <= 4 * per_block
    _, head_only = flops(began(deep(["embedding", "rack"])))
    assert head_only == head_forward


def test_a_frozen_prefix_saves_no_tensor_for_the_backward_pass() -> None:
    def saved(machine: TrainingMachine) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            machine.model.model.rack(machine.model.model.embedding(BATCH["tokens"]))
        return len(sizes)

    whole, half = saved(began(deep([]))), saved(began(deep(["embedding", "rack.stacks.base.0-3"])))
    assert half == pytest.approx(whole / 2, rel=0.05)
    assert saved(began(deep(["embedding", "rack"]))) == 0


class Normed(nn.Module):
    """A batch norm and dropout, then a layer norm and a linear map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        lower = self.lower(hidden.flatten(0, 1)).view_as(hidden)
        turned: torch.Tensor = self.linear(self.norm(lower))
        return hidden + turned


def normed(**model: Any) -> dict[str, Any]:
    parts = {
        "embedding": {"use": "transformer.token", "vocab": VOCAB, "width": 8},
        "rack": Built(Normed, width=8),
        "head": {"use": "transformer.lm", "width": 8, "tied": False},
    }
    return {**parts, **model}


def test_what_is_frozen_holds_no_gradient_and_no_moment() -> None:
    """Neither in a phase that froze it from the start, nor in the optimizer of one that froze it later, where moments are set aside."""
    frozen = ("embedding.weight", "rack.stacks.base.0.")
    phases = {"all": {"until": "50%"}, "top": {"until": "100%", "model": {"freeze": ["embedding", "rack.stacks.base.0"]}}}
    untied = {**base()["model"], "head": {"use": "transformer.lm", "tied": False}}
    for config in (base(model={**untied, "freeze": ["embedding", "rack.stacks.base.0"]}), base(model=untied, phases=phases)):
        machine = machine_of(config)
        for event in machine.train():
            if not isinstance(event, StepDone) or ("phases" in config and event.phase == "all"):
                continue
            names = {id(p): name for name, p in machine.model.model.named_parameters()}
            held = {names[id(p)] for p in machine.optimizer.optimizer.state}
            still = [name for name in names.values() if name.startswith(frozen)]
            assert still
            assert not held.intersection(still)
            assert all(machine.model.model.get_parameter(name).grad is None for name in still)
            assert held == set(names.values()) - set(still)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_norms_and_dropout_of_a_frozen_part_are_in_the_declared_mode(mode: str) -> None:
    machine = machine_of(base(model=normed(freeze=["rack.lower"], frozen_mode=mode)))
    drive(machine)
    lower = machine.model.model.rack.lower
    assert int(lower[0].num_batches_tracked) == (12 if mode == "train" else 0)
    assert bool(lower[0].running_mean.any()) == (mode == "train")
    machine.model.train()
    x = torch.ones(100, 8)
    assert bool((lower[1](x) == 0).any()) == (mode == "train")
    assert machine.model.model.rack.linear.training


def test_unfreezing_a_layer_norm_and_a_linear_map_puts_all_four_tensors_into_the_optimizer() -> None:
    phases = {"one": {"until": "4 steps", "model": {"freeze": ["rack.norm", "rack.linear"]}}, "two": {"model": {"freeze": []}}}
    machine = machine_of(base(model=normed(), phases=phases))
    thawed = ["rack.norm.weight", "rack.norm.bias", "rack.linear.weight", "rack.linear.bias"]
    before: dict[str, torch.Tensor] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            inside = {id(p) for p in held(machine)}
            own = {name for name in thawed if id(machine.model.model.get_parameter(name)) in inside}
            assert own == (set(thawed) if event.phase_index else set())
            before = weights(machine)
        if isinstance(event, StepDone) and event.step == 4:
            assert [name for name in thawed if torch.equal(weights(machine)[name], before[name])] == []


@pytest.mark.parametrize("operator", [{"use": "transformer.stack", "source": "top"}, {"use": "transformer.identity"}])
def test_growth_from_the_top_down_trains_exactly_the_new_stack_in_the_forward_path(operator: dict[str, Any]) -> None:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"top": 2}]}
    second = {
        "model": {"rack": {"stacks": [{"low": 2}, {"top": 2}]}, "freeze": ["embedding", "rack.stacks.top", "rack.norm"]},
        "enter": {"growth": operator},
    }
    machine = machine_of(base(model={**base()["model"], "rack": rack}, phases={"one": {"until": "6 steps"}, "two": second}))
    before: dict[str, torch.Tensor] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase_index:
            before = weights(machine)
    model, now = machine.model.model, weights(machine)
    low = {name for name in now if name.startswith("rack.stacks.low.")}
    assert set(machine.model.trainable()) == low == {name for name in now if not torch.equal(now[name], before[name])}
    order: list[str] = []
    for name in ("low.0", "low.1", "top.0", "top.1"):
        model.get_submodule(f"rack.stacks.{name}").register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        whole = model(BATCH)["logits"]
        assert order == ["low.0", "low.1", "top.0", "top.1"]
        model.get_parameter("rack.stacks.low.1.mlp.down.weight").zero_()
        assert not torch.equal(model(BATCH)["logits"], whole)
