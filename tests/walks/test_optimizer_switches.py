"""A change of the optimizer at a boundary against two-stage scripts in plain torch, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import base, machine_of
from torch import nn

from stackwise import PhaseEntered, StepDone

LR, DECAY = 0.01, 0.1
MUON_LR = 0.01
SPLIT, STEPS = 5, 10
SGD_LR, MOMENTUM = 0.05, 0.9

Script = Callable[[dict[str, nn.Parameter], int, dict[str, dict[str, torch.Tensor]]], None]
"""One update by hand: (parameters with gradients, steps since the optimizer began, what it remembers)."""


def decays(name: str, parameter: torch.Tensor) -> float:
    return DECAY if parameter.dim() >= 2 and not name.startswith("embedding.") else 0.0


@torch.no_grad()
def adamw(parameters: dict[str, nn.Parameter], memory: dict[str, dict[str, torch.Tensor]]) -> None:
    """Algorithm 2 of arXiv 1711.05101."""
    beta1, beta2 = 0.9, 0.95
    for name, p in parameters.items():
        assert p.grad is not None
        own = memory.setdefault(name, {})
        own["n"] = own.get("n", torch.zeros(())) + 1
        own["m"] = beta1 * own.get("m", torch.zeros_like(p)) + (1 - beta1) * p.grad
        own["v"] = beta2 * own.get("v", torch.zeros_like(p)) + (1 - beta2) * p.grad**2
        m, v = own["m"] / (1 - beta1 ** own["n"]), own["v"] / (1 - beta2 ** own["n"])
        p.mul_(1 - LR * decays(name, p))
        p.sub_(LR * m / (v.sqrt() + 1e-8))


@torch.no_grad()
def sgd(parameters: dict[str, nn.Parameter], memory: dict[str, dict[str, torch.Tensor]]) -> None:
    for name, p in parameters.items():
        assert p.grad is not None
        own = memory.setdefault(name, {})
        own["b"] = MOMENTUM * own.get("b", torch.zeros_like(p)) + p.grad
        p.mul_(1 - SGD_LR * decays(name, p))
        p.sub_(SGD_LR * own["b"])


@torch.no_grad()
def lion(parameters: dict[str, nn.Parameter], memory: dict[str, dict[str, torch.Tensor]]) -> None:
    """Algorithm 2 of arXiv 2302.06675."""
    for name, p in parameters.items():
        assert p.grad is not None
        own = memory.setdefault(name, {})
        m = own.get("m", torch.zeros_like(p))
        p.mul_(1 - LR * decays(name, p))
        p.sub_(LR * torch.sign(0.9 * m + 0.1 * p.grad))
        own["m"] = 0.99 * m + 0.01 * p.grad


@torch.no_grad()
def muon(parameters: dict[str, nn.Parameter], memory: dict[str, dict[str, torch.Tensor]]) -> None:
    """Jordan et al. 2024 for matrices of the rack, AdamW for the rest."""
    hidden = {name: p for name, p in parameters.items() if name.startswith("rack.") and p.dim() == 2}
    adamw({name: p for name, p in parameters.items() if name not in hidden}, memory)
    for name, p in hidden.items():
        assert p.grad is not None
        own = memory.setdefault(name, {})
        own["m"] = 0.95 * own.get("m", torch.zeros_like(p)) + 0.05 * p.grad
        x = 0.05 * p.grad + 0.95 * own["m"]
        tall = x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / x.norm().clamp(min=1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if tall else x
        p.mul_(1 - MUON_LR * DECAY)
        p.sub_(MUON_LR * max(1.0, x.shape[0] / x.shape[1]) ** 0.5 * x)


SECOND: dict[str, tuple[dict[str, Any], Any, tuple[str, ...]]] = {
    "sgd": ({"use": "optim.sgd", "lr": SGD_LR, "momentum": MOMENTUM, "weight_decay": DECAY}, sgd, ()),
    "lion": ({"use": "optim.lion", "lr": LR, "weight_decay": DECAY, "beta1": 0.9, "beta2": 0.99}, lion, ("m",)),
    "muon": (
        {"use": "optim.muon", "lr": MUON_LR, "weight_decay": DECAY, "momentum": 0.95, "adamw_lr": LR, "adamw_weight_decay": DECAY},
        muon,
        ("m", "v", "n"),
    ),
}
"""Config, script, and what the second stage takes over from AdamW's memory where moments are copied."""


@pytest.fixture(params=[(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """The largest difference of a weight, while models are built in a precision. In float32 Muon's polynomial multiplies the rounding of
    each step by up to 3.4445^5, which is the order of sums and not the rule: float64 shows the rule."""
    dtype, allowed = request.param
    torch.set_default_dtype(dtype)
    yield allowed
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("moments", ["copy", "reset"])
@pytest.mark.parametrize("name", SECOND)
def test_the_machine_agrees_with_a_script_of_two_stages(name: str, moments: str, tolerance: float) -> None:
    config, second, shared = SECOND[name]
    first = {"use": "optim.adamw", "lr": LR, "weight_decay": DECAY}
    phases = {"one": {"until": f"{SPLIT} steps"}, "two": {"optimizer": config, "enter": {"moments": moments}}}
    run = {"name": "switch", "seed": 3, "horizon": f"{STEPS} steps", "device": "cpu"}
    machine = machine_of(base(run=run, optimizer=first, phases=phases))
    batches: list[Any] = []
    take = machine.data.batches
    machine.data.batches = lambda moment: batches.append(take(moment)) or batches[-1]  # type: ignore[method-assign,func-returns-value]
    twin: dict[str, nn.Parameter] = {}
    memory: dict[str, dict[str, torch.Tensor]] = {}
    for event in machine.train():
        if not isinstance(event, PhaseEntered | StepDone):
            continue
        own = dict(machine.model.model.named_parameters())
        if isinstance(event, PhaseEntered) and not event.phase_index:
            twin = {n: nn.Parameter(p.detach().clone()) for n, p in own.items()}
        if isinstance(event, PhaseEntered) and event.phase_index:
            memory = {n: {k: v for k, v in own.items() if k in shared} for n, own in memory.items()} if moments == "copy" else {}
        if isinstance(event, StepDone):
            _gradients(machine, twin, batches[-1][0]["tokens"])
            (adamw if event.step < SPLIT else second)(twin, memory)
            for n, p in own.items():
                difference = float((p.detach() - twin[n].detach()).abs().max())
                assert difference <= tolerance, (n, event.step, difference)


def _gradients(machine: Any, twin: dict[str, nn.Parameter], tokens_BT: torch.Tensor) -> None:
    weights = {"head.weight": twin["embedding.weight"], **twin}
    logits_BTV = torch.func.functional_call(machine.model.model, weights, ({"tokens": tokens_BT[:, :-1]},))["logits"]
    loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten(), reduction="sum")
    share = torch.full_like(loss, 1.0 / tokens_BT[:, 1:].numel())
    for parameter, grad in zip(twin.values(), torch.autograd.grad(loss, list(twin.values()), share), strict=True):
        parameter.grad = grad
