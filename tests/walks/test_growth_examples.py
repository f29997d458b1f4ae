"""Each example about growth, freezing and optimizers does what the comment on top of it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import registry

import stackwise
from stackwise.contracts.events import Event
from stackwise.machine.machine import TrainingMachine

ROOT = Path(__file__).parents[2]
SMALL = ["run.device=cpu", "data.batch_size=2", "data.seq_len=16", "evaluate.heldout.batches=1", "evaluate.heldout.batch_size=2"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))


def machine_of(name: str, *settings: str) -> TrainingMachine:
    return stackwise.assemble(stackwise.make_plan(stackwise.load(ROOT / "examples" / f"{name}.yaml", [*SMALL, *settings]), registry()))


def states(machine: TrainingMachine) -> Iterator[tuple[Event, dict[str, torch.Tensor]]]:
    """Every event with a copy of the weights at that instant."""
    for event in machine.train():
        if isinstance(event, stackwise.RunStarted):
            continue  # the model is built on the way into the first phase
        yield event, {name: p.detach().clone() for name, p in machine.model.model.named_parameters()}


def phases(machine: TrainingMachine) -> dict[str, tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Phase → its entry event, the weights at entry and the weights at its end."""
    found: dict[str, Any] = {}
    name = ""
    for event, weights in states(machine):
        if isinstance(event, stackwise.PhaseEntered):
            name = event.phase
            found[name] = (event, weights, weights)
        elif isinstance(event, stackwise.StepDone):
            assert event.loss == event.loss
            found[name] = (*found[name][:2], weights)
    return found


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_stack_both_ways_trains_exactly_the_new_stack_in_between_and_all_at_the_end() -> None:
    machine = machine_of("stack-both-ways", "run.horizon=40 steps", "model.rack.width=16", "model.rack.heads=2")
    found = phases(machine)
    assert list(machine.schedule.phases[2].state.model.stacks) == ["front", "base", "top"]  # type: ignore[union-attr]
    event, entry, end = found["right"]
    assert (event.copied, event.fresh) == (14, 0) and event.probe_change > 0
    for i in range(2):
        assert torch.equal(entry[f"rack.stacks.top.{i}.mlp.up.weight"], entry[f"rack.stacks.base.{i}.mlp.up.weight"])
    assert {name.split(".")[2] for name in moved(entry, end) if name.startswith("rack.stacks")} == {"top"}
    assert "embedding.weight" not in moved(entry, end)
    event, entry, end = found["left"]
    assert (event.copied, event.fresh) == (0, 14) and event.probe_change == 0.0
    assert {name.split(".")[2] for name in moved(entry, end) if name.startswith("rack.stacks")} == {"front"}
    event, entry, end = found["together"]
    assert event.trainable == event.parameters and moved(entry, end) == set(entry)


def test_finetune_lora_trains_head_then_adapters_then_the_last_blocks() -> None:
    machine = machine_of("finetune-lora", "run.horizon=40 steps", "model.rack.width=16", "model.rack.heads=2")
    found = phases(machine)
    event, entry, end = found["head"]
    assert event.fresh == 1 and moved(entry, end) == {"head.weight"}
    event, entry, end = found["adapters"]
    assert event.probe_change == 0.0 and event.fresh == 40
    assert moved(entry, end) == {name for name in entry if name.startswith("weight_adapters.")} | {"head.weight"}
    assert [name for name in entry if not name.startswith("weight_adapters.")] == list(found["head"][1])
    event, entry, end = found["unfrozen"]
    assert event.merged == 20 and event.dropped == 40 and event.probe_change < 1e-5
    blocks = {name.split(".")[3] for name in moved(entry, end) if name.startswith("rack.stacks")}
    assert blocks == {"2", "3"} and "embedding.weight" not in moved(entry, end)


def test_adamw_to_muon_takes_the_first_moments_along() -> None:
    machine = machine_of("adamw-to-muon", "run.horizon=10 steps", "model.rack.width=16", "model.rack.heads=2")
    before: dict[str, dict[str, Any]] = {}
    for event in machine.train():
        if isinstance(event, stackwise.StepDone) and event.step == 3:
            before = {name: {key: v.clone() for key, v in state.items()} for name, state in machine.optimizer.state_by_name().items()}
        if isinstance(event, stackwise.PhaseEntered) and event.phase == "muon":
            after = machine.optimizer.state_by_name()
            assert after.keys() == before.keys() and event.moments_dropped == 0
            for name, state in after.items():
                assert torch.equal(state["exp_avg"], before[name]["exp_avg"])
                hidden = state["exp_avg"].dim() == 2 and name.startswith("rack.")
                assert state.keys() == ({"exp_avg"} if hidden else {"step", "exp_avg", "exp_avg_sq"})
            rates = {group["rule"]: (group["lr"], group["adamw_lr"]) for group in machine.optimizer.optimizer.param_groups}
            assert rates["muon"][0] == pytest.approx(2e-2) and rates["adamw"][1] == pytest.approx(2e-3)


def test_grow_width_keeps_the_function_scales_the_rate_and_averages_through_the_growth() -> None:
    settings = ("run.horizon=20 steps", "model.rack.width=16", "model.rack.ff=24", "phases.wider-mlp.model.rack.ff=48")
    wide = ("phases.wide.model.rack={width: 32, heads: 4, ff: 96}", "evaluate.averaged.batches=1", "evaluate.averaged.batch_size=2")
    machine = machine_of("grow-width", *settings, *wide)
    judged: dict[tuple[str, str, str], float] = {}
    for event in machine.train():
        if isinstance(event, stackwise.PhaseEntered) and event.phase_index:
            assert event.probe_change is not None and event.probe_change < 1e-5
            assert event.fresh == event.dropped == 0
        if isinstance(event, stackwise.Evaluated):
            judged[event.name, event.phase, event.at] = event.metrics["loss"]
    for name in ("heldout", "averaged"):
        assert judged[name, "wide", "entry"] == pytest.approx(judged[name, "wider-mlp", "exit"], abs=1e-5)
    assert judged["heldout", "wide", "entry"] != judged["averaged", "wide", "entry"]
    factors = [phase.state.optimizer.lr_factor(0) for phase in machine.schedule if phase.state is not None]
    assert factors == pytest.approx([1.0, 1.0, 2**-0.5])
