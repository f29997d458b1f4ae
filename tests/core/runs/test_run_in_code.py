"""An experiment written in code runs as one in YAML does: directory, logs, checkpoints, and resume by the same call."""

from __future__ import annotations

import io
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from whole_runs import digested, lines, losses, status

import stackwise
from stackwise import Built, StepDone, TaskSpec, TensorSpec
from stackwise.errors import ConfigError, RunStopped
from stackwise.runs.run import resume
from stackwise.saved.evaluate import evaluate
from stackwise.storage.checkpoints.store import CheckpointStore

WIDTH = 4


class Embed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.map(x)
        return hidden


class Rack(nn.Module):
    def __init__(self, width: int, stacks: Mapping[str, int]) -> None:
        super().__init__()
        blocks = {name: nn.ModuleList(nn.Linear(width, width) for _ in range(count)) for name, count in stacks.items()}
        self.stacks, self.drop = nn.ModuleDict(blocks), nn.Dropout(0.2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for stack in self.stacks.values():
            for block in stack.children():
                hidden = hidden + self.drop(torch.tanh(block(hidden)))
        return hidden


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.map(hidden)}


class Rebuild:
    """Predict the input."""

    def get_spec(self) -> TaskSpec:
        x = TensorSpec("batch width")
        return TaskSpec(batch={"x": x}, inputs={"x": x}, outputs={"y": x})

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        return batch

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
        return (outputs["y"] - batch["x"]).square().sum(), batch["x"].numel(), {}


class StopAt:
    """An observer like any other, but for what it raises."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: Any) -> None:
        if isinstance(event, StepDone) and event.step == self.step:
            raise KeyboardInterrupt


MODEL = {
    "embedding": Built(Embed, width=WIDTH),
    "rack": Built(Rack, width=WIDTH, stacks=[{"base": 2}]),
    "head": Built(Head, width=WIDTH),
}


def experiment(*, steps: int = 12, observers: Any = (), held: Any = None) -> stackwise.Experiment:
    rows = [{"x": torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))} for seed in range(20)]
    return stackwise.experiment(
        run={"name": "coded", "seed": 2, "horizon": f"{steps} steps", "device": "cpu", "checkpoint": {"every": "4 steps"}},
        task=Rebuild(),
        data=rows,
        model={
            "embedding": Built(Embed, width=WIDTH),
            "rack": Built(Rack, width=WIDTH, stacks=[{"base": 2}]),
            "head": Built(Head, width=WIDTH),
        },
        optimizer=Built(torch.optim.AdamW, lr=1e-2),
        **({"observers": list(observers)} if observers else {}),
        **({"evaluate": {"held": {"every": "50%", "batches": 2, "sources": {"rows": held}}}} if held is not None else {}),
    )


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def go(**options: Any) -> Any:
    stream = io.StringIO()
    result = stackwise.run(
        experiment(**{k: options.pop(k) for k in ("steps", "observers", "held") if k in options}), stream=stream, **options
    )
    return result, stream.getvalue()


def test_it_leaves_what_a_run_of_a_config_leaves() -> None:
    result, shown = go()
    assert result.directory == Path("runs/coded-001") and "12 steps on cpu" in shown
    assert shown.splitlines()[0] == "files runs/coded-001/"  # before anything can take long
    files = {path.name for path in result.directory.iterdir()}
    assert files >= {"config.yaml", "plan.json", "events.jsonl", "metrics.jsonl", "status.json", "checkpoints", "final"}
    assert status(result.directory)["status"] == "finished" and sorted(losses(result.directory)) == list(range(12))
    assert CheckpointStore(result.directory / "checkpoints").names()[-1] == "step-000000012"
    assert result.summary.finished.steps == 12 and "coded" not in result.summary.text()


def test_the_same_call_goes_on_and_ends_as_if_it_had_never_stopped() -> None:
    whole, _ = go(output="whole")
    with pytest.raises(KeyboardInterrupt):
        go(output="cut", resume="auto", observers=[StopAt(6)])
    assert status(Path("cut"))["status"] == "interrupted"
    rest, shown = go(output="cut", resume="auto", observers=[StopAt(100)])
    assert "at step 4 of 12" in shown and losses(Path("cut")) == losses(whole.directory)
    ends = [CheckpointStore(path / "checkpoints").newest()[0] for path in (whole.directory, rest.directory)]
    one, other = ({**digested(end.load_state()), "seconds": None, "cpu_seconds": None} for end in ends if end is not None)
    assert one == other
    again, _ = go(output="cut", resume="auto", observers=[StopAt(100)])
    assert again.finished_before


class PressesCtrlC(StopAt):
    def __call__(self, event: Any) -> None:
        if isinstance(event, StepDone) and event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_names_the_call_that_goes_on() -> None:
    with pytest.raises(RunStopped, match=r"by: stackwise\.run\(experiment, output='cut', resume='must'\)$"):
        go(output="cut", observers=[PressesCtrlC(6)])
    rest, shown = go(output="cut", resume="must", observers=[PressesCtrlC(100)])
    assert "of 12" in shown and rest.summary.finished.steps == 12


def test_an_evaluation_of_other_values_is_refused_at_a_resume() -> None:
    def held(factor: float) -> list[dict[str, torch.Tensor]]:
        return [{"x": torch.arange(8.0).view(2, WIDTH) * factor}, {"x": torch.ones(2, WIDTH)}]

    with pytest.raises(KeyboardInterrupt):
        go(output="cut", resume="auto", observers=[StopAt(6)], held=held(1.0))
    with pytest.raises(stackwise.DataError, match=r"what evaluation 'held' reads changed .*source 'rows'"):
        go(output="cut", resume="auto", observers=[StopAt(100)], held=held(2.0))
    result, _ = go(output="cut", resume="auto", observers=[StopAt(100)], held=held(1.0))
    assert result.summary.finished.steps == 12


def test_what_cannot_be_is_refused() -> None:
    go(output="done", steps=2)
    with pytest.raises(stackwise.UserError, match="exists"):
        go(output="done", steps=2)
    with pytest.raises(stackwise.UserError, match="in code"):
        go(overrides=["run.horizon=4 steps"])
    with pytest.raises(stackwise.UserError, match="no run"):
        go(output="nowhere", resume="must")
    with pytest.raises(stackwise.UserError):
        resume(Path("done"))  # its config names objects that only the code has
    assert lines(Path("done") / "events.jsonl")


def test_a_command_names_every_component_that_only_the_code_has_in_one_sentence() -> None:
    go(output="done", steps=2)
    for command in (lambda: list(evaluate(Path("done"))), lambda: resume(Path("done"))):
        with pytest.raises(ConfigError) as refused:
            command()
        (problem,) = refused.value.problems
        assert problem.path == "task"
        assert all(place in problem.message for place in ("model.embedding.use", "model.rack.use", "model.head.use", "optimizer.use"))


def test_another_number_of_threads_is_said_when_a_run_goes_on() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(KeyboardInterrupt):
            go(output="cut", observers=[StopAt(6)])
        torch.set_num_threads(2)
        _, shown = go(output="cut", resume="auto", observers=[StopAt(100)])
    finally:
        torch.set_num_threads(before)
    assert "2 threads, and had 1" in shown
