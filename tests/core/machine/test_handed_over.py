"""A finished object that has trained in this process begins the next run trained, and the run says so."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import stackwise
from stackwise import Built, Loss, Model, PhaseSchedule, RunStarted, TrainingMachine
from stackwise.builtin.loss import LossTask
from stackwise.runs.run import run

ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
BATCHES = [{"x": ROWS, "y": ROWS.flip(1)}]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def declared(model: object, steps: int = 2) -> stackwise.Experiment:
    return stackwise.experiment(
        run={"name": "again", "seed": 1, "horizon": f"{steps} steps", "device": "cpu", "checkpoint": {"every": "1 steps"}},
        data=BATCHES,
        model=model,
        task=Loss(mse_loss, "y"),
        optimizer=Built(torch.optim.SGD, lr=0.1),
    )


def notes(machine: TrainingMachine) -> list[str]:
    (started,) = [event for event in machine.train() if isinstance(event, RunStarted)]
    return list(started.notes)


def test_a_module_that_has_trained_begins_with_what_it_learnt_and_that_is_said() -> None:
    net = Net()
    first = deepcopy(net.state_dict())
    assert notes(stackwise.assemble(declared(net))) == []
    (note,) = notes(stackwise.assemble(declared(net)))
    assert note.startswith("rack: the Net")
    net.load_state_dict(first)
    assert notes(stackwise.assemble(declared(net))) == []


def test_what_is_built_or_new_begins_as_it_is_built() -> None:
    for model in (Built(Net), Built(Net)):
        assert notes(stackwise.assemble(declared(model))) == []
    for _ in range(2):
        assert notes(stackwise.assemble(declared(Net()))) == []


def test_a_frozen_part_of_an_earlier_run_is_said_too() -> None:
    net = Net()
    machine = stackwise.assemble(
        stackwise.experiment(
            run={"seed": 1, "horizon": "1 steps", "device": "cpu"},
            data=BATCHES,
            model={"module": net, "freeze": ["rack.layer.bias"]},
            task=Loss(mse_loss, "y"),
            optimizer=Built(torch.optim.SGD, lr=0.0),
        )
    )
    assert notes(machine) == [] and not net.layer.bias.requires_grad
    assert len(notes(stackwise.assemble(declared(net)))) == 1


def test_a_machine_says_it_of_its_parts_in_a_new_whole_and_of_the_optimizer() -> None:
    class Embedding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Head(nn.Module):
        def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"output": hidden}

    parts = Embedding(4, 4), nn.Linear(4, 4), Head()
    told = []
    optimizer = None
    for _ in range(2):
        model = Model(*parts)
        optimizer = optimizer or torch.optim.Adam(model.parameters())
        task = LossTask(mse_loss, ["y"], {})
        told.append(
            notes(TrainingMachine(model=model, data=BATCHES, task=task, optimizer=optimizer, schedule=PhaseSchedule.single(steps=2)))
        )
    assert told[0] == [] and [note.partition(":")[0] for note in told[1]] == ["model", "the optimizer"]


def test_a_resume_in_this_process_is_no_second_run_and_a_run_after_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = Net()
    run(declared(net), output=tmp_path / "one", quiet=True)
    assert "began a run" not in (tmp_path / "one" / "events.jsonl").read_text()
    run(declared(net, 3), output=tmp_path / "one", resume="must", quiet=True)
    assert "began a run" not in (tmp_path / "one" / "events.jsonl").read_text()
    fresh = Net()
    run(declared(fresh, 4), output=tmp_path / "one", resume="must", quiet=True)  # as another process would
    run(declared(fresh), output=tmp_path / "two", quiet=True)
    assert "began a run in this process before" in (tmp_path / "two" / "events.jsonl").read_text()
