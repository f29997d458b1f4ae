"""Runs whose length is a budget: what they log, and that their past stays."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from stackwise import ConfigError, discover, load, make_plan
from stackwise.runs.run import branch, run

CONFIG: dict[str, Any] = {
    "run": {"seed": 3, "horizon": "3e7 flops", "device": "cpu", "threads": 1, "checkpoint": {"at": ["7 steps"]}},
    "task": {"use": "transformer.causal-lm"},
    "data": {"sources": {"a": {"use": "data.python-stdlib"}}, "batch_size": 2, "seq_len": 16},
    "model": {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    },
    "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 0.01, "warmup": "10% flops", "decay": "30%"}}},
    "phases": {
        "one": {"until": "40% flops"},
        "two": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    return path


def test_every_line_says_what_is_spent_and_a_branch_goes_on_as_the_run(config: Path, tmp_path: Path) -> None:
    first = run(config, output=tmp_path / "first", stream=io.StringIO()).directory
    phases = json.loads((first / "plan.json").read_text())["phases"]
    costs = [phase["step_flops"][0][1]["training"] for phase in phases for _ in range(phase["steps"])]
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["flops"] for line in lines] == [sum(costs[: i + 1]) for i in range(len(costs))]
    assert sum(costs[:-1]) < 3e7 <= sum(costs) and lines[-1]["step"] + 1 == len(costs) > 7
    second = branch(first, "step 7", output=tmp_path / "second", stream=io.StringIO()).directory
    weights = [load_file(path / "final" / "weights.safetensors") for path in (first, second)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert [json.loads(line)["loss"] for line in (second / "metrics.jsonl").read_text().splitlines()] == [line["loss"] for line in lines]


def timed(tmp_path: Path, **run: Any) -> Path:
    path = tmp_path / "timed.yaml"
    declared = {**CONFIG, "run": {**CONFIG["run"], "horizon": "1 second", **run}, "optimizer": {"use": "optim.adamw", "lr": 0.01}}
    declared["phases"] = {**CONFIG["phases"], "one": {"until": "40% of seconds"}}
    path.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    return path


def test_a_time_becomes_steps_once(tmp_path: Path) -> None:
    config = timed(tmp_path)
    first = run(config, output=tmp_path / "first", stream=io.StringIO()).directory
    kept = yaml.safe_load((first / "config.yaml").read_text())["run"]["step_seconds"]
    one, two = (Fraction(str(kept[name])) for name in ("one", "two"))
    boundary = ceil(Fraction(2, 5) / one)
    steps = boundary + ceil((1 - boundary * one) / two)
    assert [phase["stop"] for phase in json.loads((first / "plan.json").read_text())["phases"]] == [boundary, steps]
    changed = [json.loads(line) for line in (first / "events.jsonl").read_text().splitlines()]
    assert [event["after"] for event in changed if event["event"] == "config_changed"] == [kept]
    assert run(config, output=first, stream=io.StringIO(), resume="auto").finished_before  # the file says nothing of the times
    again = branch(first, "step 7", output=tmp_path / "second", stream=io.StringIO(), source=config).directory
    weights = [load_file(path / "final" / "weights.safetensors") for path in (first, again)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("declared", "rule"),
    [
        ({}, "say run.step_seconds to plan it now"),
        ({"step_seconds": {"one": 0.1}}, "says nothing of phase 'two'"),
        ({"step_seconds": {"one": 0.1, "two": 0.1, "tow": 0.1}}, "there is no phase 'tow'"),
        ({"step_seconds": {"one": 0.1, "two": 0}}, "give it above zero"),
    ],
)
def test_a_plan_of_a_time_needs_times_of_steps(tmp_path: Path, declared: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        make_plan(load(timed(tmp_path, **declared)), discover())


def test_times_of_steps_without_a_time_are_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match="no duration is a time"):
        make_plan(load(config, ["run.step_seconds={one: 0.1, two: 0.1}"]), discover())


def test_longer_rows_inside_a_phase_take_longer_in_proportion(tmp_path: Path) -> None:
    times = {"one": 0.01, "two": 0.02}
    rows = "{piecewise: {values: {0%: 8, 50%: 16}, over: run}}"
    plan = make_plan(load(timed(tmp_path, step_seconds=times), [f"phases.two.data.seq_len={rows}"]), discover())
    assert [piece.rate["seconds"] for piece in plan.schedule.clock.pieces] == [Fraction(1, 100), Fraction(2, 100), Fraction(4, 100)]
