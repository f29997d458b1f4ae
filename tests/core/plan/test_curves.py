"""Declared schedules become curves: bound to the phase that declares them, and continued where nothing new is said."""

from __future__ import annotations

from typing import Any

import pytest

from stackwise.config import parse_schedule
from stackwise.config.reader import read_yaml
from stackwise.config.timeline import read_experiment
from stackwise.plan.curves import Curves
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock

LR = "optimizer.lr"


def timeline(*deltas: str, base: str = "") -> tuple[Curves, Any]:
    """Curves over phases of 100 steps in all, equally long, and the phases as declared."""
    ends = [f"{100 * (i + 1) // len(deltas)}%" for i in range(len(deltas))]
    phases = ", ".join(f"p{i}: {{until: {end}{delta and ', ' + delta}}}" for i, (end, delta) in enumerate(zip(ends, deltas, strict=True)))
    read = read_experiment(read_yaml(f"{{{base}phases: {{{phases}}}}}", "x"), "run")
    clock = compile_clock(Duration.parse("100 steps"), [p.name for p in read.phases], [Duration.parse(e) for e in ends], [None] * len(ends))
    return Curves(clock), read.phases


def of(curves: Curves, phase: Any, written: Any, owner: str = "adamw") -> Any:
    return curves.of(phase, LR, owner, parse_schedule(written))


def test_what_no_phase_declares_anew_is_one_curve_over_the_run() -> None:
    curves, (first, second) = timeline("", "", base="optimizer: {use: x.y, lr: {linear: {from: 1, to: 0}}}, ")
    written = {"linear": {"from": 1, "to": 0}}
    one = of(curves, first, written)
    assert of(curves, second, written) is one
    assert [one(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.75, 0.5, 0])


def test_a_schedule_of_a_phase_spans_it_and_is_held_behind_it() -> None:
    delta = "optimizer: {lr: {linear: {from: 1, to: 0, over: phase}}}"
    curves, (first, second, third) = timeline("", delta, "", base="optimizer: {use: x.y, lr: 2}, ")
    of(curves, first, 2)
    written = {"linear": {"from": 1, "to": 0, "over": "phase"}}
    curve = of(curves, second, written)
    start, stop = curves.clock.t(curves.clock.starts[1]), curves.clock.t(curves.clock.starts[2])
    assert [curve(t) for t in (start, (start + stop) / 2, stop, 1.0)] == pytest.approx([1, 0.5, 0, 0])
    assert of(curves, third, written) is curve


def test_an_omitted_begin_is_the_value_at_entry_of_the_same_owner_alone() -> None:
    base, delta = "optimizer: {use: x.y, lr: {linear: {from: 1, to: 0}}}, ", "optimizer: {lr: {linear: {to: 3, over: phase}}}"
    for owner in ("adamw", "muon"):
        curves, (first, second) = timeline("", delta, base=base)
        of(curves, first, {"linear": {"from": 1, "to": 0}})
        curve = of(curves, second, {"linear": {"to": 3, "over": "phase"}}, owner)
        if owner == "adamw":
            assert curve(0.5) == pytest.approx(0.5) and curve(1.0) == pytest.approx(3.0) and not curves.problems
        else:
            assert [problem.path for problem in curves.problems] == [LR]


def test_over_phase_outside_the_phases_belongs_to_none() -> None:
    written = {"linear": {"from": 1, "to": 0, "over": "phase"}}
    curves, (first, _) = timeline("", "", base="optimizer: {use: x.y, lr: {linear: {from: 1, to: 0, over: phase}}}, ")
    of(curves, first, written)
    assert [(problem.path, problem.where is not None) for problem in curves.problems] == [(LR, True)]
    alone, (only,) = timeline("", base="optimizer: {use: x.y, lr: {linear: {from: 1, to: 0, over: phase}}}, ")
    assert of(alone, only, written)(0.5) == pytest.approx(0.5) and not alone.problems


def test_a_ramp_rises_over_its_duration_from_the_begin_of_its_phase() -> None:
    curves, (_, second) = timeline("", "")
    ramp = curves.ramp(second, Duration.parse("10 steps"))
    assert [ramp(t) for t in (0.5, 0.55, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 1])
