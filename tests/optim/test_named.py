"""Optimizers of a library by name: which may be named, with which arguments, and that nothing they count is lost."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import pytest
import pytorch_optimizer
import torch
from small_parameters import CONTEXT, assert_same_steps, give_gradients, group_of, named

from stackwise import UserError
from stackwise_providers_optim.from_pytorch_optimizer import UNFIT, build_pytorch_optimizer
from stackwise_providers_optim.from_torch import OPTIMIZERS, build_torch
from stackwise_providers_optim.options import NamedOptions

FIT = sorted(set(pytorch_optimizer.get_supported_optimizers()) - UNFIT.keys())
MATRICES_ONLY = {"rack.a.weight": (8, 6), "rack.b.weight": (6, 6), "rack.b.bias": (6,), "head.weight": (10, 6)}


def from_library(name: str, groups: Any, lr: float = 0.01, **changes: Any) -> torch.optim.Optimizer:
    return build_pytorch_optimizer(NamedOptions(name=name, lr=lr, **changes), CONTEXT, groups)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_torchs_own_by_name(name: str) -> None:
    mine, yours = named(), named()
    ours = build_torch(NamedOptions(name=name, lr=0.02, decay="all"), CONTEXT, [group_of(mine)])
    assert type(ours) is getattr(torch.optim, name)
    without_decay = {} if name == "Rprop" else {"weight_decay": 0}
    assert_same_steps(ours, getattr(torch.optim, name)(yours.values(), lr=0.02, **without_decay), mine, yours)


def test_further_arguments_and_groups_with_values_of_their_own() -> None:
    mine, yours = named(), named()
    head = {n: p for n, p in mine.items() if n.startswith("head")}
    rest = {n: p for n, p in mine.items() if n not in head}
    options = NamedOptions(name="NAdam", lr=0.02, weight_decay=0.1, options={"betas": [0.8, 0.99], "decoupled_weight_decay": True})
    ours = build_torch(options, CONTEXT, [group_of(head, "head", lr=0.001), group_of(rest)])
    theirs = torch.optim.NAdam(
        [
            {
                "params": [p],
                "lr": 0.001 if n.startswith("head") else 0.02,
                "weight_decay": 0.1 if p.ndim > 1 and not n.startswith("embedding") else 0.0,
            }
            for n, p in yours.items()
        ],
        betas=(0.8, 0.99),
        decoupled_weight_decay=True,
    )
    assert_same_steps(ours, theirs, mine, yours)


@pytest.mark.parametrize("name", ["lamb", "adabelief", "came", "prodigy", "soap", "adopt", "lion", "tiger", "StableAdamW"])
def test_a_library_optimizer_steps_as_it_does_alone(name: str) -> None:
    mine, yours = named(), named()
    ours = from_library(name, [group_of(mine)], lr=0.01, weight_decay=0.1, decay="all")
    made = pytorch_optimizer.load_optimizer(name)
    assert_same_steps(ours, made(list(yours.values()), lr=0.01, weight_decay=0.1), mine, yours)


@pytest.mark.parametrize("name", FIT)
def test_every_other_one_goes_on_from_the_state_of_its_parameters_alone(name: str) -> None:
    """Built anew with nothing but the state by parameter, its next steps are those it would have made."""
    mine, yours = named(MATRICES_ONLY), named(MATRICES_ONLY)
    one = from_library(name, [group_of(mine)], lr=1.0)
    for step in range(4):
        _seeded_step(one, mine, step)
    with torch.no_grad():
        for key, parameter in mine.items():
            yours[key].copy_(parameter)
    other = from_library(name, [group_of(yours)], lr=1.0)
    for key, parameter in mine.items():
        if one.state.get(parameter):
            other.state[yours[key]] = deepcopy(one.state[parameter])
    for step in range(4, 7):
        _seeded_step(one, mine, step)
        _seeded_step(other, yours, step)
        assert all(torch.equal(parameter, yours[key]) for key, parameter in mine.items())
    assert any(not torch.equal(p, start) for p, start in zip(mine.values(), named(MATRICES_ONLY).values(), strict=True))


def _seeded_step(optimizer: torch.optim.Optimizer, parameters: Any, step: int) -> None:
    give_gradients(parameters, step)
    torch.manual_seed(step)  # as the core does: what an optimizer draws belongs to the step
    optimizer.step()


def test_a_parameter_that_comes_later_counts_its_own_steps() -> None:
    """Adam's first update is the learning rate where the step counter is the parameter's; here the group held it."""
    parameters = named()
    optimizer = from_library("adabelief", [group_of(parameters)], lr=0.01)
    late = parameters["head.weight"]
    for step in range(5):
        give_gradients(parameters, step)
        optimizer.step()
    optimizer.state[late] = {}
    assert float(optimizer.state[parameters["head.norm.weight"]]["group.step"]) == 5
    rebuilt = from_library("adabelief", [group_of(parameters)], lr=0.01)
    for parameter, state in optimizer.state.items():
        if parameter is not late:
            rebuilt.state[parameter] = state
    give_gradients(parameters, 5)
    rebuilt.step()
    assert rebuilt.state[late]["group.step"] == 1
    assert rebuilt.state[parameters["head.norm.weight"]]["group.step"] == 6


def test_what_does_not_decay_has_none() -> None:
    groups = build_torch(NamedOptions(name="AdamW", lr=0.1, weight_decay=0.3), CONTEXT, [group_of(named())]).param_groups
    assert {group["fixed"]: group["weight_decay"] for group in groups} == {(): 0.3, ("weight_decay",): 0.0}
    assert "weight_decay" not in build_torch(NamedOptions(name="Rprop", lr=0.1), CONTEXT, [group_of(named())]).param_groups[0]


@pytest.mark.parametrize(
    ("build", "options", "said"),
    [
        (build_torch, {"name": "RAdm"}, r"optimizer\.name: torch\.optim has no optimizer 'RAdm': did you mean .*RAdam"),
        (build_torch, {"name": "torch.optim.Adam"}, r"has no optimizer 'torch\.optim\.Adam'"),
        (build_torch, {"name": "LBFGS"}, "has no optimizer 'LBFGS'"),
        (
            build_torch,
            {"name": "Adam", "options": {"beta": 1}},
            r"options\.beta: Adam has no argument 'beta': did you mean betas",
        ),
        (build_torch, {"name": "Adam", "options": {"lr": 1}}, r"optimizer\.options\.lr: write it beside `use`"),
        (build_torch, {"name": "Adam", "options": {"params": 1}}, r"optimizer\.options\.params: Adam has no argument"),
        (build_torch, {"name": "Adam", "options": {"betas": [2, 0.9]}}, "Adam does not take these options: Invalid beta"),
        (build_torch, {"name": "Rprop", "weight_decay": 0.1}, r"optimizer\.weight_decay: Rprop has none"),
        (build_pytorch_optimizer, {"name": "lamp"}, r"pytorch-optimizer has no optimizer 'lamp': did you mean lamb"),
        (build_pytorch_optimizer, {"name": "os.system"}, r"has no optimizer 'os\.system'"),
        (build_pytorch_optimizer, {"name": "bnb_adamw8bit"}, "has no optimizer"),
        (build_pytorch_optimizer, {"name": "LOMO"}, "'lomo' cannot be used here: it wants the whole model"),
        (build_pytorch_optimizer, {"name": "ranger21"}, "it keeps state outside its parameters and groups"),
        (build_pytorch_optimizer, {"name": "lamb", "options": {"bettas": 1}}, r"optimizer\.options\.bettas: lamb has no argument"),
        (build_pytorch_optimizer, {"name": "lamb", "options": {"betas": [2, 0]}}, "lamb does not take these options"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(build: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(NamedOptions(**{"lr": 0.01, **options}), CONTEXT, [group_of(named())])


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"pip install stackwise-providers-optim\[pytorch-optimizer\]"):
        from_library("lamb", [group_of(named())])


def test_the_list_of_the_unfit_names_nothing_that_the_library_no_longer_has() -> None:
    assert UNFIT.keys() <= set(pytorch_optimizer.get_supported_optimizers())
