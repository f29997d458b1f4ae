"""Lion against the paper and against a published library."""

from __future__ import annotations

import torch
from pytorch_optimizer import Lion
from small_parameters import CONTEXT, assert_same_steps, give_gradients, group_of, named

from stackwise_providers_optim.lion import build_lion
from stackwise_providers_optim.options import LionOptions


def test_it_is_the_published_one() -> None:
    mine, yours = named(), named()
    ours = build_lion(LionOptions(lr=1e-2, weight_decay=0.3, beta1=0.8, beta2=0.95, decay="all"), CONTEXT, [group_of(mine)])
    assert_same_steps(ours, Lion(list(yours.values()), lr=1e-2, weight_decay=0.3, betas=(0.8, 0.95)), mine, yours)


def test_steps_are_those_of_the_algorithm() -> None:
    """arXiv 2302.06675, algorithm 2, in double precision."""
    mine = named(dtype=torch.float64)
    theirs = {name: p.detach().clone() for name, p in mine.items()}
    average = {name: torch.zeros_like(p) for name, p in theirs.items()}
    optimizer = build_lion(LionOptions(lr=0.01, weight_decay=0.5), CONTEXT, [group_of(mine)])
    for step in range(20):
        give_gradients(mine, step)
        optimizer.step()
        for name, x in theirs.items():
            gradient, decay = mine[name].grad, 0.5 if x.ndim > 1 and not name.startswith("embedding") else 0.0
            update = torch.sign(0.9 * average[name] + 0.1 * gradient)
            theirs[name] = x - 0.01 * (update + decay * x)
            average[name] = 0.99 * average[name] + 0.01 * gradient
            torch.testing.assert_close(mine[name].detach(), theirs[name], rtol=1e-12, atol=1e-12)
