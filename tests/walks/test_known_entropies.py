"""Sources of known entropy: what can be learnt is learnt, and noise is never predicted better than it can be, whatever the task."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fresh_draws import fresh_generator, standard_error
from tiny_walks import base, drive, losses, machine_of

SYMBOLS, CLASSES, STEPS, ROWS = 8, 3, 60, 32


def _drawn(generator: torch.Generator, *shape: int, below: int = SYMBOLS) -> torch.Tensor:
    return torch.randint(below, (STEPS * ROWS, *shape), generator=generator)


def _noise(task: dict[str, Any], generator: torch.Generator, arrays: dict[str, torch.Tensor], **model: Any) -> dict[str, Any]:
    parts = {
        "embedding": {"use": "transformer.token", "vocab": SYMBOLS + 1},
        "rack": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    }
    return base(
        run={"name": "noise", "seed": 3, "horizon": f"{STEPS} steps", "device": "cpu"},
        task={**task, "use": f"transformer.{task['use']}"},
        data={"sources": {"a": {"use": "data.memory", "arrays": arrays, "repeat": False}}, "batch_size": ROWS, "seq_len": 8},
        model={**parts, **model},
        optimizer={"use": "optim.adamw", "lr": 0.02},
    )


def _causal(generator: torch.Generator) -> dict[str, Any]:
    return _noise({"use": "causal-lm"}, generator, {"tokens": _drawn(generator, 9)})


def _prefix(generator: torch.Generator) -> dict[str, Any]:
    return _noise({"use": "seq2seq"}, generator, {"tokens": _drawn(generator, 9), "prefix": torch.full((STEPS * ROWS,), 3)})


def _memory(generator: torch.Generator) -> dict[str, Any]:
    rack = {"use": "transformer.encoder-decoder", "width": 16, "heads": 2, "stacks": [{"s": 1}, {"t": 1}], "encoder": ["s"]}
    arrays = {"prompt": _drawn(generator, 8), "response": _drawn(generator, 8)}
    return _noise({"use": "seq2seq", "form": "encoder-decoder"}, generator, arrays, rack=rack)


def _classes(generator: torch.Generator) -> dict[str, Any]:
    arrays = {"tokens": _drawn(generator, 8), "label": _drawn(generator, below=CLASSES)}
    return _noise({"use": "classification"}, generator, arrays, head={"use": "transformer.classifier", "classes": CLASSES})


def _pairs(method: str) -> Any:
    def make(generator: torch.Generator) -> dict[str, Any]:
        arrays = {"chosen": _drawn(generator, 9), "rejected": _drawn(generator, 9), "prefix": torch.full((STEPS * ROWS,), 3)}
        return _noise({"use": "preference", "method": method}, generator, arrays)

    return make


FLOORS: dict[str, tuple[Any, float]] = {
    "causal-lm": (_causal, math.log(SYMBOLS)),
    "seq2seq prefix": (_prefix, math.log(SYMBOLS)),
    "seq2seq memory": (_memory, math.log(SYMBOLS)),
    "classification": (_classes, math.log(CLASSES)),
    # both responses are drawn alike, so margins lie around 0, and -log σ is convex: its mean is no less than its value at 0
    "preference dpo": (_pairs("dpo"), math.log(2)),
    "preference simpo": (_pairs("simpo"), 0.974077),
    "preference orpo": (_pairs("orpo"), math.log(SYMBOLS) + 0.1 * math.log(2)),
}
"""Masked language modelling, diffusion and cut spans have theirs beside their other proofs."""


@pytest.mark.parametrize("name", FLOORS)
def test_noise_is_never_predicted_better_than_it_can_be(name: str) -> None:
    """Rows that are each seen once: before a step its loss is one of unseen rows."""
    make, floor = FLOORS[name]
    found = torch.tensor([loss for _, loss, _, _ in losses(drive(machine_of(make(fresh_generator()))))][STEPS // 3 :])
    assert float(found.mean()) > floor - 5 * standard_error(found)
    assert float(found.mean()) < floor + 0.3  # and it has come near


def test_a_source_of_order_two_is_learnt_to_its_entropy_and_no_further() -> None:
    """The next of three symbols is the one before the last with probability 0.8, the others have 0.1 each: the last alone tells nothing."""
    generator, rows, length, steps = fresh_generator(), 64, 24, 200
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.1)
    tokens = torch.randint(3, (steps * rows, length + 1), generator=generator)
    strays = torch.tensor([0.8, 0.1, 0.1]).multinomial(tokens.numel(), replacement=True, generator=generator).view_as(tokens)
    for place in range(2, length + 1):
        tokens[:, place] = (tokens[:, place - 2] + strays[:, place]) % 3
    config = base(
        run={"name": "order", "seed": 3, "horizon": f"{steps} steps", "device": "cpu"},
        data={
            "sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}, "repeat": False}},
            "batch_size": rows,
            "seq_len": length,
        },
        model={
            "embedding": {"use": "transformer.token", "vocab": 3, "init_std": 0.1},
            "rack": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm"},
        },
        optimizer={"use": "optim.adamw", "lr": {"wsd": {"peak": 0.02, "warmup": "5%", "decay": "40%"}}},
    )
    found = torch.tensor([loss for _, loss, _, _ in losses(drive(machine_of(config)))][-20:])
    expected = (math.log(3) + (length - 1) * entropy) / length  # nothing tells the second symbol of a row
    assert expected - 5 * standard_error(found) < float(found.mean()) < 1.08 * expected < 0.75 * math.log(3)
