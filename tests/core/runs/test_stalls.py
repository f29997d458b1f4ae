"""Phases that end when a metric stalls: as if it had been declared so, and the same after any stop."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from shown_runs import CONFIG

import stackwise
from stackwise.contracts.events import Event, Stalled
from stackwise.errors import ConfigError, RunStopped
from stackwise.host.discovery import discover
from stackwise.plan import make_plan
from stackwise.reports.progress import Progress
from stackwise.runs import loop as run_loop
from stackwise.runs.run import branch, resume

TOKENS = [(i * i + 3 * i) % 8 for i in range(240)]
RULE = "{stalls: held.loss, patience: 2, least: 0.2, at_most: 50%}"


def config(folder: Path, until: str, more: str = "") -> Path:
    path = folder / "stalling.yaml"
    text = CONFIG.format(seed=3, lr=1e-2, steps=48, tokens=TOKENS).replace("every: 25%, batches", "every: 3 steps, batches")
    path.write_text(text.replace("{until: 50%}", f"{{until: {until}}}") + more)
    return path


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    """A log without what depends on the clock and on how often the run began."""
    rows = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")} for row in rows if row.get("event") != "run_started"]


def of_kinds(directory: Path, *kinds: str) -> list[dict[str, Any]]:
    return [row for row in lines(directory, "events.jsonl") if row["event"] in kinds]


def expected_end(directory: Path, patience: int = 2, least: float = 0.2) -> int:
    """The rule by hand, from the log of a run whose first phase was not cut short."""
    best, without = float("inf"), 0
    for row in lines(directory, "events.jsonl"):
        if row["event"] == "evaluated" and row["phase"] == "small" and row["at"] != "entry":
            loss = row["metrics"]["loss"]
            best, without = (loss, 0) if loss < best - least else (best, without + 1)
            if without >= patience:
                return int(row["step"])
    raise AssertionError("it never stalls")


def train(path: Path, output: Path) -> Path:
    return stackwise.run(path, output=output, stream=io.StringIO()).directory


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stalled")
    return train(config(folder, RULE), folder / "run")


def same_training(one: Path, other: Path) -> None:
    assert lines(one, "metrics.jsonl") == lines(other, "metrics.jsonl")
    weights = [load_file(folder / "final" / "weights.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys() and all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_run_is_the_one_in_which_the_end_was_declared(stalled: Path, tmp_path: Path) -> None:
    whole = train(config(tmp_path, "50%"), tmp_path / "whole")
    end = expected_end(whole)
    assert 0 < end < 24
    declared = train(config(tmp_path, f"{end} steps"), tmp_path / "declared")
    same_training(stalled, declared)
    (change,) = [row for row in lines(stalled, "events.jsonl") if row["event"] == "config_changed"]
    assert (change["step"], change["key"], change["after"]) == (end, "phases.small.until.ended", f"{end} steps")
    assert stackwise.load(stalled / "config.yaml").phases[0].stalls is None
    plan = json.loads((stalled / "plan.json").read_text())
    assert [(phase["start"], phase["stop"]) for phase in plan["phases"]] == [(0, end), (end, 48)]


@pytest.mark.parametrize("moment", ["held (cadence)", "small ends", "ended", "enter grown"])
def test_stopped_anywhere_it_goes_on_to_the_same_end(stalled: Path, tmp_path: Path, moment: str) -> None:
    class Interruption(io.StringIO):
        def write(self, text: str) -> int:
            if moment in text:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    with pytest.raises(RunStopped):
        stackwise.run(config(tmp_path, RULE), output=tmp_path / "run", stream=Interruption())
    resume(tmp_path / "run", stream=io.StringIO())
    same_training(stalled, tmp_path / "run")
    assert of_kinds(stalled, "config_changed", "phase_entered") == of_kinds(tmp_path / "run", "config_changed", "phase_entered")


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("place", ["at", "Declaration", "Saving"])
def test_killed_while_it_plans_anew_it_decides_the_same(stalled: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any, **more: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        original = run_loop.RunLoop._end_phase

        def end_phase(self: Any, event: Stalled) -> None:
            if place == "at":
                patch.setattr(self.store, "at", die)
            else:
                patch.setattr(run_loop, place, type(place, (), {"of": staticmethod(die), "__init__": die}))
            original(self, event)

        patch.setattr(run_loop.RunLoop, "_end_phase", end_phase)
        train(config(tmp_path, RULE), tmp_path / "run")
    resume(tmp_path / "run", stream=io.StringIO())
    same_training(stalled, tmp_path / "run")


def test_a_phase_that_never_stalls_ends_at_most_there(tmp_path: Path) -> None:
    patient = train(config(tmp_path, RULE.replace("patience: 2", "patience: 99")), tmp_path / "patient")
    whole = train(config(tmp_path, "50%"), tmp_path / "whole")
    same_training(patient, whole)
    assert not [row for row in lines(patient, "events.jsonl") if row["event"] in ("config_changed", "stalled")]


def test_a_decision_is_taken_back_in_a_branch(stalled: Path, tmp_path: Path) -> None:
    overrides = ["phases.small.until.ended=null", "phases.small.until.patience=99"]
    other = branch(stalled, "step 9", overrides, tmp_path / "other", io.StringIO()).directory
    entered = [row["step"] for row in lines(other, "events.jsonl") if row["event"] == "phase_entered"]
    assert entered == [0, 24]


def test_in_code_the_walk_ends_where_the_phase_does(tmp_path: Path) -> None:
    machine = stackwise.assemble(stackwise.load(config(tmp_path, RULE)))
    events: list[Event] = list(machine.train())
    last = events[-1]
    assert isinstance(last, Stalled) and last.step == machine.step < 24


@pytest.mark.parametrize(
    ("until", "place"),
    [
        ("{stalls: other.loss, at_most: 50%}", "phases.small.until.stalls"),
        ("{stalls: held.lost, at_most: 50%}", "phases.small.until.stalls"),
        ("{stalls: held.loss}", "phases.small.until.at_most"),
        ("{at_most: 50%}", "phases.small.until.stalls"),
        ("{stalls: held.loss, at_most: 50%, patienc: 3}", "phases.small.until.patienc"),
        ("{stalls: held.loss, at_most: 50%, patience: 0}", "phases.small.until.patience"),
    ],
)
def test_what_cannot_be_decided_is_refused_with_its_place(until: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        make_plan(stackwise.load(config(tmp_path, until)), discover())
    assert place in [problem.path for problem in told.value.problems]


def test_the_last_phase_and_an_evaluation_at_boundaries_alone_are_refused(tmp_path: Path) -> None:
    text = config(tmp_path, "50%").read_text()
    for changed in (
        text.replace("grown: {", f"grown: {{until: {RULE}, "),
        config(tmp_path, RULE).read_text().replace("every: 3 steps, ", ""),
    ):
        (tmp_path / "changed.yaml").write_text(changed)
        with pytest.raises(ConfigError):
            make_plan(stackwise.load(tmp_path / "changed.yaml"), discover())


def test_progress_takes_the_new_timeline(stalled: Path) -> None:
    before = make_plan(stackwise.load(stalled / "config.yaml", ["phases.small.until.ended=null"]), discover()).schedule
    after = make_plan(stackwise.load(stalled / "config.yaml"), discover()).schedule
    progress = Progress(before, io.StringIO())
    bars = [progress._bar(0, 24)]
    progress.plan(after, None)
    bars.append(progress._bar(0, 24))
    assert bars[0] != bars[1]
