"""Component options: strict types, rules, dimensions, schedules set apart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from attrs import frozen

from stackwise.config import parse_schedule, structure_options
from stackwise.contracts.options import Stack, dimension, follows_task, option, scheduled, stacks
from stackwise.errors import ProviderError, ScheduleError
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant, Cosine, Linear, Piecewise, WarmupStableDecay


@frozen(kw_only=True)
class Inner:
    ratio: float = 0.5
    name: str


@frozen(kw_only=True)
class Options:
    width: int = dimension("width", doc="features")
    stacks: tuple[Stack, ...] = stacks(doc="blocks")
    kernel: int = option(3, doc="positions", minimum=1, maximum=9)
    mode: Literal["a", "b"] = option("a", doc="mode")
    norm: str = option("rms", doc="norm", choices=("rms", "layer"))
    bias: bool = option(True, doc="biases")
    betas: tuple[float, float] = option((0.9, 0.95), doc="decay rates")
    tags: tuple[str, ...] = option((), doc="labels")
    weights: Mapping[str, float] = option(factory=dict, doc="weights")
    either: int | str | None = option(None, doc="either")
    inner: Inner | None = option(None, doc="nested")
    array: Any = option(None, doc="in memory")
    start: float = option(0.0, doc="start", key="from")
    attention: str = follows_task("attention", doc="mode", choices=("causal", "bidirectional"))
    dropout: float = scheduled(0.0, doc="share", minimum=0, maximum=1)
    lr: float = scheduled(doc="step size", minimum=0)


GOOD: dict[str, Any] = {"stacks": [{"base": 2}], "lr": 1e-3}


def paths(raw: dict[str, Any]) -> dict[str, str]:
    instance, _, problems = structure_options(Options, {**GOOD, **raw}, "model.rack")
    assert (instance is None) == bool(problems)
    return {problem.path.removeprefix("model.rack."): problem.message for problem in problems}


def test_everything_that_fits() -> None:
    array = np.zeros(3)
    raw = {
        "width": 8,
        "betas": [0, 1],
        "tags": ["x"],
        "weights": {"a": 1},
        "either": "s",
        "inner": {"name": "n"},
        "array": array,
        "from": 2,
        "dropout": {"linear": {"from": 0.3, "to": 0.1, "over": "phase"}},
    }
    instance, schedules, problems = structure_options(Options, {**GOOD, **raw}, "x")
    assert problems == ()
    assert (instance.width, instance.betas, instance.tags, instance.weights) == (8, (0.0, 1.0), ("x",), {"a": 1.0})
    assert (instance.either, instance.inner, instance.start) == ("s", Inner(name="n"), 2.0)
    assert instance.stacks == (Stack("base", 2),)
    assert instance.array is array
    assert schedules == {"dropout": Linear(from_=0.3, to=0.1, over="phase"), "lr": Constant(value=0.001)}


def test_instances_compare_by_structure_whatever_the_schedules() -> None:
    one, _, _ = structure_options(Options, {**GOOD, "lr": 1, "dropout": 0.5}, "x")
    other, schedules, _ = structure_options(Options, {**GOOD, "lr": {"cosine": {"from": 2}}}, "x")
    assert one == other
    assert one.lr == one.dropout == 0.0
    assert schedules == {"lr": Cosine(from_=2.0), "dropout": Constant(value=0.0)}


@pytest.mark.parametrize(
    ("raw", "path", "word"),
    [
        ({"kernel": 3.0}, "kernel", "3.0 is not a whole number"),
        ({"kernel": True}, "kernel", "true is not a whole number"),
        ({"kernel": "3"}, "kernel", "without quotes"),
        ({"kernel": None}, "kernel", "null is not a whole number"),
        ({"kernel": 0}, "kernel", "below the minimum of 1"),
        ({"kernel": 10}, "kernel", "above the maximum of 9"),
        ({"mode": "c"}, "mode", "none of 'a', 'b'"),
        ({"norm": "rmss"}, "norm", "none of 'rms', 'layer'"),
        ({"bias": "false"}, "bias", "neither true nor false"),
        ({"bias": 1}, "bias", "neither true nor false"),
        ({"betas": [0.9]}, "betas", "exactly 2"),
        ({"betas": [0.9, "x"]}, "betas.1", "'x' is not a number"),
        ({"tags": "abc"}, "tags", "not a list"),
        ({"tags": ["a", 1]}, "tags.1", "1 is not text"),
        ({"weights": {"a": False}}, "weights.a", "false is not a number"),
        ({"weights": [1]}, "weights", "not a map"),
        ({"either": 1.5}, "either", "1.5"),
        ({"inner": {"name": "n", "ration": 1}}, "inner.ration", "did you mean 'ratio'"),
        ({"inner": {}}, "inner.name", "missing"),
        ({"inner": 3}, "inner", "not a map"),
        ({"from": "x"}, "from", "'x' is not a number"),
        ({"from": "1_000"}, "from", "without quotes"),
        ({"from": "nan"}, "from", "'nan' is not a number: give a finite one"),
        ({"lr": "-inf"}, "lr", "'-inf' is not a number: give a finite one"),
        ({"stacks": []}, "stacks", "at least one"),
        ({"stacks": [{"a": 0}]}, "stacks", "0 blocks"),
        ({"width": 0}, "width", "below the minimum"),
        ({"attention": "cusal"}, "attention", "none of"),
        ({"widht": 1}, "widht", "did you mean 'width'"),
        ({"from_": 1}, "from_", "did you mean 'from'"),
        ({"dropout": 1.5}, "dropout", "above the maximum"),
        ({"dropout": {"linear": {"from": 0, "to": 2}}}, "dropout", "above the maximum"),
        ({"dropout": {"liner": {"to": 1}}}, "dropout", "did you mean 'linear'"),
        ({"dropout": {"linear": {"too": 1, "to": 1}}}, "dropout.linear.too", "did you mean 'to'"),
        ({"dropout": {"linear": {"form": 1, "to": "x"}}}, "dropout.linear.to", "not a number"),
        ({"dropout": {"linear": {"to": 1, "over": "all"}}}, "dropout.linear.over", "none of 'run', 'phase'"),
        ({"dropout": True}, "dropout", "true is not a number"),
        ({"dropout": {"piecewise": {"values": {"0%": 1, "later": 0}}}}, "dropout.piecewise.values.later", "not a duration"),
        ({"dropout": {"piecewise": {"values": {}}}}, "dropout.piecewise", "at least one"),
        ({"lr": None}, "lr", "missing"),
    ],
)
def test_everything_that_does_not(raw: dict[str, Any], path: str, word: str) -> None:
    assert word in paths(raw)[path]


def test_all_mistakes_at_once_and_what_is_missing_says_what_it_is() -> None:
    instance, _, problems = structure_options(Options, {"kernel": 0, "bias": 3, "x": 1}, "m")
    assert instance is None
    assert {problem.path: problem.message for problem in problems}.keys() == {"m.kernel", "m.bias", "m.x", "m.stacks", "m.lr"}
    assert "step size" in next(problem.message for problem in problems if problem.path == "m.lr")
    assert "blocks" in next(problem.message for problem in problems if problem.path == "m.stacks")


def test_numpy_numbers_are_numbers() -> None:
    instance, _, problems = structure_options(Options, {**GOOD, "kernel": np.int64(5), "from": np.float32(0.5)}, "x")
    assert problems == ()
    assert (type(instance.kernel), instance.kernel, instance.start) == (int, 5, 0.5)


def test_an_options_class_that_is_itself_at_fault_is_the_providers() -> None:
    @frozen(kw_only=True)
    class Broken:
        x: int = 0

        def __attrs_post_init__(self) -> None:
            raise RuntimeError("boom")

    @frozen(kw_only=True)
    class Strange:
        x: NoSuchType  # type: ignore[name-defined]  # noqa: F821  # the fault under test

    for cls in (Broken, Strange):
        with pytest.raises(ProviderError):
            structure_options(cls, {"x": 1}, "p")


def test_a_rule_of_the_whole_class_is_a_problem_of_the_component() -> None:
    @frozen(kw_only=True)
    class Divides:
        width: int
        heads: int

        def __attrs_post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError("heads divide the width")

    _, _, (problem,) = structure_options(Divides, {"width": 3, "heads": 2}, "model.rack")
    assert (problem.path, problem.message) == ("model.rack", "heads divide the width")


def test_schedules_in_every_form() -> None:
    assert parse_schedule(3) == Constant(value=3.0)
    assert parse_schedule({"wsd": {"peak": 1, "warmup": "2%", "shape": "sqrt"}}) == WarmupStableDecay(
        peak=1.0, warmup=Duration.parse("2%"), shape="sqrt"
    )
    assert parse_schedule({"piecewise": {"values": {"0%": 1, "12.5%": 2}}}) == Piecewise(values={"0%": 1.0, "12.5%": 2.0})
    given = Linear(to=1.0)
    assert parse_schedule(given) is given


NO_SCHEDULES = ("1e-3", True, None, [], {}, {"wsd": 1}, {"wsd": {}, "linear": {}}, {"linear": {"to": 1, "x": 2}}, float("inf"), 10**400)


@pytest.mark.parametrize("value", NO_SCHEDULES)
def test_what_is_no_schedule(value: object) -> None:
    with pytest.raises(ScheduleError):
        parse_schedule(value)


def test_the_config_is_cold_and_the_face_is_colder() -> None:
    code = "import sys, stackwise; assert 'cattrs' not in sys.modules; import stackwise.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
