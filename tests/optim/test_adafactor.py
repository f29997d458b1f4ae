"""Adafactor against the paper."""

from __future__ import annotations

import torch
from small_parameters import CONTEXT, give_gradients, group_of, named
from torch import Tensor

from stackwise_providers_optim.adafactor import build_adafactor
from stackwise_providers_optim.options import AdafactorOptions


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def test_steps_are_those_of_the_algorithm() -> None:
    """arXiv 1804.04235, algorithms 4 and 5, in double precision: relative steps, clipped updates, rows times columns."""
    mine = named(dtype=torch.float64)
    theirs = {name: p.detach().clone() for name, p in mine.items()}
    rows, columns, whole = (dict.fromkeys(mine, 0.0) for _ in range(3))
    options = AdafactorOptions(lr=0.3, weight_decay=0.01, beta2_decay=-0.7, eps1=1e-30, eps2=1e-2, clip_threshold=1.5)
    optimizer = build_adafactor(options, CONTEXT, [group_of(mine)])
    for step in range(1, 26):
        give_gradients(mine, step)
        optimizer.step()
        beta2, relative = 1 - step**-0.7, min(0.3, step**-0.5)
        for name, x in theirs.items():
            squared = mine[name].grad.square()
            if x.ndim == 2:
                rows[name] = beta2 * rows[name] + (1 - beta2) * squared.mean(1, keepdim=True)
                columns[name] = beta2 * columns[name] + (1 - beta2) * squared.mean(0, keepdim=True)
                second = rows[name] * columns[name] / rows[name].mean()
            else:
                second = whole[name] = beta2 * whole[name] + (1 - beta2) * squared
            update = mine[name].grad / second.sqrt()
            update = update / max(1.0, float(_rms(update)) / 1.5)
            decay = 0.01 if x.ndim > 1 and not name.startswith("embedding") else 0.0
            theirs[name] = x - 0.3 * decay * x - relative * max(1e-2, float(_rms(x))) * update
            torch.testing.assert_close(mine[name].detach(), theirs[name], rtol=1e-6, atol=1e-6)


def test_matrices_and_vectors_say_what_they_keep() -> None:
    parameters = named()
    optimizer = build_adafactor(AdafactorOptions(), CONTEXT, [group_of(parameters)])
    give_gradients(parameters, 0)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            matrix = parameter.ndim > 1
            assert set(optimizer.state[parameter]) == {"step", *(("row_var", "col_var") if matrix else ("variance",))}
            assert group["moments"] == ({} if matrix else {"variance": 2, "step": 0})
