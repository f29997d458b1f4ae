"""One run whose data change in every way at once, and the digest of what it reads and learns."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from tiny_walks import VOCAB, base, plan_of, watch_batches, weights

import stackwise


def busy(**run: Any) -> dict[str, Any]:
    """Three sources that come and go, weights and lengths that follow time, noise: a few epochs of each in 24 steps."""
    draw = torch.Generator().manual_seed(5)
    tokens = {name: {"tokens": torch.randint(VOCAB, (size,), generator=draw)} for name, size in (("a", 150), ("b", 90))}
    rows = {"tokens": torch.randint(VOCAB, (11, 9), generator=draw)}
    source = {name: {"use": "data.memory", "arrays": arrays, "heldout": 0.2} for name, arrays in {**tokens, "c": rows}.items()}
    return base(
        run={"name": "busy", "seed": 11, "horizon": "24 steps", "device": "cpu", **run},
        data={
            "sources": {"a": source["a"], "b": source["b"]},
            "mix": {"a": {"linear": {"from": 1, "to": 0.1}}, "b": {"linear": {"from": 0.1, "to": 1}}},
            "batch_size": 3,
            "seq_len": {"piecewise": {"values": {"0%": 4, "30%": 6, "60%": 8}}},
            "step_tokens": 40,
            "transforms": [{"use": "data.token-noise", "rate": {"linear": {"from": 0.5, "to": 0}}, "vocab": VOCAB}],
        },
        phases={
            "two": {"until": "40%"},
            "three": {"until": "70%", "data": {"sources": {"c": source["c"]}, "mix": {"c": 1}}},
            "back": {"data": {"sources": {"a": None}, "mix": {"a": None}, "batch_size": 5}},
        },
    )


def digest(config: Mapping[str, Any]) -> str:
    """Everything that was read and everything that was learnt, bit for bit."""
    machine = stackwise.assemble(plan_of(config))
    read = sha256()

    def see(step: int, batches: list[Any]) -> None:
        for batch in batches:
            for name, tensor in batch.items():
                read.update(f"{step} {name} {list(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())

    watch_batches(machine, see)
    for event in machine.train():
        if isinstance(event, stackwise.StepDone):
            read.update(f"{event.step} {event.loss!r} {event.grad_norm!r}".encode())
    for name, tensor in weights(machine).items():
        read.update(name.encode() + tensor.numpy().tobytes())
    return read.hexdigest()


if __name__ == "__main__":
    print(digest(busy()))
