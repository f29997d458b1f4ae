"""Training with parameters in sixteen bits: as in float32 but for rounding, saved and resumed to the bit, refused where it cannot work."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_walks import base, drive, losses, machine_of, memory, weights
from torch import nn

import stackwise
from stackwise import Built, StepDone, UserError

NARROW = ["bfloat16", "float16"]


def config(dtype: str | None, **sections: Any) -> dict[str, Any]:
    model = {**base()["model"], **({} if dtype is None else {"precision": {"rack": dtype}})}
    return base(model=model, **sections)


@pytest.mark.parametrize("dtype", NARROW)
def test_small_updates_of_norm_gains_are_not_lost(dtype: str) -> None:
    """At 1.0 an update of 1e-4 is below half an ulp of both; 12 of Adam's in one direction would be 1.2e-3 in float32."""
    runs = []
    for precision in (None, dtype):
        machine = machine_of(config(precision, optimizer={"use": "optim.adamw", "lr": 1e-4, "weight_decay": 0.0}))
        drive(machine)
        learning = machine.optimizer.learning
        runs.append(torch.cat([p.detach().flatten() for name, p in learning.items() if name.startswith("rack") and "norm" in name]))
    wide, narrow = runs
    assert bool((narrow != 1).all()) and narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=0, atol=5e-4)
    held = {name: p.detach() for name, p in machine.model.model.named_parameters() if name in learning}  # what a module shows is rounded:
    assert all(torch.equal(held[name], p.detach().to(held[name].dtype)) for name, p in learning.items())  # 1 where it moved less than that


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_restored_run_goes_on_to_the_bit(dtype: str, stop: int) -> None:
    deep = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}
    optimizer = {"use": "optim.adamw", "lr": 1e-3, "ema": {"decay": 0.9}}
    declared = config(dtype, optimizer=optimizer, phases={"one": {"until": "6 steps"}, "two": deep})
    machine, saved = machine_of(declared), None
    events = []
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop:
            saved = deepcopy(machine.state())
    resumed = machine_of(declared)
    assert saved is not None
    resumed.restore(saved)
    assert losses(drive(resumed)) == losses(events)[stop + 1 :]
    assert all(torch.equal(tensor, weights(machine)[name]) for name, tensor in weights(resumed).items())
    assert resumed.optimizer.average is not None and machine.optimizer.average is not None
    ours, theirs = resumed.optimizer.average.state_by_name(), machine.optimizer.average.state_by_name()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_micro_batches_in_float16_give_the_gradient_of_the_whole_batch() -> None:
    norms = []
    for rows, accumulate in ((8, 1), (2, 4)):
        data = {"sources": {"a": memory()}, "batch_size": rows, "accumulate": accumulate, "seq_len": 64}
        done = losses(drive(machine_of(config("float16", data=data))))
        norms.append(done[0][2])
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)


def test_an_overflow_skips_its_step_halves_the_scale_and_training_goes_on() -> None:
    machine = machine_of(config("float16"))
    skipped = []
    for event in machine.train():
        if isinstance(event, stackwise.PhaseEntered):
            assert machine.optimizer.loss_scale is not None
            machine.optimizer.loss_scale.factor = 2.0**24
        if isinstance(event, StepDone) and event.skipped:
            skipped.append(event.step)
    assert machine.optimizer.loss_scale is not None
    assert skipped == list(range(len(skipped))) and len(skipped) > 3  # more than `halt_after` in a row
    assert machine.optimizer.loss_scale.factor == 2.0 ** (24 - len(skipped))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8, sparse=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.table(tokens)
        return hidden


def test_sparse_gradients_closures_and_functions_of_time_are_refused_with_what_to_write() -> None:
    model = {**base()["model"], "embedding": Built(Sparse), "head": {"use": "transformer.lm", "tied": False, "vocab": 16}}
    with pytest.raises(UserError, match="sparse=False"):
        drive(machine_of(base(model=model)))
    with pytest.raises(UserError, match="AdamW or SGD"):
        drive(machine_of(base(optimizer=Built(torch.optim.LBFGS, lr=0.1))))
    with pytest.raises(UserError, match="is written as a schedule"):
        machine_of(base(optimizer=Built(torch.optim.AdamW, lr=lambda t: 1e-3)))
