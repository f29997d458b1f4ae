"""The memory that a plan says, against what a process takes, and against what the parts take by theory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.assembly.memory import PhaseMemory
from stackwise.assembly.pricing import price
from stackwise.contracts.events import StepDone
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

SUPPORT = Path(__file__).parents[2] / "support" / "measured_memory.py"
MB = 10**6


def declared(**changes: Any) -> dict[str, Any]:
    """A small decoder; keys with `__` reach into sections."""
    base: dict[str, Any] = {
        "run": {"horizon": "3 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"stdlib": {"use": "data.python-stdlib"}}, "batch_size": 8, "seq_len": 256},
        "model": {
            "embedding": {"use": "transformer.token"},
            "rack": {"use": "transformer.decoder", "width": 128, "heads": 4, "stacks": [{"base": 4}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }
    for key, value in changes.items():
        node = base
        *path, last = key.split("__")
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return base


MANY_STACKS = {"use": "transformer.decoder", "width": 512, "heads": 8, "stacks": [{"low": 4}, {"mid": 4}, {"top": 2}]}
CASES: Mapping[str, dict[str, Any]] = {
    "decoder": declared(),
    "large_vocabulary": declared(model__embedding={"use": "transformer.token", "vocab": 50_304}, data__batch_size=4),
    "recompute": declared(run__parallel={"recompute": "blocks"}, data__batch_size=16),
    "frozen_prefix": declared(model__freeze=["embedding", "rack.stacks.base.0", "rack.stacks.base.1"], data__batch_size=16),
    "accumulate": declared(data__accumulate=3),
    "bf16": declared(run__precision="bf16"),
    "one_stack_of_many": declared(
        model__rack=MANY_STACKS, model__freeze=["embedding", "rack.stacks.low", "rack.stacks.mid"], data__batch_size=2
    ),
    "lora": declared(
        model__freeze=["embedding", "rack", "head"],
        model__weight_adapters={"low": {"use": "transformer.lora", "select": ["rack.stacks.base.*.attention.*"], "rank": 8}},
    ),
    "average": declared(optimizer__ema={"decay": 0.99}, model__rack={**MANY_STACKS, "stacks": [{"base": 4}]}, data__batch_size=2),
    "evaluation": declared(evaluate={"held": {"batches": 1, "batch_size": 64}}, data__batch_size=2),
}


def planned(content: Mapping[str, Any], folder: Path, name: str = "experiment") -> dict[str, PhaseMemory | str | None]:
    """Phase → its memory."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return {cost.name: cost.memory for cost in price(make_plan(config.load(path), discover()), memory_from=0.0)}


def known(content: Mapping[str, Any], folder: Path, name: str = "experiment") -> PhaseMemory:
    """That of the only phase."""
    (memory,) = planned(content, folder, name).values()
    assert isinstance(memory, PhaseMemory), memory
    return memory


@pytest.mark.rare
def test_the_process_takes_what_the_plan_says(tmp_path: Path) -> None:
    """Within a tenth, and a few megabytes that are of no model: pages of libraries, the loader's."""
    plans = {name: known(content, tmp_path, name).peak for name, content in CASES.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(SUPPORT), *(str(tmp_path / f"{name}.yaml") for name in CASES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured = {name: max(phases.values()) for name, phases in json.loads(done.stdout).items()}
    wrong = {n: (plans[n] / MB, measured[n] / MB) for n in CASES if abs(plans[n] - measured[n]) > 0.1 * measured[n]}
    assert not wrong


def test_parts_are_what_theory_says(tmp_path: Path) -> None:
    """float32: 4 bytes a weight and a gradient, two moments; Adam counts steps in one number a tensor."""
    memory = known(declared(model__freeze=["embedding", "rack.stacks.base.0"], optimizer__ema={"decay": 0.99}), tmp_path)
    model = assemble(make_plan(config.load(tmp_path / "experiment.yaml"), discover()))
    steps = [event for event in model.train() if isinstance(event, StepDone)]
    assert len(steps) == 3
    parameters = dict(model.model.model.named_parameters())
    trained = [p for p in parameters.values() if p.requires_grad]
    assert 0 < len(trained) < len(parameters)
    assert memory.weights == sum(4 * p.numel() for p in parameters.values()) + sum(b.nbytes for b in model.model.model.buffers())
    assert memory.gradients == memory.copies == sum(4 * p.numel() for p in trained)
    assert memory.moments == sum(8 * p.numel() + 4 for p in trained)
    assert memory.peak >= memory.weights + memory.moments + memory.copies + memory.activations


def test_frozen_parameters_hold_neither_gradient_nor_moments(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(declared(model__freeze=["embedding", "rack.stacks.base.0"])))
    machine = assemble(make_plan(config.load(path), discover()))
    frozen: set[str] = set()
    for event in machine.train():
        if isinstance(event, StepDone):
            parameters = dict(machine.model.model.named_parameters())
            frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
            assert all(parameters[name].grad is None for name in frozen)
            assert not frozen & machine.optimizer.state_by_name().keys()
            bytes_kept = sum(e.nbytes for each in machine.optimizer.state_by_name().values() for e in each.values())
            assert bytes_kept == sum(8 * p.numel() + 4 for p in parameters.values() if p.requires_grad)
    assert any(name.startswith("rack.stacks.base.0.") for name in frozen)


def test_moments_of_what_rests_stay_for_the_phase_that_thaws_it(tmp_path: Path) -> None:
    content = deepcopy(declared(run__horizon="4 steps"))
    content["phases"] = {"all": {"until": "50%"}, "top": {"model": {"freeze": ["embedding", "rack.stacks.base.0"]}}}
    memory = planned(content, tmp_path)
    first, then = memory["all"], memory["top"]
    assert isinstance(first, PhaseMemory) and isinstance(then, PhaseMemory)
    assert then.gradients < first.gradients
    assert then.moments == first.moments


def test_a_component_that_reads_numbers_is_said_to_be_unknown(tmp_path: Path) -> None:
    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(128, 128)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.inner(hidden)
            return made if hidden.is_meta or float(made.detach().sum()) > 0 else -made

    from stackwise import Built, experiment

    content = declared(model__embedding={"use": "transformer.token", "width": 128})
    content["model"]["rack"] = Built(Reader)
    (cost,) = price(make_plan(experiment(content), discover()), memory_from=0.0)
    assert isinstance(cost.memory, str) and cost.memory


def test_nothing_is_counted_where_nobody_asks(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(declared()))
    plan = make_plan(config.load(path), discover())
    assert [cost.memory for cost in price(plan)] == [None]
    assert [cost.memory for cost in price(plan, memory_from=1e30)] == [None]
