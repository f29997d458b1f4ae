"""Whether blocks that were grown do any work once they are trained."""

from __future__ import annotations

import json
import logging
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import machine_of

pytestmark = pytest.mark.rare
DEPTH, GROWN, STEPS = 2, 4, 900


def text() -> torch.Tensor:
    """The bytes of some modules of the standard library."""
    files = sorted(path for module in (json, logging, unittest) for path in Path(module.__file__).parent.glob("*.py"))
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in files)), dtype=torch.uint8).long()


def trained(operator: str, tokens: torch.Tensor) -> Any:
    rack = {"use": "transformer.decoder", "width": 32, "heads": 4, "init_std": 0.05}
    config = {
        "run": {"name": "ablation", "seed": 0, "horizon": f"{STEPS} steps", "device": "cpu", "probe": False},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}}}, "batch_size": 8, "seq_len": 64},
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 256},
            "rack": {**rack, "stacks": [{"base": DEPTH}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 1e-2, "warmup": "5%", "decay": "20%"}}, "weight_decay": 0.1},
        "phases": {
            "shallow": {"until": "40%"},
            "deep": {"model": {"rack": {"stacks": [{"base": GROWN}]}}, "enter": {"growth": {"use": f"transformer.{operator}"}}},
        },
    }
    machine = machine_of(config)
    for _ in machine.train():
        pass
    return machine.model.model.eval()


def loss(model: Any, tokens: torch.Tensor) -> float:
    rows = tokens[: 64 * 65].view(64, 65)
    with torch.no_grad():
        logits = model({"tokens": rows[:, :-1]})["logits"]
    return float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))


def ablated(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """Loss on held-out bytes, and with the grown blocks made the identity."""
    whole = loss(model, tokens)
    with torch.no_grad():
        for i in range(DEPTH, GROWN):
            for output in ("attention.output", "mlp.down"):
                model.get_parameter(f"rack.stacks.base.{i}.{output}.weight").zero_()
    return whole, loss(model, tokens)


@pytest.mark.parametrize("operator", ["stack", "identity"])
def test_ablating_the_grown_blocks_raises_the_loss(operator: str, record_property: Any) -> None:
    tokens = text()
    held_out = len(tokens) // 10
    whole, without = ablated(trained(operator, tokens[held_out:]), tokens[:held_out])
    record_property(f"{operator}: loss, ablated", f"{whole:.3f}, {without:.3f} ({without / whole - 1:+.1%})")
    print(f"{operator}: {whole:.3f} -> {without:.3f} ({without / whole - 1:+.1%})")
    shares = torch.bincount(tokens) / len(tokens)
    assert whole < 0.95 * float(torch.special.entr(shares).sum())  # it reads more than the frequencies of single bytes
    if operator == "stack":
        assert without > 1.01 * whole
