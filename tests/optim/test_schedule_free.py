"""Schedule-free AdamW against the library of its authors and against the paper."""

from __future__ import annotations

import pytest
import torch
from schedulefree import AdamWScheduleFree
from small_parameters import CONTEXT, assert_same_steps, give_gradients, group_of, named

from stackwise_providers_optim.options import ScheduleFreeOptions
from stackwise_providers_optim.schedule_free import build_schedule_free


@pytest.mark.parametrize(
    ("step_power", "lr_power", "weight_decay", "beta1"), [(0.0, 2.0, 0.1, 0.9), (1.0, 2.0, 0.0, 0.95), (0.5, 0.0, 0.1, 0.6)]
)
def test_it_is_the_authors_own(step_power: float, lr_power: float, weight_decay: float, beta1: float) -> None:
    mine, yours = named(), named()
    options = ScheduleFreeOptions(
        lr=0.01, weight_decay=weight_decay, beta1=beta1, beta2=0.99, step_power=step_power, lr_power=lr_power, decay="all"
    )
    ours = build_schedule_free(options, CONTEXT, [group_of(mine)])
    theirs = AdamWScheduleFree(
        list(yours.values()), lr=0.01, betas=(beta1, 0.99), weight_decay=weight_decay, r=step_power, weight_lr_power=lr_power
    )
    theirs.train()
    assert_same_steps(ours, theirs, mine, yours)
    ours.eval()
    theirs.eval()
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, yours[name], rtol=1e-5, atol=1e-6)


def test_a_rate_that_follows_time_warms_up_as_the_authors_own() -> None:
    mine, yours = named(), named()
    ours = build_schedule_free(ScheduleFreeOptions(lr=0.01), CONTEXT, [group_of(mine)])
    theirs = AdamWScheduleFree(list(yours.values()), lr=0.01, warmup_steps=8)
    theirs.train()
    for step in range(20):
        for group in ours.param_groups:
            group["lr"] = 0.01 * min(1.0, (step + 1) / 8)
        give_gradients(mine, step)
        give_gradients(yours, step)
        ours.step()
        theirs.step()
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, yours[name], rtol=1e-6, atol=1e-6)


def test_the_average_is_the_weighted_mean_of_the_iterates_while_beta1_moves() -> None:
    """arXiv 2405.15682: x is Σ weight·z / Σ weight over all steps, whatever points y the gradients were taken at."""
    mine = named({"rack.w": (4, 3)}, dtype=torch.float64)
    (parameter,) = mine.values()
    optimizer = build_schedule_free(ScheduleFreeOptions(lr=0.05), CONTEXT, [group_of(mine)])
    (group,) = optimizer.param_groups
    total, mean = 0.0, torch.zeros(4, 3, dtype=torch.float64)
    highest = 0.0
    for step in range(20):
        group["beta1"], group["lr"] = 0.5 + 0.02 * step, 0.05 * (1 + step % 3)
        highest = max(highest, group["lr"])
        give_gradients(mine, step)
        optimizer.step()
        iterate, weight = optimizer.state[parameter]["z"], highest**2
        total += weight
        mean += weight * iterate
        y, beta1 = parameter.detach().clone(), group["beta1"]
        torch.testing.assert_close(y, (1 - beta1) * iterate + beta1 * mean / total, rtol=1e-9, atol=1e-9)
        optimizer.eval()
        torch.testing.assert_close(parameter.detach(), mean / total, rtol=1e-9, atol=1e-9)
        optimizer.train()
        assert torch.equal(parameter, y)


def test_to_look_at_the_average_changes_no_bit_of_training() -> None:
    mine, yours = named(), named()
    one, other = (build_schedule_free(ScheduleFreeOptions(), CONTEXT, [group_of(each)]) for each in (mine, yours))
    for step in range(10):
        give_gradients(mine, step)
        give_gradients(yours, step)
        one.step()
        other.step()
        other.eval()
        other.eval()
        other.train()
        other.train()
        assert all(torch.equal(mine[name], yours[name]) for name in mine)


def test_a_step_at_the_average_is_refused() -> None:
    parameters = named()
    optimizer = build_schedule_free(ScheduleFreeOptions(), CONTEXT, [group_of(parameters)])
    give_gradients(parameters, 0)
    optimizer.step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\) before step\(\)"):
        optimizer.step()


def test_gradients_are_left_as_they_are() -> None:
    parameters = named()
    optimizer = build_schedule_free(ScheduleFreeOptions(weight_decay=0.1), CONTEXT, [group_of(parameters)])
    give_gradients(parameters, 0)
    before = {name: p.grad.clone() for name, p in parameters.items()}
    optimizer.step()
    assert all(torch.equal(parameters[name].grad, before[name]) for name in parameters)


def test_a_parameter_that_comes_later_has_counters_of_its_own() -> None:
    parameters = named()
    optimizer = build_schedule_free(ScheduleFreeOptions(lr=0.01), CONTEXT, [group_of(parameters)])
    late = parameters["head.weight"]
    for step in range(4):
        give_gradients(parameters, step)
        if step < 3:
            late.grad = None
        before = late.detach().clone()
        optimizer.step()
    torch.testing.assert_close((before - late.detach()).abs(), torch.full_like(before, 0.01), rtol=1e-3, atol=1e-5)
    assert float(optimizer.state[late]["step"]) == 1
