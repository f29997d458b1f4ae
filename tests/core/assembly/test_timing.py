"""Times measured on a few steps: every phase is crossed and trained, its evaluations are counted, and nothing is kept."""

from __future__ import annotations

import json
from itertools import count
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from stackwise import config
from stackwise.assembly import timing
from stackwise.host.discovery import discover
from stackwise.plan import Plan, make_plan


def plan_in(folder: Path) -> Plan:
    """Two phases, the second with one step; an evaluation of four batches at both ends of each."""
    content: dict[str, Any] = {
        "run": {"horizon": "9 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"stdlib": {"use": "data.python-stdlib"}}, "batch_size": 2, "seq_len": 16},
        "model": {
            "embedding": {"use": "transformer.token"},
            "rack": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
        "evaluate": {"held": {"batches": 4}},
        "observers": [{"use": "core.tensorboard", "directory": str(folder / "board")}],
        "phases": {"long": {"until": "8 steps"}, "short": {"data": {"batch_size": 4}}},
    }
    (folder / "experiment.yaml").write_text(json.dumps(content))
    return make_plan(config.load(folder / "experiment.yaml"), discover())


def test_a_clock_that_ticks_gives_the_seconds_of_theory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second after the one before."""
    monkeypatch.setattr(timing, "perf_counter", map(float, count()).__next__)
    long, short = timing.measure(plan_in(tmp_path), 3)
    assert (long.name, long.entering, long.step, long.steps) == ("long", 1.0, 1.0, 7.0)
    assert long.evaluations == 2 * 4 * 1.0
    assert long.seconds == 1.0 + 7.0 + 8.0
    assert isnan(short.step)
    assert (short.name, short.entering, short.steps, short.evaluations) == ("short", 1.0, 0.0, 8.0)


def test_nothing_is_kept(tmp_path: Path) -> None:
    timing.measure(plan_in(tmp_path), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]
