"""Optimizers of torch without its compiler: the same numbers, the same hooks, and no import of the compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from stackwise_providers_optim.eager import AdamW

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1, "fused": True}

WITHOUT_THE_COMPILER = """
import sys, torch
from stackwise_providers_optim.eager import AdamW
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], fused=True)
weight.square().sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.AdamW]) -> tuple[torch.Tensor, dict[str, Any], list[str]]:
    torch.manual_seed(0)
    weight, heard = torch.nn.Parameter(torch.randn(4, 3)), list[str]()
    optimizer = kind([weight], **SETTINGS)
    optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    optimizer.register_step_post_hook(lambda *_: heard.append("after"))
    for _ in range(5):
        optimizer.zero_grad()
        (weight.sin() * torch.arange(12.0).view(4, 3)).sum().backward()
        optimizer.step()
    return weight.detach(), optimizer.state_dict(), heard


def test_it_computes_what_torchs_does_and_runs_each_hook_once() -> None:
    torchs, ours = trained(torch.optim.AdamW), trained(AdamW)
    assert torch.equal(torchs[0], ours[0])
    assert torchs[1]["param_groups"] == ours[1]["param_groups"]
    assert all(torch.equal(torchs[1]["state"][0][name], value) for name, value in ours[1]["state"][0].items())
    assert ours[2] == torchs[2] == ["before", "after"] * 5


def test_it_has_the_name_by_which_checkpoints_know_it() -> None:
    assert AdamW.__name__ == torch.optim.AdamW.__name__


def test_a_closure_is_called_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([weight], lr=0.1)

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (weight < 1).all()


def test_none_of_its_methods_imports_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_THE_COMPILER], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "False", done.stdout
