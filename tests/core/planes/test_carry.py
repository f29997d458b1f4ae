"""`stackwise.carry`: growth in a training loop of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import base, memory, plan_of
from torch import nn

import stackwise
from stackwise import BuildContext, CopyOf, Fresh, UserError
from stackwise_providers_transformer.depth_growth import build_identity, build_stack
from stackwise_providers_transformer.growth_options import IdentityOptions, StackOptions

CONTEXT = BuildContext(seed=0)
STACK, IDENTITY = build_stack(StackOptions(), CONTEXT), build_identity(IdentityOptions(), CONTEXT)


class Net(nn.Module):
    """Residual blocks between two linear maps; the last shares its matrix with the first."""

    def __init__(self, blocks: int, width: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width, bias=False)
        self.layers = nn.ModuleList(Block(width) for _ in range(blocks))
        self.leave = nn.Linear(width, 3, bias=False)
        self.enter.weight = nn.Parameter(torch.randn(width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(x)
        y: torch.Tensor = self.leave(x)
        return y


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.tanh(self.up(self.norm(x))))
        return y


def two_groups(model: nn.Module) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    spared = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], lr=0.01)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def grown(growth: Any, **options: Any) -> tuple[Net, Net, torch.optim.AdamW, Any]:
    torch.manual_seed(0)
    model, larger = Net(2), Net(4)
    optimizer = two_groups(model)
    trained(model, optimizer)
    options = {"blocks": "layers.{index}", "residual_outputs": ("down.weight",), **options}
    return model, larger, optimizer, stackwise.carry(model, optimizer, larger, growth, **options)


def test_old_blocks_go_on_as_the_same_objects_and_new_ones_copy_weights_and_moments() -> None:
    model, larger, optimizer, receipt = grown(STACK)
    for i in range(2):
        assert larger.layers[i].up.weight is model.layers[i].up.weight
        copy, source = larger.layers[i + 2].up.weight, model.layers[i].up.weight
        assert copy is not source and torch.equal(copy, source)
        assert torch.equal(optimizer.state[copy]["exp_avg_sq"], optimizer.state[source]["exp_avg_sq"])
        assert optimizer.state[copy]["exp_avg_sq"] is not optimizer.state[source]["exp_avg_sq"]
    assert (len(receipt.model.adopted), len(receipt.model.copied), receipt.moments.copied) == (14, 12, 12)


def test_every_trainable_parameter_is_in_the_group_of_its_like_once() -> None:
    _, larger, optimizer, _ = grown(IDENTITY)
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert held == [[id(p) for p in larger.parameters() if p.dim() == rank] for rank in (2, 1)]
    trained(larger, optimizer)


def test_identity_blocks_leave_the_function_as_it_was_and_begin_their_own_count() -> None:
    torch.manual_seed(0)
    model, larger = Net(2), Net(4)
    optimizer = two_groups(model)
    trained(model, optimizer)
    x = torch.randn(7, 3)
    before = model(x)
    stackwise.carry(model, optimizer, larger, IDENTITY, blocks="layers.{index}", residual_outputs=["down.weight"])
    assert torch.equal(larger(x), before)
    trained(larger, optimizer, steps=1)
    assert int(optimizer.state[larger.layers[3].down.weight]["step"]) == 1
    assert int(optimizer.state[larger.layers[0].down.weight]["step"]) == 4


def test_moments_may_start_anew_where_weights_are_copied() -> None:
    _, larger, optimizer, receipt = grown(STACK, moments="reset")
    assert larger.layers[2].up.weight not in optimizer.state and receipt.moments.copied == 0 and receipt.moments.kept == 14


def test_a_map_by_name_grows_a_width_and_its_moments() -> None:
    torch.manual_seed(0)
    model, wider = Net(1, width=4), Net(1, width=4)
    wider.layers[0].up, wider.layers[0].down = nn.Linear(4, 16), nn.Linear(16, 4)
    optimizer = two_groups(model)
    trained(model, optimizer)
    twice = tuple(range(8)) * 2
    split = (0.25,) * 8 + (0.75,) * 8
    wide = {
        "layers.0.up.weight": CopyOf(source="layers.0.up.weight", index={0: twice}, gradient={0: split}),
        "layers.0.up.bias": CopyOf(source="layers.0.up.bias", index={0: twice}, gradient={0: split}),
        "layers.0.down.weight": CopyOf(source="layers.0.down.weight", index={1: twice}, factors={1: split}),
    }
    x = torch.randn(7, 3)
    before, old = model(x), {k: v.clone() for k, v in optimizer.state[model.layers[0].up.weight].items()}
    stackwise.carry(model, optimizer, wider, wide)
    torch.testing.assert_close(wider(x), before, rtol=1e-6, atol=1e-6)
    new = optimizer.state[wider.layers[0].up.weight]
    torch.testing.assert_close(new["exp_avg"], torch.cat([old["exp_avg"] * 0.25, old["exp_avg"] * 0.75]))
    torch.testing.assert_close(new["exp_avg_sq"], torch.cat([old["exp_avg_sq"] * 0.25**2, old["exp_avg_sq"] * 0.75**2]))


def test_what_is_wrong_is_said_before_anything_moves() -> None:
    model, larger = Net(2), Net(3)
    optimizer = two_groups(model)
    own = [id(p) for p in larger.parameters()]
    with pytest.raises(UserError, match=r"block 2 of the model is new, and nothing says where it comes from"):
        stackwise.carry(model, optimizer, larger, blocks="layers.{index}")
    with pytest.raises(UserError, match=r"leave\.weight changes its shape"):
        wider = Net(2)
        wider.leave = nn.Linear(4, 5, bias=False)
        stackwise.carry(model, optimizer, wider, blocks="layers.{index}")
    with pytest.raises(UserError, match=r"group 0 of the optimizer holds a parameter of shape \(2,\) that is none of the model"):
        stackwise.carry(model, torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1), larger, STACK, blocks="layers.{index}")
    for path, rule in (("blocks.{index}", "no block of the new model stands at 'blocks"), ("layers", "no place for the number of a block")):
        with pytest.raises(UserError, match=rule):
            stackwise.carry(model, optimizer, larger, STACK, blocks=path)
    misspelt: dict[str, dict[str, Any]] = {
        "the new model has no such parameter — did you mean 'leave.weight'": {"leave.wait": Fresh()},
        "from 'leave.wait', and the model has none — did you mean 'leave.weight'": {"leave.weight": CopyOf(source="leave.wait")},
    }
    for rule, growth in misspelt.items():
        with pytest.raises(UserError, match=rule):
            stackwise.carry(model, optimizer, larger, growth, blocks="layers.{index}")
    assert [id(p) for p in larger.parameters()] == own
    extra = {**{name: Fresh() for name, _ in larger.named_parameters()}}
    with pytest.raises(UserError, match="none of the 2 groups of the optimizer holds its like: say which with `group_of`"):
        larger.scale = nn.Parameter(torch.ones(1))  # type: ignore[assignment]  # a parameter that has no like
        stackwise.carry(model, optimizer, larger, {**extra, "scale": Fresh()})


def curriculum() -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]}
    return base(
        run={"seed": 5, "horizon": "10 steps"},
        data={"sources": {"a": memory(0)}, "batch_size": 2, "seq_len": 4},
        model={
            "embedding": {"use": "transformer.token", "vocab": 17},
            "rack": rack,
            "head": {"use": "transformer.lm", "tied": True},
        },
        optimizer={"use": "optim.adamw", "lr": 0.01},
        phases={
            "shallow": {"until": "4 steps"},
            "deep": {"model": {"rack": {"stacks": [{"base": 5}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
        },
    )


def test_a_loop_of_ones_own_reaches_the_weights_of_the_machine_bit_for_bit() -> None:
    machine = stackwise.assemble(plan_of(curriculum()))
    batches: list[Any] = []
    take = machine.data.batches
    machine.data.batches = lambda moment: batches.append(take(moment)) or batches[-1]  # type: ignore[method-assign,func-returns-value]
    for event in machine.train():
        if isinstance(event, stackwise.PhaseEntered) and event.phase == "shallow":
            first = {name: p.detach().clone() for name, p in machine.model.model.named_parameters()}
    task = machine.objective.task

    def built(blocks: int) -> nn.Module:
        config = curriculum()
        config["model"]["rack"]["stacks"] = [{"base": blocks}]
        del config["phases"]
        other = stackwise.assemble(plan_of(config))
        next(event for event in other.train() if isinstance(event, stackwise.PhaseEntered))
        return other.model.model

    model = built(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(first[name])
    named = dict(model.named_parameters())
    decayed = [p for name, p in named.items() if p.dim() > 1 and not name.startswith("embedding")]
    spared = [p for p in named.values() if not any(p is other for other in decayed)]
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "fused": True}
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}], **settings)  # type: ignore[arg-type]
    for step, (batch,) in enumerate(batches):
        if step == 4:
            larger = built(5)
            stackwise.carry(model, optimizer, larger, STACK)
            model = larger
        moment = machine.schedule.at(step=step)
        prepared = task.prepare(batch, moment, torch.Generator())
        total, weight, _ = task.loss(model(prepared), prepared)
        torch.autograd.backward(total, torch.full_like(total, 1 / weight, requires_grad=False))
        optimizer.step()
        optimizer.zero_grad()
    expected = dict(machine.model.model.named_parameters())
    assert step == 9 and all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
