"""Blocks that are computed again in the backward pass train to the same bits, and keep less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import base, drive, losses, machine_of, moments, plan_of, same_tensors, weights
from torch import nn

from stackwise import UserError
from stackwise.assembly.pricing import price
from stackwise.machine.recompute import recompute_blocks
from stackwise.planes.model.module import Model

RACK = {"use": "transformer.decoder", "width": 8, "heads": 2, "dropout": 0.3, "stacks": [{"base": 1}]}


def config(recompute: str, **sections: Any) -> dict[str, Any]:
    run = {**base()["run"], "parallel": {"recompute": recompute}}
    return base(
        run=run,
        model={**base()["model"], "rack": RACK, "freeze": ["embedding"]},
        phases={
            "one": {"until": "50%"},
            "two": {
                "model": {"freeze": [], "rack": {"stacks": [{"base": 3}]}},
                "enter": {"growth": {"use": "transformer.gated", "gate": {"linear": {"from": 0, "to": 1, "over": "phase"}}}},
            },
        },
        **sections,
    )


def test_recomputed_blocks_train_to_the_same_bits_with_dropout_gates_and_growth() -> None:
    plain, again = machine_of(config("nothing")), machine_of(config("blocks"))
    assert losses(drive(again)) == losses(drive(plain))
    assert same_tensors(weights(again), weights(plain))
    assert all(same_tensors(moments(again)[name], kept) for name, kept in moments(plain).items())


def saved_for_backward(machine: Any) -> int:
    """Bytes that one forward keeps, each tensor once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    batch = machine.data.batches(machine.schedule.at(step=11))[0]
    prepared = machine.objective.task.prepare(batch, machine.schedule.at(step=11), torch.Generator())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        machine.objective.loss(machine.model.model, prepared)
    parameters = {p.data_ptr() for p in machine.model.model.parameters()}
    return sum(size for place, size in kept.items() if place not in parameters)


def test_less_is_kept_and_the_plan_counts_the_second_forward() -> None:
    plain, again = machine_of(config("nothing")), machine_of(config("blocks"))
    drive(plain), drive(again)
    assert saved_for_backward(again) < 0.5 * saved_for_backward(plain)
    once, twice = (price(plan_of(config(recompute)))[1] for recompute in ("nothing", "blocks"))
    assert once.flops is not None and once.flops == twice.flops and once.recompute_flops == 0
    assert 0 < twice.recompute_flops <= once.flops / 3  # at most one more forward, a third of the work


class Counting(nn.Module):
    """A block that counts its forwards in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        out: torch.Tensor = self.map(hidden)
        return out


def test_a_block_that_changes_a_buffer_is_refused_by_name() -> None:
    machine = machine_of(config("nothing"))
    machine.live.enter(machine.schedule.phases[0])
    model = machine.model.model
    assert isinstance(model, Model)
    model.rack.stacks["base"][0] = Counting()  # type: ignore[index]
    recompute_blocks(model)
    out = model.rack.stacks["base"][0](torch.ones(1, 2))  # type: ignore[index]
    with pytest.raises(UserError, match=r"stacks\.base\.0.*seen"):
        out.sum().backward()


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.parallel\.recompute"):
        recompute_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("compiled", [True, "whole"])
def test_blocks_are_not_compiled_and_computed_again(compiled: bool | str) -> None:
    run = {**base()["run"], "parallel": {"recompute": "blocks"}, "compile": compiled}
    with pytest.raises(UserError, match=r"run\.compile: .*leave it or run\.parallel\.recompute out"):
        plan_of(base(run=run))
