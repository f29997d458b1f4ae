"""Runs that end by their own rule: `run.stop`, by a metric or by the clock; resumed and changed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stopping_runs import STOPPING
from tiny_walks import base, drive, machine_of, memory, problems_of

from stackwise.cli import main
from stackwise.contracts.events import Evaluated, RunFinished, Stopped
from stackwise.errors import RunStopped
from stackwise.machine.patience import Patience
from stackwise.machine.settings import StopRule
from stackwise.runs import loop
from stackwise.runs.run import Result, resume, run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "stopping.yaml"
    path.write_text(STOPPING)
    return path


def log(directory: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "events.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "cpu_seconds")} for line in lines if line["event"] in kinds
    ]


def expected_stop(evaluated: list[dict[str, Any]], patience: int, least: float = 0.0) -> int | None:
    """The rule by hand, from the log: the step of the last evaluation that it allows."""
    best, without = float("inf"), 0
    for event in evaluated:
        if event["at"] == "entry":
            without = 0
            continue
        loss = event["metrics"]["loss"]
        best, without = (loss, 0) if loss < best - least else (best, without + 1)
        if without >= patience:
            return int(event["step"])
    return None


def quiet(*args: Any, **more: Any) -> Result:
    return run(*args, stream=io.StringIO(), **more)


def test_the_count_is_of_figures_that_are_not_better_by_more_than_the_least():
    patience = Patience(StopRule(metric="e.loss", patience=2, least=0.1))
    for step, (figure, ends) in enumerate([(3.0, False), (2.95, False), (2.85, False), (2.8, False), (float("nan"), True)]):
        patience.watch(step, {"e.loss": figure, "e.other": 0.0})
        assert (patience.why is not None) == ends
    assert patience.why is not None and "2.85 at step 2" in patience.why
    patience.enter_phase()
    assert patience.why is None


def test_more_may_be_better_and_no_figure_counts_twice():
    patience = Patience(StopRule(metric="e.accuracy", more=True, patience=1))
    for step, figure in ((1, 0.5), (2, 0.6), (2, 0.1)):
        patience.watch(step, {"e.accuracy": figure})
        assert patience.why is None
    patience.watch(3, {"e.accuracy": 0.6})
    assert patience.why is not None
    again = Patience(StopRule(metric="e.accuracy", more=True, patience=1))
    again.load(patience.state())
    assert again == patience
    other = Patience(StopRule(metric="e.loss"))
    other.load(patience.state())
    assert other == Patience(StopRule(metric="e.loss"))


def test_a_run_ends_where_the_rule_says_and_has_finished(config: Path, tmp_path: Path):
    result = quiet(config, output=tmp_path / "run")
    evaluated, (stopped,) = log(tmp_path / "run", "evaluated"), log(tmp_path / "run", "stopped")
    stop = expected_stop(evaluated, 3)
    assert stop is not None and 5 < stop < 40
    assert (stopped["step"], stopped["phase"]) == (stop, "two") and evaluated[-1]["step"] == stop
    assert result.summary.finished is not None and result.summary.finished.steps == stop
    assert f"stopped at step {stop}" in result.summary.text()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["steps"]) == ("finished", stop)
    assert (tmp_path / "run" / "checkpoints" / f"step-{stop:09d}").is_dir()
    assert json.loads((tmp_path / "run" / "final" / "weights.json").read_text())["step"] == stop
    shown = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)[0]["loss"] == pytest.approx(evaluated[-1]["metrics"]["loss"])


def test_what_has_stopped_is_finished_until_the_rule_changes(config: Path, tmp_path: Path):
    stop = log(quiet(config, output=tmp_path / "run").directory, "stopped")[0]["step"]
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    assert resume(tmp_path / "run", stream=io.StringIO()).finished_before
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
    result = resume(tmp_path / "run", ["run.stop=null", f"run.horizon={stop + 3} steps"], stream=io.StringIO())
    assert not result.finished_before and result.summary.stopped is None
    assert result.summary.finished is not None and result.summary.finished.steps == stop + 3


def test_the_limit_of_time_saves_and_leaves_with_exit_code_5(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The clock is ours here: an hour passes each time that it is read."""
    hours = iter(range(10_000))
    monkeypatch.setattr(loop, "monotonic", lambda: next(hours) * 3600.0)
    limited = ["run.stop={after: 4h30m}", "run.horizon=12 steps"]
    with pytest.raises(RunStopped) as caught:
        quiet(config, limited, output=tmp_path / "run")
    assert caught.value.exit_code == 5
    (stopped,) = log(tmp_path / "run", "stopped")
    assert "run.stop.after: 4h30m" in stopped["why"]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "stopped by its limit of time" and status["steps"] == stopped["step"] > 0
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped['step']:09d}").is_dir()
    monkeypatch.undo()
    resume(tmp_path / "run", stream=io.StringIO())
    quiet(config, ["run.stop=null", "run.horizon=12 steps"], output=tmp_path / "whole")
    first, second = ((tmp_path / name / "final" / "weights.safetensors").read_bytes() for name in ("run", "whole"))
    assert first == second


def test_a_machine_in_code_stops_too():
    data = {"sources": {"a": memory(heldout=0.3)}, "batch_size": 2, "seq_len": 4}
    config = base(data=data, evaluate={"e": {"every": "1 steps", "batches": 1}})
    config["run"] |= {"stop": {"metric": "e.loss", "patience": 1, "least": 100}}
    events = drive(machine_of(config))
    assert [type(event) for event in events[-3:]] == [Evaluated, Stopped, RunFinished]
    assert events[-1].steps == 2  # type: ignore[union-attr]  # the first figure is the best, the second is not better by 100


@pytest.mark.parametrize(
    ("stop", "path", "words"),
    [
        ({"metric": "heldot.loss"}, "run.stop.metric", "did you mean 'heldout'"),
        ({"metric": "heldout.accurasy"}, "run.stop.metric", "no task on the timeline has the metric 'accurasy'"),
        ({"metric": "loss"}, "run.stop.metric", "<evaluation>.<metric>"),
        ({"patience": 3}, "run.stop.patience", "metric: <evaluation>.<metric>"),
        ({"least": 0.1}, "run.stop.least", "metric: <evaluation>.<metric>"),
        ({"metric": "heldout.loss", "patience": 0}, "run.stop.patience", "minimum of 1"),
        ({"after": "12"}, "run.stop.after", "11h50m"),
        ({"after": "0h"}, "run.stop.after", "11h50m"),
        ({"after": "50m11h"}, "run.stop.after", "11h50m"),
        ({"afer": "1h"}, "run.stop.afer", "did you mean 'after'"),
    ],
)
def test_what_cannot_stop_a_run_is_refused_by_the_plan(stop: dict[str, Any], path: str, words: str):
    config = base(evaluate={"heldout": {"every": "50%", "batches": 1}})
    config["run"] |= {"stop": stop}
    (problem,) = problems_of(config)
    assert problem.path == path and words in problem.message
