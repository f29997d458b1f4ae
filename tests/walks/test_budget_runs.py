"""Runs whose length is a budget: what they log, and that their past stays."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

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
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
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
