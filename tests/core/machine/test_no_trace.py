"""Evaluations, probes and skipped steps leave no trace in the model, and a walk that is left leaves none in the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import base, machine_of, memory
from torch import nn

from stackwise import PhaseSchedule, StepDone, TaskSpec, TrainingMachine
from stackwise.curriculum.states import DataState
from stackwise.machine.buffers import KeptBuffers
from stackwise.machine.evaluation import Evaluation
from stackwise.machine.placement import Placement
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.objective import Objective

WIDTH = 3


class Squares:
    """Mean squared outputs; a batch that holds `sick` has a loss that is none."""

    def get_spec(self) -> TaskSpec:
        return TaskSpec(batch={}, inputs={}, outputs={})

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        return batch

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
        total = outputs["y"].square().sum() * (nan if "sick" in batch else 1.0)
        return total, float(outputs["y"].numel()), {"largest": (outputs["y"].max(), 1)}


class Slope(Squares):
    """The loss holds the slope of the outputs, as where forces are learnt."""

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        return {"x": batch["x"].clone().requires_grad_()}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
        (slope,) = torch.autograd.grad(outputs["y"].sum(), batch["x"], create_graph=True)
        return slope.square().sum(), float(slope.numel()), {}


class Counted(nn.Module):
    """Linear, with a buffer that every forward changes in place, one that it exchanges, and a table cached by whoever comes first."""

    seen: torch.Tensor
    last: torch.Tensor
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("last", torch.zeros(WIDTH))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")))
        self.register_buffer("spread", torch.ones(1).expand(5))
        self.cached: torch.Tensor | None = None

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seen += 1
        self.last = batch["x"].detach().mean(0)
        if self.cached is None:
            self.cached = torch.arange(float(WIDTH))
        return {"y": self.norm(self.map(batch["x"])) + self.scale * self.cached}


def rows(seed: int, **more: Any) -> dict[str, Any]:
    return {"x": torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed)), **more}


def machine(model: nn.Module, batches: list[Any]) -> TrainingMachine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainingMachine(
        model=model, data=batches, task=Squares(), optimizer=optimizer, schedule=PhaseSchedule.single(steps=len(batches))
    )


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def judge(model: nn.Module, task: Any) -> dict[str, float]:
    data = DataPlane.of([rows(8), rows(9)])
    evaluation = Evaluation(name="e", data=data, state=DataState(sources={}, mix={}), batches=2)
    data.enter = lambda state, lookahead=0: None  # type: ignore[method-assign,assignment]  # a finished loader is declared nowhere
    return evaluation.run(model, Objective.of(task), Placement(), PhaseSchedule.single(steps=1).at(step=0))


@pytest.mark.parametrize("sick", [0, 2, 6], ids=["first step", "while buffers are watched", "afterwards"])
def test_a_skipped_step_restores_every_buffer_that_training_changes(sick: int) -> None:
    """The run that met a sick batch is, to the bit, the one that never had it."""
    model, other = Counted(), Counted()
    batches: list[Any] = [rows(seed) for seed in range(8)]
    steps = [e for e in machine(model, [*batches[:sick], rows(50, sick=torch.ones(1)), *batches[sick:]]).train() if isinstance(e, StepDone)]
    list(machine(other, batches).train())
    assert [step.step for step in steps if step.skipped] == [sick] and steps[sick].why == "its loss is not finite"
    assert equal(values(model), values(other)) and int(model.seen) == 8


def test_a_buffer_that_becomes_infinite_counts_as_not_finite_beside_a_finite_loss() -> None:
    class Overflows(Counted):
        def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            found = super().forward(batch)
            self.last = self.last / (0.0 if "sick" in batch else 1.0)
            return found

    class Plain(Squares):
        def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
            return super().loss(outputs, {"x": batch["x"]})

    model = Overflows()
    batches: list[Any] = [rows(seed, **({"sick": torch.ones(1)} if seed == 5 else {})) for seed in range(7)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    walk = TrainingMachine(model=model, data=batches, task=Plain(), optimizer=optimizer, schedule=PhaseSchedule.single(steps=7)).train()
    steps = [event for event in walk if isinstance(event, StepDone)]
    assert [step.why for step in steps if step.skipped] == ["it made the buffer last not finite"]
    assert bool(model.last.isfinite().all()) and int(model.seen) == 6


def test_an_evaluation_leaves_values_modes_and_a_cache_that_can_be_trained_with() -> None:
    model = Counted()
    model.map.eval()
    before = values(model)
    first = judge(model, Squares())
    assert equal(values(model), before) and not model.map.training and model.norm.training
    assert model.cached is not None and not model.cached.is_inference()
    assert judge(model, Squares()) == first
    (event,) = [event for event in machine(model, [rows(1)]).train() if isinstance(event, StepDone)]
    assert not event.skipped


def test_a_loss_that_differentiates_can_be_evaluated_and_others_build_no_graph() -> None:
    graphs = []

    class Watched(Counted):
        def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            graphs.append(torch.is_grad_enabled())
            return super().forward(batch)

    model = Watched()
    slope = judge(model, Slope())["loss"]
    weight = model.map.weight.detach()
    by_hand = (weight.sum(0) / (1 + 1e-5) ** 0.5).square().mean()  # batch norm in evaluation: a division by the running deviation, 1
    assert slope == pytest.approx(float(by_hand), rel=1e-5) and graphs == [True, True]
    judge(model, Squares())
    assert graphs[2:] == [False, False]


def test_the_metrics_of_a_step_are_means_over_its_batches() -> None:
    walk = machine(Counted(), [rows(1)])
    deliver = walk.data.batches
    walk.data.batches = lambda moment: [*deliver(moment), rows(2)]  # type: ignore[method-assign]
    fresh = Counted()
    expected = sum(fresh({"x": rows(seed)["x"]})["y"].max().item() for seed in (1, 2)) / 2
    (event,) = [event for event in walk.train() if isinstance(event, StepDone)]
    assert event.metrics == {"largest": pytest.approx(expected, rel=1e-5)}


def test_a_step_tells_every_learning_rate_where_there_are_several() -> None:
    groups = {"norms": {"select": ["*norm*"], "lr": 0.5}}
    config = base(data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": 4}, optimizer={"use": "optim.adamw", "lr": 0.1})
    for optimizer, rates in ((config["optimizer"], {}), ({**config["optimizer"], "groups": groups}, {"default.lr": 0.1, "norms.lr": 0.5})):
        (first, *_) = [e for e in machine_of({**config, "optimizer": optimizer}).train() if isinstance(e, StepDone)]
        assert first.lr == 0.1 and first.rates == rates


def test_buffers_of_a_model_that_exchanges_and_clears_them_are_put_back() -> None:
    model = Counted()
    kept = KeptBuffers(model)
    mask = model.mask
    model.mask, model.last = None, torch.ones(7)  # type: ignore[assignment]
    model.seen += 3
    assert kept.changed() >= {"mask", "last", "seen"}
    kept.put_back()
    assert model.mask is mask and model.last.shape == (WIDTH,) and int(model.seen) == 0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.rare)])
def test_a_walk_that_is_left_prints_nothing_when_the_process_ends(tmp_path: Path, workers: int) -> None:
    script = f"""\
import stackwise, torch
if __name__ == "__main__":
    machine = stackwise.assemble(stackwise.experiment(
        run={{"name": "t", "seed": 1, "horizon": "20 steps", "device": "cpu", "workers": {workers}}},
        task={{"use": "transformer.causal-lm"}},
        data={{"sources": {{"a": {{"use": "data.memory", "arrays": {{"tokens": list(range(8)) * 9}}}}}}, "batch_size": 2, "seq_len": 4}},
        model={{"embedding": {{"use": "transformer.token", "vocab": 8}}, "head": {{"use": "transformer.lm"}},
               "rack": {{"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{{"base": 1}}]}}}},
        optimizer={{"use": "optim.adamw", "lr": 0.01}},
    ))
    events = machine.train()
    for event in events:
        if isinstance(event, stackwise.StepDone):
            break
"""
    (tmp_path / "left.py").write_text(script)
    ended = subprocess.run([sys.executable, "left.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
