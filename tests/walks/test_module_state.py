"""Buffers of all kinds in a module of one's own: saved and resumed, left out of files of weights by name, or never held against it."""

from __future__ import annotations

import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import stackwise
from stackwise import Built, Loss, StepDone, UserError
from stackwise.saved.export import refuse_unheld

STEPS = 4
Batches = list[dict[str, torch.Tensor]]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.map(x)
        return y


class Masked(Plain):
    """A mask with infinities, one that its first use makes, one with nan, a view of a larger tensor, one that repeats its memory."""

    made: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("passing", torch.tensor([float("-inf"), 1.0]), persistent=False)
        self.register_buffer("gaps", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("repeated", torch.ones(1).expand(4))
        self.register_buffer("turning", torch.tensor([1 + 1j, float("inf") + 0j]))
        self.register_buffer("made", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.made is None:
            self.made = torch.full((3, 3), float("-inf")).triu(1)
        return super().forward(x) @ (self.mask + self.made).softmax(1)


class Counting(Plain):
    """A buffer that no file of weights holds, and that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x) * (1 + 0.1 * self.calls)


class Breaking(Plain):
    """A buffer that is finite at first, and not any more after the second step."""

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones((), dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.level = self.level * 1e30
        return super().forward(x)


def declared(model: Any, **changes: Any) -> stackwise.Experiment:
    generator = torch.Generator().manual_seed(0)
    batches: Batches = [{"x": x, "y": x.flip(1)} for x in torch.randn(STEPS, 4, 3, generator=generator)]
    run = {"name": "state", "horizon": f"{STEPS} steps", "checkpoint": {"every": "1 steps"}}
    return stackwise.experiment(
        **{
            "run": run,
            "task": Loss(mse_loss, "y"),
            "data": batches,
            "model": model,
            "optimizer": Built(torch.optim.SGD, lr=0.01),
            **changes,
        }
    )


def finished(experiment: stackwise.Experiment, directory: Path) -> str:
    stream = io.StringIO()
    stackwise.run(experiment, output=directory, stream=stream)
    return stream.getvalue()


def described(directory: Path) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((directory / "final" / "weights.json").read_text())
    return description


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_a_mask_of_infinities_is_saved_and_resumed(tmp_path: Path) -> None:
    experiment = declared(Built(Masked))
    finished(experiment, tmp_path / "run")
    assert len(events(tmp_path / "run", "checkpoint_saved")) == STEPS and events(tmp_path / "run", "checkpoint_refused") == []
    assert described(tmp_path / "run")["unheld"] == []
    machine = stackwise.assemble(declared(Built(Masked)))
    losses, state = [], None
    for event in machine.train():
        if isinstance(event, StepDone):
            losses.append(event.loss)
            state = deepcopy(machine.state()) if event.step == 1 else state
    again = stackwise.assemble(declared(Built(Masked)))
    assert state is not None
    again.restore(state)
    assert [event.loss for event in again.train() if isinstance(event, StepDone)] == losses[2:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_buffer_that_becomes_infinite_skips_its_step(dtype: torch.dtype) -> None:
    machine = stackwise.assemble(declared(Built(Breaking, dtype=dtype)))
    skipped = []
    with pytest.raises(stackwise.TrainingHalted):
        for event in machine.train():
            if isinstance(event, StepDone):
                skipped.append(bool(event.skipped))
    assert skipped == [False, True, True, True]  # 1e30, then 1e60, three times over


def test_a_buffer_that_was_built_infinite_and_changes_is_never_saved_as_good(tmp_path: Path) -> None:
    class Moving(Masked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.gaps = self.gaps + 1
            return super().forward(x)

    finished(declared(Built(Moving)), tmp_path / "run")
    assert len(events(tmp_path / "run", "checkpoint_refused")) == STEPS and events(tmp_path / "run", "checkpoint_saved") == []


def test_what_a_file_of_weights_leaves_out_is_named(tmp_path: Path) -> None:
    log = finished(declared(Built(Counting)), tmp_path / "first")
    assert described(tmp_path / "first")["unheld"] == ["rack.calls"] and "rack.calls" in log
    with pytest.raises(UserError, match=r"rack\.calls"):
        refuse_unheld(described(tmp_path / "first"), tmp_path)
    machine = stackwise.assemble(declared({"module": Built(Counting), "start": {"from": str(tmp_path / "first")}}))
    notes = [note for event in machine.train() if hasattr(event, "bridges") for note in event.bridges]
    assert [note for note in notes if "rack.calls" in note]


def test_values_that_follow_time_are_no_state(tmp_path: Path) -> None:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]}
    rack["dropout"] = {"linear": {"from": 0.4, "to": 0.1}}
    model = {"embedding": {"use": "transformer.token", "vocab": 8}, "rack": rack, "head": {"use": "transformer.lm"}}
    tokens = [{"tokens": torch.arange(10).view(2, 5) % 8}] * STEPS
    finished(declared(model, data=tokens, task={"use": "transformer.causal-lm"}), tmp_path / "run")
    assert described(tmp_path / "run")["unheld"] == []
    stackwise.load_exported(tmp_path / "run" / "final")
