"""SGD against torch's own, coupled, and against the paper's decoupled weight decay."""

from __future__ import annotations

import pytest
import torch
from small_parameters import CONTEXT, assert_same_steps, give_gradients, group_of, named

from stackwise_providers_optim.options import SGDOptions
from stackwise_providers_optim.sgd import build_sgd


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_coupled_it_is_torchs_own(nesterov: bool, momentum: float) -> None:
    mine, yours = named(), named()
    options = SGDOptions(lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=0.1, coupled=True, decay="all")
    reference = torch.optim.SGD(yours.values(), lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=0.1)
    assert_same_steps(build_sgd(options, CONTEXT, [group_of(mine)]), reference, mine, yours)


def test_without_momentum_it_is_torchs_own() -> None:
    mine, yours = named(), named()
    ours = build_sgd(SGDOptions(lr=0.05, momentum=0), CONTEXT, [group_of(mine)])
    assert_same_steps(ours, torch.optim.SGD(yours.values(), lr=0.05), mine, yours)


def test_decoupled_the_decay_does_not_pass_through_the_momentum() -> None:
    """arXiv 1711.05101, algorithm 1, in double precision, with a rate that changes at every step."""
    mine = named(dtype=torch.float64)
    theirs = {name: p.detach().clone() for name, p in mine.items()}
    velocity = {name: torch.zeros_like(p) for name, p in theirs.items()}
    optimizer = build_sgd(SGDOptions(lr=0.05, weight_decay=0.3), CONTEXT, [group_of(mine)])
    for step in range(20):
        lr = 0.05 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        give_gradients(mine, step)
        optimizer.step()
        for name, x in theirs.items():
            decay = 0.3 if x.ndim > 1 and not name.startswith("embedding") else 0.0
            velocity[name] = 0.9 * velocity[name] + mine[name].grad
            theirs[name] = x - lr * decay * x - lr * velocity[name]
            torch.testing.assert_close(mine[name].detach(), theirs[name], rtol=1e-12, atol=1e-12)


def test_a_momentum_that_rises_from_zero_starts_with_the_last_gradient() -> None:
    """b = μb + g holds for μ = 0 too: b is then the gradient."""
    mine = named({"rack.w": (3, 2)}, dtype=torch.float64)
    optimizer = build_sgd(SGDOptions(lr=1.0, momentum=0.9), CONTEXT, [group_of(mine)])
    (group,), (parameter,) = optimizer.param_groups, mine.values()
    for momentum in (0.9, 0.0, 0.5):
        group["momentum"] = momentum
        give_gradients(mine, int(10 * momentum))
        before, last = parameter.detach().clone(), parameter.grad.clone()
        optimizer.step()
        if momentum == 0.0:
            earlier = last
    torch.testing.assert_close(before - parameter.detach(), 0.5 * earlier + last)
