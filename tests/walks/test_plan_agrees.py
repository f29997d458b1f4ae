"""The plan says beforehand, figure by figure, what the log says afterwards."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from random_curricula import Curriculum, curricula, walks
from tiny_walks import base, drive, moments, plan_of, registry

import stackwise
from stackwise.assembly.pricing import PhasePrice, price
from stackwise.contracts.events import Evaluated, Event, PhaseEntered, RunFinished, StepDone
from stackwise.plan import Plan
from stackwise.planes.model.plane import ModelReceipt
from stackwise.reports.plan_text import plan_as_json

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.stem != "five-stages")  # whose rows cannot be this short
EDGES = (("start", "entry"), ("stop", "exit"))
SMALL = {"data.seq_len": "8", "data.batch_size": "2", "data.step_tokens": "40", "model.rack.width": "8", "model.rack.heads": "2"}


def shrunk(path: Path) -> list[str]:
    """Overrides that make an example run in a second: a short horizon, and every size it declares made small."""
    tree = yaml.safe_load(path.read_text("utf-8"))
    trees = {"": tree, **{f"phases.{name}.": delta or {} for name, delta in tree.get("phases", {}).items()}}
    multiples = path.stem == "grow-width"  # the sizes of its model are multiples of each other, and stay
    small = {key: value for key, value in SMALL.items() if not (multiples and key.startswith("model"))}
    if path.stem == "preferences":
        small |= {"data.seq_len": "31"}  # below it no row holds a token of its response
    if path.stem == "one-trunk":
        small |= {"optimizer.lr.wsd.warmup": "3 steps"}  # of thirty, in a run of 26
    sizes = [f"{prefix}{key}={value}" for prefix, part in trees.items() for key, value in small.items() if _has(part, key)]
    return ["run.horizon=26 steps", "run.device=cpu", *sizes, *(f"evaluate.{name}.batches=2" for name in tree.get("evaluate", {}))]


def _has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def hold_against_each_other(plan: Plan, prices: tuple[PhasePrice, ...] = ()) -> list[Event]:
    """Run the plan and compare every figure that both sides know."""
    planned = plan_as_json(plan, prices or price(plan))
    machine = stackwise.assemble(plan)
    events = drive(machine)
    steps = [event for event in events if isinstance(event, StepDone)]
    entered = [event for event in events if isinstance(event, PhaseEntered)]
    assert [(e.phase, e.step) for e in entered] == [(p["name"], p["start"]) for p in planned["phases"]]
    for event, phase in zip(entered, planned["phases"], strict=True):
        assert (event.parameters, event.trainable) == (phase["parameters"], phase["trainable"])
        crossing = phase["transition"] or {"adopted": 0, "copied": 0, "dropped": 0, "fresh": event.fresh}
        found = {key: getattr(event, key) for key in ("adopted", "copied", "fresh", "dropped")}
        assert found == {key: crossing[key] for key in found}
        own = [step for step in steps if step.phase == phase["name"]]
        assert [step.step for step in own] == list(range(phase["start"], phase["stop"]))
        assert (own[0].lr, own[-1].lr) == (phase["lr"]["entry"], phase["lr"]["exit"])
        assert own[-1].tokens == sum(p["tokens"] for p in planned["phases"][: event.phase_index + 1])
    assert evaluated(events) == expected_evaluations(planned)
    done = events[-1]
    assert isinstance(done, RunFinished)
    assert (done.steps, done.tokens) == (planned["steps"], planned["tokens"])
    assert sum(line["tokens"] for line in done.ledger.values()) == planned["tokens"]
    state = moments(machine)
    names = machine.model.trainable()
    kept = sum(t.numel() * t.element_size() for name in names if name in state for t in state[name].values())
    average = machine.optimizer.average
    kept += sum(t.numel() * t.element_size() for t in average.state_by_name().values()) if average is not None else 0
    assert kept == planned["phases"][-1]["optimizer_state_bytes"]
    return events


def evaluated(events: list[Event]) -> list[tuple[str, int, str, str]]:
    return sorted((e.name, e.step, e.at, e.phase) for e in events if isinstance(e, Evaluated))


def expected_evaluations(planned: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """A boundary is measured on both sides, what lies between once."""
    expected = []
    for name, steps in planned["evaluations"].items():
        for phase in planned["phases"]:
            expected += [(name, phase[edge], side, phase["name"]) for edge, side in EDGES if phase[edge] in steps]
            expected += [(name, step, "cadence", phase["name"]) for step in steps if phase["start"] < step < phase["stop"]]
    return sorted(expected)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_plan_and_log_of_an_example_agree(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = path.with_name(f"prepare_{path.stem}.py")
    monkeypatch.chdir(tmp_path if prepare.exists() else ROOT)
    if prepare.exists():
        runpy.run_path(str(prepare))
    hold_against_each_other(stackwise.make_plan(stackwise.load(path, shrunk(path)), registry()))


@walks(10)
@given(curricula())
def test_plan_and_log_of_a_random_curriculum_agree(drawn: Curriculum) -> None:
    plan = plan_of(drawn.config(), evaluate={"own": {"every": "3 steps", "batches": 1}})
    prices = price(plan)
    events = hold_against_each_other(plan, prices)
    for phase in plan.schedule.phases[1:]:
        entered = next(e for e in events if isinstance(e, PhaseEntered) and e.phase == phase.name)
        origins = {name: drawn.origin(phase.index, name) for name in _names(prices[phase.index].receipt)}
        assert entered.fresh == sum(origin is None for origin in origins.values())
        assert entered.copied == sum(origin is not None and origin != name for name, origin in origins.items())
        assert entered.adopted == sum(origin == name for name, origin in origins.items())


def _names(receipt: ModelReceipt) -> list[str]:
    return [*receipt.adopted, *receipt.copied, *receipt.fresh]


def test_the_learning_rate_of_plan_and_log_is_that_of_the_parameters_no_group_takes() -> None:
    groups = {"embedding": {"select": ["embedding"], "lr": 0.5}}
    plan = plan_of(base(optimizer={"use": "optim.adamw", "lr": 0.01, "groups": groups}))
    assert price(plan)[0].lr == (0.01, 0.01)
    assert {event.lr for event in hold_against_each_other(plan) if isinstance(event, StepDone)} == {0.01}


def test_where_groups_take_every_parameter_the_first_one_speaks() -> None:
    groups = {"model": {"select": ["rack", "embedding"], "lr": 0.5}}
    plan = plan_of(base(optimizer={"use": "optim.adamw", "lr": 0.01, "groups": groups}))
    assert price(plan)[0].lr == (0.5, 0.5)
    hold_against_each_other(plan)


def test_schedules_over_run_and_phase_are_planned_and_executed_alike() -> None:
    config = base(
        run={"name": "curves", "horizon": "20 steps", "device": "cpu"},
        optimizer={"use": "optim.adamw", "lr": {"wsd": {"peak": 0.02, "warmup": "4 steps", "decay": "25%"}}},
        phases={
            "one": {"until": "40%"},
            "two": {"until": "70%", "optimizer": {"lr": {"linear": {"to": 0.001, "over": "phase"}}}},
            "three": {"optimizer": {"lr": {"cosine": {"to": 0, "over": "phase"}}}},
        },
    )
    events = hold_against_each_other(plan_of(config))
    rates = [event.lr for event in events if isinstance(event, StepDone)]
    assert rates[:8] == [pytest.approx(0.02 * min(k / 4, 1)) for k in range(8)]
    assert rates[8:14] == [pytest.approx(0.02 + (0.001 - 0.02) * k / 6) for k in range(6)]
    assert rates[14] == pytest.approx(0.001) and rates[17] == pytest.approx(0.0005)
