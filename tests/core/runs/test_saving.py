"""When a state goes to disk and which of them stays: every key of `run.checkpoint` on a real run's store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from tiny_walks import base, memory, plan_of, registry

import stackwise
from stackwise.config import CheckpointConfig, load
from stackwise.contracts.events import CheckpointSaved, Evaluated
from stackwise.contracts.options import config_key
from stackwise.runs.saving import Saving, due_steps
from stackwise.storage.checkpoints.store import CheckpointStore, step_of

BOUNDARY, END = 5, 12


def config(**checkpoint: Any) -> dict[str, Any]:
    """Twelve steps, a boundary before step 5, an evaluation every two steps."""
    return base(
        run={"name": "tiny", "seed": 3, "horizon": "12 steps", "device": "cpu", "checkpoint": checkpoint},
        data={"sources": {"a": memory(heldout=0.2)}, "batch_size": 2, "seq_len": 4},
        evaluate={"e": {"every": "2 steps", "batches": 1}},
        phases={"one": {"until": f"{BOUNDARY} steps"}, "two": {"optimizer": {"lr": 0.001}}},
    )


def saved(folder: Path, **checkpoint: Any) -> tuple[list[int], list[CheckpointSaved], dict[int, float]]:
    """Steps that stay, saves as they were told, evaluation losses by step."""
    plan = plan_of(config(**checkpoint))
    declared = plan.experiment.run.checkpoint
    store = CheckpointStore(folder, keep_last=declared.keep_last, best=declared.best_metric)
    machine = stackwise.assemble(plan)
    saving = Saving(store, declared, plan.schedule, dict, lambda: None)
    told: list[CheckpointSaved] = []
    losses: dict[int, float] = {}
    threads = set(threading.enumerate())
    for event in machine.train():
        if isinstance(event, Evaluated) and event.at != "entry":
            losses[event.step] = event.metrics["loss"]
        told += [each for each in saving.after(event, machine) if isinstance(each, CheckpointSaved)]
    begun = set(threading.enumerate()) - threads
    store.close()
    assert ("asynchronous" in checkpoint) == bool(begun)
    return [step_of(name) for name in store.names()], told, losses


@pytest.mark.parametrize(
    ("checkpoint", "told", "stay"),
    [
        ({"every": "4 steps"}, [(4, "cadence"), (5, "phase"), (8, "cadence"), (12, "end")], [8, 12]),
        ({"every": "100%"}, [(5, "phase"), (12, "end")], [5, 12]),
        ({"every": "100%", "at_phases": False}, [(12, "end")], [12]),
        ({"every": "32 tokens"}, [(4, "cadence"), (5, "phase"), (8, "cadence"), (12, "end")], [8, 12]),
        ({"every": "4 steps", "keep_last": 1}, [(4, "cadence"), (5, "phase"), (8, "cadence"), (12, "end")], [12]),
        ({"every": "4 steps", "keep_every": "25%"}, [(3, "cadence"), (4, "cadence"), (5, "phase"), (6, "cadence")], [3, 6, 9, 12]),
        ({"every": "100%", "at": ["25%", "7 steps"]}, [(3, "cadence"), (5, "phase"), (7, "cadence"), (12, "end")], [3, 7, 12]),
        ({"every": "100%", "asynchronous": True}, [(5, "phase"), (12, "end")], [5, 12]),
    ],
    ids=str,
)
def test_a_key_shows_in_what_is_saved_and_what_stays(
    tmp_path: Path, checkpoint: dict[str, Any], told: list[tuple[int, str]], stay: list[int]
) -> None:
    found, events, _ = saved(tmp_path / "c", **checkpoint)
    assert [(event.step, event.reason) for event in events][: len(told)] == told
    assert found == stay


@pytest.mark.parametrize(("best", "choose"), [("e.loss", min), ("e.loss (max)", max)])
def test_the_best_by_a_metric_of_the_same_weights_stays(tmp_path: Path, best: str, choose: Any) -> None:
    found, _, losses = saved(tmp_path / "c", every="2 steps", keep_last=1, at_phases=False, best=best)
    measured = {step: loss for step, loss in losses.items() if step % 2 == 0}
    assert found == sorted({choose(measured, key=measured.__getitem__), END})


def test_every_key_has_a_row_here() -> None:
    rows = {key for mark in test_a_key_shows_in_what_is_saved_and_what_stays.pytestmark for row in mark.args[1] for key in row[0]}  # type: ignore[attr-defined]
    assert rows | {"best"} == {config_key(field) for field in attrs.fields(CheckpointConfig)}


def test_the_default_is_a_tenth_and_every_boundary_and_the_end() -> None:
    plan = plan_of(config())
    assert sorted(due_steps(plan.experiment.run.checkpoint, plan.schedule)) == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("checkpoint", "complaint"),
    [
        ({"every": "0 steps"}, "run.checkpoint.every.*never moves on"),
        ({"every": 5}, "run.checkpoint.every.*no unit"),
        ({"every": "1 epochs of web"}, "run.checkpoint.every.*nothing counts epochs of web"),
        ({"keep_every": "1 epochs of web"}, "run.checkpoint.keep_every.*nothing counts epochs of web"),
        ({"keep_last": 0}, "run.checkpoint.keep_last.*minimum of 1"),
        ({"at": ["13 steps"]}, "run.checkpoint.at.*after the end"),
        ({"at": ["-1 steps"]}, "run.checkpoint.at"),
        ({"best": "loss"}, "run.checkpoint.best.*is not a metric"),
        ({"best": "f.loss"}, "run.checkpoint.best.*no evaluation 'f'"),
        ({"evry": "5%"}, "run.checkpoint.evry.*did you mean 'every'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_its_place(checkpoint: dict[str, Any], complaint: str) -> None:
    with pytest.raises(stackwise.ConfigError, match=complaint):
        plan_of(config(**checkpoint))


def test_a_cadence_that_nothing_counts_is_refused_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text("run:\n  horizon: 12 steps\n  checkpoint:\n    keep_every: 1 epochs of web\n")
    sections = config()
    rest = {name: sections[name] for name in ("task", "model", "optimizer")}
    data = {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": [1] * 100}}}, "batch_size": 2, "seq_len": 4}
    with (tmp_path / "exp.yaml").open("a") as file:
        yaml.safe_dump({**rest, "data": data}, file)
    with pytest.raises(stackwise.ConfigError) as caught:
        stackwise.make_plan(load(tmp_path / "exp.yaml"), registry())
    (problem,) = caught.value.problems
    assert problem.path == "run.checkpoint.keep_every" and str(problem.where) == f"{tmp_path / 'exp.yaml'}:4:5"
