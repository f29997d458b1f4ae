"""The rack of convolutions: who reaches whom, and documents that stay apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import base, boundaries, losses, machine_of, memory, problems_of

from stackwise import BuildContext, UserError
from stackwise_providers_transformer.conv import Conv, build_conv
from stackwise_providers_transformer.rack_options import ConvOptions

LENGTHS = (5, 3, 8)


def _conv(**options: Any) -> Conv:
    torch.manual_seed(0)
    return build_conv(ConvOptions(**{"width": 6, "stacks": [{"base": 2}], "kernel": 3, "init_std": 0.5, **options}), BuildContext(seed=0))


def _hidden(rows: int = 2, time: int = 16) -> torch.Tensor:
    return torch.randn(rows, time, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("context", "before", "after"), [("bidirectional", 2, 2), ("causal", 4, 0), (None, 2, 2)])
def test_a_position_reaches_as_far_as_two_kernels(context: str | None, before: int, after: int) -> None:
    rack, hidden = _conv(context=context), _hidden(1)
    changed = hidden.clone()
    changed[0, 8] += torch.arange(6.0)  # not the same in all features: a layer norm would take that away
    moved = (rack(hidden) != rack(changed)).any(-1)[0].nonzero().flatten().tolist()
    assert moved == list(range(8 - after, 8 + before + 1))


@pytest.mark.parametrize("context", ["bidirectional", "causal"])
@pytest.mark.parametrize("how", ["segments", "mask"])
def test_parts_of_a_row_are_what_they_are_apart(context: str, how: str) -> None:
    rack, hidden = _conv(context=context), _hidden()
    if how == "segments":
        segments = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)).expand(2, 16)
        whole = rack(hidden, segments=segments)
        apart = torch.cat([rack(part) for part in hidden.split(LENGTHS, dim=1)], dim=1)
    else:
        mask = torch.arange(16).expand(2, 16) < 11
        whole, apart = rack(hidden, mask=mask)[:, :11], rack(hidden[:, :11])
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)


def test_one_part_is_the_whole_row_by_both_ways_of_computing() -> None:
    rack, hidden = _conv(kernel=7), _hidden()
    torch.testing.assert_close(rack(hidden), rack(hidden, segments=torch.zeros(2, 16, dtype=torch.int64)))


def test_a_kernel_longer_than_the_row() -> None:
    rack = _conv(kernel=9)
    whole, marked = rack(_hidden(1, 3)), rack(_hidden(1, 3), mask=torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(whole, marked)


def test_options_that_cannot_be() -> None:
    with pytest.raises(UserError, match="kernel: 4 positions cannot stand evenly"):
        ConvOptions(width=4, stacks=[{"base": 1}], kernel=4, context="bidirectional")
    assert _conv(kernel=4, context="causal").offsets == (-3, -2, -1, 0)


def test_identity_growth_keeps_the_function() -> None:
    rack = {"use": "transformer.conv", "width": 8, "stacks": [{"base": 1}]}
    config = base(
        data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": 8},
        model={"embedding": {"use": "transformer.token", "vocab": 16}, "rack": rack, "head": {"use": "transformer.lm"}},
        phases={
            "one": {"until": "6 steps"},
            "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}},
        },
    )
    assert problems_of(config) == ()
    machine = machine_of(config)
    tokens = {"tokens": torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(0))}
    outputs = []
    for event in machine.train():
        if type(event).__name__ == "PhaseEntered" or (type(event).__name__ == "StepDone" and event.step == 5):
            outputs.append(machine.model.model(tokens)["logits"].detach().clone())
    assert torch.equal(outputs[1], outputs[2])
    assert machine.model.model.rack.options.causal
    (found,) = boundaries(machine_of(config))
    assert found[1].adopted > 0
    assert len(losses(list(machine_of(config).train()))) == 12
