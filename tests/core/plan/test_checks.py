"""What a phase says that cannot be meant is a `ConfigError` with the path of its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_configs import numbers
from task_configs import ROWS, masked_bytes
from tiny_walks import base, drive, machine_of, memory, plan_of, problems_of

from stackwise import Evaluated
from stackwise.contracts.specs import TaskSpec, TensorSpec, TransformSpec

PHASES = {"first": {"until": "50%"}, "second": {}}


def laid(path: str, value: Any) -> dict[str, Any]:
    """A config of two phases with one key changed."""
    config = base(phases={name: dict(phase) for name, phase in PHASES.items()}, evaluate={"heldout": {"batches": 1}})
    keys, node = path.split("."), config
    for key in keys[:-1]:
        node[key] = dict(node.get(key, {}))
        node = node[key]
    node[keys[-1]] = value
    return config


@pytest.mark.parametrize(
    ("values", "over", "late"),
    [
        ({"0%": 4, "100%": 8}, "run", False),
        ({"0%": 4, "2 steps": 8}, "run", False),
        ({"0%": 4, "1000 steps": 8}, "run", True),
        ({"0%": 4, "100%": 8}, "phase", False),
        ({"0%": 4, "1000 tokens": 8}, "phase", True),
    ],
)
def test_no_batch_shape_is_to_change_behind_the_end(values: dict[str, int], over: str, late: bool) -> None:
    """As no learning rate is."""
    schedule = {"piecewise": {"values": values, "over": over}}
    rate = {"piecewise": {"values": dict.fromkeys(values, 0.1), "over": over}}
    for path, value in (("phases.second.data", {"seq_len": schedule}), ("phases.second.optimizer", {"lr": rate})):
        told = {problem.path for problem in problems_of(laid(path, value))}
        assert told == ({"data.seq_len" if "data" in path else "optimizer.lr"} if late else set())


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("phases.first.enter", {"growth": {"use": "transformer.stack"}}, "enter.growth"),
        ("phases.first.enter", {"fresh": ["head"]}, "enter.fresh"),
        ("phases.first.enter", {"rewarm": "2 steps"}, "enter.rewarm"),
        ("phases.first.enter", {"moments": "reset"}, "enter.moments"),
        ("phases.first.enter", {"weight_adapters": "drop"}, "enter.weight_adapters"),
        ("phases.second.model", {"start": {"from": "runs/a"}}, "model.start"),
        ("model.freeze", ["rack.stacks.base.5-1"], "model.freeze"),
        ("optimizer.groups", {"slow": {"select": ["head"], "rate": 1.0}}, "optimizer.groups.slow.rate"),
        ("optimizer.groups", {"slow": {"select": ["head"], "lr": -1.0}}, "optimizer.groups.slow.lr"),
        ("optimizer.reaction", {"use": "optim.plateau", "metric": "held.loss"}, "optimizer.reaction.metric"),
        ("optimizer.reaction", {"use": "optim.plateau", "metric": "heldout.los"}, "optimizer.reaction.metric"),
        ("optimizer.reaction", {"use": "optim.plateau", "metric": "train.accuracy"}, "optimizer.reaction.metric"),
        ("optimizer.lr_scaling", {"parameters": {"exponent": -0.5}}, "optimizer.lr_scaling.parameters"),
        ("run.checkpoint", {"best": "held.loss"}, "run.checkpoint.best"),
        ("run.checkpoint", {"best": "heldout.los"}, "run.checkpoint.best"),
        ("run.checkpoint", {"best": "heldout.accuracy (max)"}, "run.checkpoint.best"),
    ],
)
def test_a_mistake_stands_at_its_key(path: str, value: Any, told: str):
    (problem,) = problems_of(laid(path, value))
    assert problem.path == told and problem.where is not None


@pytest.mark.parametrize("metric", ["heldout.loss", "heldout.bits_per_token", "train.loss"])
def test_a_metric_that_will_be_there_is_taken(metric: str):
    assert problems_of(laid("optimizer.reaction", {"use": "optim.plateau", "metric": metric})) == ()


def test_the_metric_of_any_phase_may_be_the_best():
    config = laid("run.checkpoint", {"best": "heldout.loss_on_masks"})
    assert [problem.path for problem in problems_of(config)] == ["run.checkpoint.best"]
    config["task"] = {"use": "transformer.masked-lm"}
    config["model"] = {**config["model"], "rack": {"use": "transformer.conv", "width": 8, "stacks": [{"base": 1}], "kernel": 3}}
    assert "run.checkpoint.best" not in [problem.path for problem in problems_of(config)]


def test_weights_of_a_mixture_are_never_all_zero_nor_below_zero():
    sources = {"a": memory(), "b": memory(seed=1)}
    falling = {"linear": {"from": 1.0, "to": 0.0}}
    mixed = {**base()["data"], "sources": sources}
    (problem,) = problems_of(base(), data={**mixed, "mix": {"a": {"piecewise": {"values": {"0%": 1, "50%": 0}}}, "b": 0}})
    assert problem.path == "data.mix" and "step 6" in problem.message
    (problem,) = problems_of(base(), data={**mixed, "mix": {"a": {"linear": {"from": 1.0, "to": -1.0}}, "b": 1}})
    assert problem.path == "data.mix.a"
    assert problems_of(base(), data={**mixed, "mix": {"a": falling, "b": 1}}) == ()


@pytest.mark.parametrize(
    ("rename", "mask", "path"),
    [({"mask": "real"}, "real", "data.transforms.0"), ({}, "mask", None)],
)
def test_what_a_transform_makes_gets_no_other_name(rename: dict[str, str], mask: str, path: str | None):
    """Fields get the task's names before the transforms, so a rename of what one makes would do nothing."""
    data = {**base()["data"], "rename": rename, "transforms": [{"use": "data.truncate", "keep": 0.5, "mask": mask}]}
    task = {"use": "transformer.causal-lm"}
    assert [problem.path for problem in problems_of(base(), task=task, data=data)] == ([] if path is None else [path])


