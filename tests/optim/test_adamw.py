"""AdamW over parameter groups, against torch's own and against the algorithm written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stackwise import BuildContext, ParameterGroup, UserError
from stackwise_providers_optim.adamw import build_adamw
from stackwise_providers_optim.options import AdamWOptions

CONTEXT = BuildContext(seed=0)


def _parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embedding.weight": (5, 4), "rack.a.weight": (4, 4), "rack.a.bias": (4,), "rack.norm.weight": (4,), "head.weight": (5, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def _group(name: str = "default", *, only: str = "", values: dict[str, float] | None = None) -> ParameterGroup:
    return ParameterGroup(name=name, parameters={n: p for n, p in _parameters().items() if n.startswith(only)}, values=values or {})


def _by_name(optimizer: torch.optim.Optimizer) -> dict[str, tuple[nn.Parameter, dict[str, object]]]:
    return {name: (p, group) for group in optimizer.param_groups for name, p in zip(group["param_names"], group["params"], strict=True)}


def _gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    for i, parameter in enumerate(parameters.values()):
        parameter.grad = torch.sin(torch.arange(parameter.numel(), dtype=torch.float32) + 7 * i + step).view_as(parameter)


def test_only_matrices_outside_the_embedding_decay() -> None:
    found = _by_name(build_adamw(AdamWOptions(weight_decay=0.3), CONTEXT, [_group()]))
    assert {name: group["weight_decay"] for name, (_, group) in found.items()} == {
        "embedding.weight": 0.0,
        "rack.a.weight": 0.3,
        "rack.a.bias": 0.0,
        "rack.norm.weight": 0.0,
        "head.weight": 0.3,
    }
    spared = {"embedding.weight", "rack.a.bias", "rack.norm.weight"}
    assert {name: group["fixed"] for name, (_, group) in found.items()} == {n: ("weight_decay",) if n in spared else () for n in found}
    assert {group["group"] for _, group in found.values()} == {"default"}


def test_all_decays_when_asked() -> None:
    (group,) = build_adamw(AdamWOptions(weight_decay=0.3, decay="all"), CONTEXT, [_group()]).param_groups
    assert (group["weight_decay"], group["fixed"], len(group["params"])) == (0.3, (), 5)


def test_steps_are_those_of_the_algorithm() -> None:
    """Decoupled weight decay, bias-corrected moments: arXiv 1711.05101, algorithm 2, in double precision."""
    group = _group()
    start = {name: p.detach().double().clone() for name, p in group.parameters.items()}
    options = AdamWOptions(lr=0.05, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer = build_adamw(options, CONTEXT, [group])
    m, v = ({name: torch.zeros_like(p) for name, p in start.items()} for _ in range(2))
    for step in range(1, 6):
        _gradients(group.parameters, step)
        for name, x in start.items():
            gradient = group.parameters[name].grad.double()
            decay = 0.2 if name in ("rack.a.weight", "head.weight") else 0.0
            m[name] = 0.8 * m[name] + 0.2 * gradient
            v[name] = 0.9 * v[name] + 0.1 * gradient**2
            update = (m[name] / (1 - 0.8**step)) / (torch.sqrt(v[name] / (1 - 0.9**step)) + 1e-6)
            start[name] = x - 0.05 * decay * x - 0.05 * update
        optimizer.step()
    for name, parameter in group.parameters.items():
        torch.testing.assert_close(parameter.detach().double(), start[name], rtol=1e-5, atol=1e-6)


def test_agrees_with_torch_over_groups_written_by_hand() -> None:
    ours = [_group("body", only="rack", values={"lr": 0.03}), _group("rest", only="head", values={"weight_decay": 0.5, "eps": 1e-3})]
    theirs = {n: nn.Parameter(p.detach().clone()) for group in ours for n, p in group.parameters.items()}
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["rack.a.weight"]], "lr": 0.03, "weight_decay": 0.1},
            {"params": [theirs["rack.a.bias"], theirs["rack.norm.weight"]], "lr": 0.03, "weight_decay": 0.0},
            {"params": [theirs["head.weight"]], "lr": 0.01, "weight_decay": 0.5, "eps": 1e-3},
        ],
        betas=(0.9, 0.95),
        foreach=False,
    )
    optimizer = build_adamw(AdamWOptions(lr=0.01), CONTEXT, ours)
    mine = {n: p for group in ours for n, p in group.parameters.items()}
    for step in range(4):
        _gradients(mine, step)
        _gradients(theirs, step)
        optimizer.step()
        reference.step()
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6)
    assert [group["group"] for group in optimizer.param_groups] == ["body", "body", "rest"]


def test_floating_parameters_on_a_cpu_are_stepped_fused() -> None:
    assert all(group["fused"] is True for group in build_adamw(AdamWOptions(), CONTEXT, [_group()]).param_groups)


def test_meta_parameters_are_not() -> None:
    group = ParameterGroup(name="default", parameters={"rack.weight": nn.Parameter(torch.empty(2, 2, device="meta"))})
    assert not build_adamw(AdamWOptions(), CONTEXT, [group]).param_groups[0]["fused"]


def test_state_entries_are_those_that_torch_keeps() -> None:
    group = _group()
    optimizer = build_adamw(AdamWOptions(), CONTEXT, [group])
    _gradients(group.parameters, 0)
    optimizer.step()
    count = AdamWOptions().to_spec().state_elements
    for parameter in group.parameters.values():
        assert sum(entry.numel() for entry in optimizer.state[parameter].values()) == count(tuple(parameter.shape))
    assert AdamWOptions().to_spec() == AdamWOptions(lr=0.5).to_spec()


def test_the_first_step_of_a_fresh_parameter_is_the_learning_rate() -> None:
    """Bias correction makes |update| = lr whatever the gradient at step counter 1; an inherited counter would give 3.16 lr."""
    group = _group(only="rack.norm")
    (parameter,) = group.parameters.values()
    before = parameter.detach().clone()
    optimizer = build_adamw(AdamWOptions(lr=0.01, beta1=0.9, beta2=0.999), CONTEXT, [group])
    parameter.grad = torch.tensor([0.3, -2.0, 5.0, -0.01])
    optimizer.step()
    torch.testing.assert_close(before - parameter.detach(), torch.tensor([0.01, -0.01, 0.01, -0.01]), rtol=1e-4, atol=1e-7)
    assert math.isclose(0.1 / math.sqrt(0.001), 3.16, rel_tol=1e-3)


def test_betas_of_a_group_follow_what_the_core_writes() -> None:
    """Against torch's own with its betas set by hand, each step other ones."""
    mine, yours = (
        {n: p for group in (_group("body", only="rack"), _group("rest", only="head")) for n, p in group.parameters.items()} for _ in "12"
    )
    body, rest = ({n: p for n, p in mine.items() if n.startswith(side)} for side in ("rack", "head"))
    groups = [
        ParameterGroup(name="body", parameters=body, values={"beta1": 0.5}),
        ParameterGroup(name="rest", parameters=rest, values={"beta2": 0.7}),
    ]
    optimizer = build_adamw(AdamWOptions(lr=0.01, weight_decay=0), CONTEXT, groups)
    theirs = [[p for n, p in yours.items() if n.startswith(side)] for side in ("rack", "head")]
    reference = torch.optim.AdamW([{"params": params} for params in theirs], lr=0.01, weight_decay=0)
    for step in range(20):
        for group in optimizer.param_groups:
            group["beta1" if group["group"] == "body" else "beta2"] = 0.5 + 0.02 * step
        reference.param_groups[0]["betas"] = (0.5 + 0.02 * step, 0.95)
        reference.param_groups[1]["betas"] = (0.9, 0.5 + 0.02 * step)
        _gradients(mine, step)
        _gradients(yours, step)
        optimizer.step()
        reference.step()
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, yours[name], rtol=1e-6, atol=1e-6)


def test_betas_in_step_cost_no_second_run_of_a_users_hook() -> None:
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # torch wraps the step of a class when its first instance is made
    group, seen = _group(), []
    optimizer = build_adamw(AdamWOptions(), CONTEXT, [group])
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    _gradients(group.parameters, 0)
    optimizer.step()
    assert seen == [1]


def test_a_value_that_no_group_may_have() -> None:
    with pytest.raises(UserError, match=r"groups\.body\.betas: not a value of a group; a group may have its own lr, weight_decay, beta1"):
        build_adamw(AdamWOptions(), CONTEXT, [_group("body", values={"betas": 0.5})])


def test_nothing_left_to_train() -> None:
    with pytest.raises(UserError, match="no parameter is left to train"):
        build_adamw(AdamWOptions(), CONTEXT, [_group(only="nothing")])


@pytest.mark.parametrize("changes", [{"beta1": 1.0}, {"beta2": 1.0}, {"beta1": -0.1}, {"lr": -1.0}, {"decay": "some"}])
def test_options_that_cannot_be(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        AdamWOptions(**changes)