class Doubling:
    """Makes features of what it reads, twice as large."""

    def __init__(self, read: str) -> None:
        self.read = read

    def get_spec(self) -> TransformSpec:
        of = TensorSpec(("batch", 3), "float32")
        return TransformSpec(inputs={self.read: of}, outputs={"features": of})

    def __call__(self, batch: Any, moment: Any, generator: Any) -> Any:
        return {**batch, "features": batch[self.read] * 2}


@pytest.mark.parametrize(
    ("read", "rename", "paths"), [("features", True, []), ("x", True, ["data.transforms.0"]), ("x", False, []), ("features", False, None)]
)
def test_a_transform_makes_what_the_task_reads(
    read: str, rename: bool, paths: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a rename it reads the field under the task's name and changes it; else it makes one, and the source's own is not read."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((40, 3), dtype=np.float32))
    np.save("label.npy", np.arange(40) % 2)
    config = numbers()
    source = {"use": "data.array-files", "files": {"x": "x.npy", "label": "label.npy"}}
    config["data"] |= {"sources": {"a": source}, "rename": {"features": "x"} if rename else {}, "transforms": [Doubling(read)]}
    told = [problem.path for problem in problems_of(config)]
    assert told == paths if paths is not None else "data.transforms.0" in told
    if not told:
        moment = (machine := machine_of(config)).schedule.at(step=0)
        machine.data.enter(machine.schedule.phases[0].state.data, lookahead=0)  # type: ignore[union-attr]
        (batch,) = machine.data.batches(moment)
        assert bool((batch["features"] == 2).all())


@pytest.mark.parametrize(("field", "paths"), [("x", ["data.transforms.0"]), ("features", [])])
def test_a_transform_changes_a_renamed_field_by_the_name_that_the_task_reads(
    field: str, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((40, 3), dtype=np.float32))
    np.save("label.npy", np.arange(40) % 2)
    config = numbers()
    source = {"use": "data.array-files", "files": {"x": "x.npy", "label": "label.npy"}}
    noise = {"use": "data.feature-noise", "std": 5.0, "field": field}
    config["data"] |= {"sources": {"a": source}, "rename": {"features": "x"}, "transforms": [noise]}
    assert [problem.path for problem in problems_of(config)] == paths
    if not paths:
        moment = (machine := machine_of(config)).schedule.at(step=0)
        machine.data.enter(machine.schedule.phases[0].state.data, lookahead=0)  # type: ignore[union-attr]
        (batch,) = machine.data.batches(moment)
        assert float((batch["features"] - 1).abs().max()) > 1 and bool((batch["x"] == 1).all())


CONFIGS = {make for rows in ROWS.values() for make, *_ in rows} - {masked_bytes}  # the task of `masked`


@pytest.mark.parametrize("make", [pytest.param(make, id=make.__name__) for make in sorted(CONFIGS, key=lambda make: str(make.__name__))])
def test_a_task_names_every_metric_that_it_returns(make: Any):
    config = make()
    spec = plan_of(config).joined[0].drafts.task.spec
    (first, *_) = [event for event in drive(machine_of(config)) if isinstance(event, Evaluated)]
    assert isinstance(spec, TaskSpec) and spec.metrics is not None
    batch = plan_of(config).joined[0].specs()["batch"].fields
    named = [
        name if isinstance(name, str) else name.of(batch[name.batch_field].unit if name.batch_field in batch else None)
        for name in spec.metrics
    ]
    assert set(first.metrics) <= {"loss", *named}


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        (memory(), "bits_per_token", "bits_per_byte"),
        ({"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5}, "bits_per_byte", "bits_per_token"),
    ],
    ids=["tokens", "bytes"],
)
def test_a_metric_of_a_unit_is_named_after_what_the_source_delivers(
    source: Any, right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a line\n" * 40)
    data = {**base()["data"], "sources": {"a": source}}
    model = {**base()["model"], "embedding": {"use": "transformer.token", "vocab": 256}}
    for path, value in (
        ("run.checkpoint", lambda name: {"best": f"heldout.{name}"}),
        ("run.stop", lambda name: {"metric": f"heldout.{name}", "patience": 2}),
        ("optimizer.reaction", lambda name: {"use": "optim.plateau", "metric": f"heldout.{name}"}),
    ):
        assert problems_of(laid(path, value(right)), data=data, model=model) == ()
        (problem,) = problems_of(laid(path, value(wrong)), data=data, model=model)
        assert problem.path.startswith(path) and f"'{right}'" in problem.message
