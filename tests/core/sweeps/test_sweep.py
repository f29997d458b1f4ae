"""Sweeps as they are called: what they share is what every run would have been alone, and a stopped one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from time import monotonic, sleep
from typing import Any

import pytest
import yaml
from attrs import evolve
from click.testing import CliRunner, Result
from whole_runs import outcome

from stackwise.cli import main
from stackwise.config.sweep import load_sweep
from stackwise.errors import ConfigError, UserError
from stackwise.reports.record import read_run
from stackwise.sweeps.tree import jobs_of
from stackwise.sweeps.work import open_directory

BASE = {
    "run": {"seed": 3, "horizon": "20 steps", "device": "cpu", "threads": 1},
    "task": {"use": "transformer.causal-lm"},
    "data": {
        "sources": {"a": {"use": "data.array-files", "files": {"tokens": "ids.npy"}, "vocab": 16, "heldout": 0.2}},
        "batch_size": 2,
        "seq_len": 4,
    },
    "model": {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    },
    "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 0.01}}},
    "evaluate": {"held": {"at": ["100%"], "batches": 1}},
    "phases": {"first": {"until": "50%"}, "second": {}},
}
SWEEP: dict[str, Any] = {
    "config": "base.yaml",
    "grid": {"optimizer.lr.wsd.decay": ["20%", "40%"]},
    "settings": {
        "shallow": {},
        "grown": {"phases.second": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": {"use": "transformer.stack"}}}},
    },
    "seeds": [1, 2],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import numpy

    numpy.save(tmp_path / "ids.npy", numpy.random.default_rng(0).integers(0, 16, 3000))
    write(tmp_path, SWEEP)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def write(folder: Path, sweep: dict[str, Any]) -> None:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    (folder / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sweep", "s.yaml", *arguments])


def test_a_tree_shares_what_is_declared_alike(folder: Path) -> None:
    jobs = {job.point.name: job for job in jobs_of(load_sweep(folder / "s.yaml"))}
    first = "shallow,decay=20%,seed=1"
    assert {name: (job.parent, job.start) for name, job in jobs.items() if name.endswith("seed=1")} == {
        first: (None, 0),
        "shallow,decay=40%,seed=1": (first, 13),  # of 20 steps the decay of 40 % begins after 12; the value of step 12 is still the peak
        "grown,decay=20%,seed=1": (first, 10),
        "grown,decay=40%,seed=1": ("grown,decay=20%,seed=1", 13),
    }
    assert jobs[first].saves == (10, 13)
    assert all(job.parent is None or job.parent.endswith("seed=2") for name, job in jobs.items() if name.endswith("seed=2"))
    assert jobs[first].flops == jobs[first].flops_alone
    other = jobs["shallow,decay=40%,seed=1"]
    assert other.flops == pytest.approx(other.flops_alone * 7 / 20)


def test_a_trunk_that_saves_less_than_its_checkpoint_is_worth_is_not_shared(folder: Path) -> None:
    """A decay of all 200 steps leaves the peak after the first, one of 199 after the second: half a percent is not shared, one is."""
    lasting = {"run.horizon": "200 steps", "evaluate": None, "phases": None}
    for decay, start in (("100%", 0), ("99.5%", 2)):
        write(folder, {"config": "base.yaml", "settings": {"a": lasting}, "grid": {"optimizer.lr.wsd.decay": ["20%", decay]}})
        assert [job.start for job in jobs_of(load_sweep(folder / "s.yaml"))] == [0, start]


def test_the_plan_trains_nothing(folder: Path) -> None:
    told = json.loads(call("--plan", "--json").stdout)
    assert len(told) == 8 and sum(each["steps"] - each["start"] for each in told) == 2 * (20 + 7 + 10 + 7)
    assert "88 steps to train, 160" in call("--plan").stdout
    assert not (folder / "sweeps").exists()


@pytest.mark.slow
def test_every_run_is_bit_for_bit_what_it_is_alone(folder: Path) -> None:
    late = {"optimizer.lr.wsd.decay": "40%"}
    write(folder, {**SWEEP, "seeds": [1], "grid": {}, "settings": {**SWEEP["settings"], "late": late}})
    shared, alone = call("--jobs", "2", "--output", "shared", "--json"), call("--jobs", "2", "--output", "alone", "--json", "--alone")
    assert shared.exit_code == alone.exit_code == 0, shared.output + alone.output
    names = [job.point.name for job in jobs_of(load_sweep(folder / "s.yaml"))]
    for name in names:
        one, other = outcome(folder, f"shared/{name}", once=False), outcome(folder, f"alone/{name}", once=False)
        assert one.weights == other.weights and one.stream == other.stream and one.state["model"] == other.state["model"]
    figures = [json.loads(result.stdout)["reached"] for result in (shared, alone)]
    assert figures[0] == figures[1] and {row["metric"] for row in figures[0]} >= {"loss"}
    assert [read_run(folder / "shared" / name).parent is None for name in names] == [True, False, False]


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on(folder: Path) -> None:
    write(folder, {**SWEEP, "seeds": [1], "settings": {"long": {"run.horizon": "400 steps", "evaluate.held.at": ["100%"]}}})
    command = [sys.executable, "-c", "from stackwise.cli import main; main()", "sweep", "s.yaml", "--output", "out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log, deadline = folder / "out" / "long,decay=20%,seed=1" / "metrics.jsonl", monotonic() + 120
    while not (log.exists() and log.stat().st_size > 2000) and monotonic() < deadline:
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    status = json.loads((log.parent / "status.json").read_text())["status"]
    assert status == "stopped by SIGTERM" and not (folder / "out" / "long,decay=40%,seed=1").exists()
    write(folder, {**SWEEP, "seeds": [1], "settings": {"long": {"run.horizon": "400 steps", "evaluate.held.at": ["100%"]}}})
    again = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "goes on" in again.stderr, again.stderr
    for job in jobs_of(load_sweep(folder / "s.yaml")):
        name, sets = job.point.name, [word for key in job.overrides for word in ("--set", key)]
        assert CliRunner().invoke(main, ["run", "base.yaml", "--output", f"whole/{name}", *sets]).exit_code == 0
        assert outcome(folder, f"out/{name}", once=False).weights == outcome(folder, f"whole/{name}", once=False).weights


@pytest.mark.slow
def test_a_run_that_fails_takes_its_code_with_it_and_leaves_the_others(folder: Path) -> None:
    bad = {"optimizer.lr.wsd.peak": 1e30, "run.non_finite": "halt"}
    write(folder, {"config": "base.yaml", "settings": {"good": {}, "bad": bad, "later": {**bad, "optimizer.lr.wsd.decay": "10%"}}})
    result = call("--output", "out")
    assert result.exit_code == 4 and "bad" in result.stderr and "good" in result.stdout
    assert [json.loads((folder / "out" / name / "status.json").read_text())["status"] for name in ("good",)] == ["finished"]


@pytest.mark.slow
def test_a_run_whose_beginning_is_not_there_begins_at_its_own_start(folder: Path) -> None:
    """The first run has stopped by its rule before the step at which the second would begin."""
    early = {"run.stop": {"metric": "held.loss", "patience": 1, "least": 9}, "evaluate.held": {"every": "10%", "batches": 1, "at": None}}
    write(folder, {"config": "base.yaml", "settings": {"early": early}, "grid": {"optimizer.lr.wsd.decay": ["20%", "40%"]}})
    assert jobs_of(load_sweep(folder / "s.yaml"))[1].parent == "early,decay=20%"
    result = call("--output", "out")
    assert result.exit_code == 0 and "at its own start" in result.stderr
    one, two = (outcome(folder, f"out/early,decay={decay}", once=False) for decay in ("20%", "40%"))
    assert one.weights == two.weights and one.stream == two.stream


@pytest.mark.slow
def test_every_end_of_a_trunk_is_bit_for_bit_its_branch(folder: Path) -> None:
    """Two ends of one run: the first leaves it at the trunk's checkpoint, the second begins in the middle of the first."""
    assert CliRunner().invoke(main, ["run", "base.yaml", "--output", "runs/trunk", "--set", 'run.checkpoint.at=["8 steps"]']).exit_code == 0
    ends = {"trunk": "runs/trunk", "at": "45%", "grid": {"optimizer.lr.wsd.decay": ["20%", "30%"]}, "settings": {"as": {}}}
    write(folder, ends)
    told = json.loads(call("--plan", "--json").stdout)
    assert [(each["parent"], each["start"]) for each in told] == [(None, 8), ("as,decay=20%", 15)]
    assert told[0]["flops"] == pytest.approx(told[0]["flops_alone"])
    result = call("--output", "out", "--json")
    assert result.exit_code == 0, result.output
    for decay in ("20%", "30%"):
        sets = ["--set", f"optimizer.lr.wsd.decay={decay}"]
        assert CliRunner().invoke(main, ["branch", "runs/trunk", "--at", "step 8", *sets, "--output", f"alone/{decay}"]).exit_code == 0
        one, other = outcome(folder, f"out/as,decay={decay}", once=False), outcome(folder, f"alone/{decay}", once=False)
        assert one.weights == other.weights and one.stream == other.stream
    parents = [json.loads((folder / "out" / f"as,decay={decay}" / "status.json").read_text())["parent"] for decay in ("20%", "30%")]
    assert [(Path(parent["run"]).name, parent["step"]) for parent in parents] == [("trunk", 8), ("as,decay=20%", 15)]
    assert "goes on" not in call("--output", "out").stderr  # finished runs stay
    for past, name in (({"seeds": [3, 4]}, "seed=4"), ({"grid": {"optimizer.lr.wsd.peak": [0.01, 0.02]}}, "as,peak=0.02")):
        write(folder, {**ends, **past})  # the past of the second run is not the trunk's
        refused = call("--output", "other")
        assert refused.exit_code == 2 and f"{name}: " in refused.stderr and not (folder / "other").exists(), refused.output
    copytree(folder / "runs" / "trunk", folder / "runs" / "copy")
    write(folder, {**ends, "trunk": "runs/copy"})
    again = call("--output", "out")
    assert again.exit_code == 2 and "its trunk" in again.stderr


@pytest.mark.parametrize("lacks", [{"at": "50%"}, {"trunk": "runs/a"}, {"config": "base.yaml", "at": "50%"}, {"seeds": [1]}], ids=str)
def test_a_trunk_and_a_place_in_it_go_together(folder: Path, lacks: dict[str, Any]) -> None:
    write(folder, lacks)
    with pytest.raises(ConfigError):
        load_sweep(folder / "s.yaml")


def test_a_trunk_that_is_no_run_is_refused(folder: Path) -> None:
    write(folder, {"trunk": "nowhere", "at": "50%"})
    assert call().exit_code == 2 and not (folder / "sweeps").exists()


def test_the_sides_of_the_first_example_cost_as_much() -> None:
    """To 1 %: a number of steps is whole."""
    found = load_sweep(Path(__file__).parents[3] / "examples" / "sweeps" / "first.yaml")
    costs = [job.flops for job in jobs_of(evolve(found, seeds=(2,)))]
    assert len(costs) == 3 and costs == pytest.approx([3.38e11] * 3, rel=0.01)


@pytest.mark.slow
def test_runs_of_other_lengths_are_compared_at_their_ends(folder: Path) -> None:
    write(folder, {"config": "base.yaml", "settings": {"long": {}, "short": {"run.horizon": "10 steps"}}})
    result = call("--output", "out", "--json")
    rows = {row["metric"]: row for row in json.loads(result.stdout)["reached"]}
    ends = [read_run(folder / "out" / name).evaluations[-1] for name in ("long", "short")]
    assert rows["loss"]["steps"] == [20, 10] and rows["loss"]["values"] == [end["metrics"]["loss"] for end in ends]
    assert len(rows["loss"]["means"]) == 2 and "at the end of each" in call("--output", "out").stdout


def test_two_sweeps_do_not_write_to_one_directory(folder: Path) -> None:
    found = load_sweep(folder / "s.yaml")
    lock = open_directory(folder / "out", found, jobs_of(found))
    result = call("--output", "out")
    lock.release()
    assert result.exit_code == 2 and not list((folder / "out" / "logs").iterdir())


def test_a_change_in_a_file_that_the_config_extends_is_a_change(folder: Path) -> None:
    (folder / "common.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    (folder / "base.yaml").write_text("extends: common.yaml\n", encoding="utf-8")
    found = load_sweep(folder / "s.yaml")
    open_directory(folder / "out", found, jobs_of(found)).release()
    open_directory(folder / "out", found, jobs_of(found)).release()
    (folder / "common.yaml").write_text(yaml.safe_dump({**BASE, "optimizer": {"use": "optim.sgd"}}), encoding="utf-8")
    with pytest.raises(UserError):
        open_directory(folder / "out", found, jobs_of(found))


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, '{"runs": null}', '{"runs": []}', '{"config": 1e400, "runs": {}}'], ids=lambda text: text[:12]
)
def test_a_record_that_is_damaged_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"out/sweep\.json is damaged: .*: remove it"):
        open_directory(folder / "out", load_sweep(folder / "s.yaml"), [])


def test_a_pipe_in_the_place_of_a_record_is_refused_at_once(folder: Path) -> None:
    (folder / "out").mkdir()
    os.mkfifo(folder / "out" / "sweep.json")
    with pytest.raises(UserError, match="is not a regular file"):
        open_directory(folder / "out", load_sweep(folder / "s.yaml"), [])


def test_names_stay_inside_the_directory_and_short_enough_for_a_file(folder: Path) -> None:
    write(folder, {"config": "base.yaml", "settings": {"..": {}, "长" * 120: {}, "../up": {}}})
    names = [point.name for point in load_sweep(folder / "s.yaml").points()]
    assert len(set(names)) == 3
    for name in names:
        assert (folder / f"{name}.log").resolve().parent == folder and (folder / name).resolve() not in (folder, folder.parent)
        (folder / f"{name}.log").write_text("")


def test_instants_of_the_config_are_kept_as_they_are_written(folder: Path) -> None:
    changed = {"run.checkpoint": {"at": ["33.33333333%"]}}
    write(folder, {"config": "base.yaml", "settings": {"a": changed}, "grid": {"optimizer.lr.wsd.decay": ["20%", "40%"]}})
    first = jobs_of(load_sweep(folder / "s.yaml"))[0]
    assert first.overrides[-1] == 'run.checkpoint.at=["33.33333333%", "13 steps"]'


def test_a_directory_of_another_sweep_is_refused(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    result = call("--output", "out")
    assert result.exit_code == 2 and (folder / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"grid": {"optimizer.lr": []}}, "grid"),
        ({"settings": {"a": {}, "a ": {}, "a  ": {}}, "grid": {}}, "settings"),
        ({"gird": {}}, "gird"),
        ({"grid": {"optimizer.lr": 3}}, "grid"),
        ({"seeds": ["x"]}, "seeds"),
        ({"grid": {"run.seed": [1]}}, "grid.run.seed"),
        ({"settings": {"a": {"optimizer.lr.wsd.decay": "5%"}}}, "settings.a.optimizer.lr.wsd.decay"),
        ({"settings": {"sweep.json": {}}, "grid": {}, "seeds": []}, "settings"),
        ({"config": None}, "config"),
        ({"config": "base.yaml", "trunk": "runs/a"}, "at"),
    ],
    ids=str,
)
def test_mistakes_in_the_file_are_named(folder: Path, change: dict[str, Any], where: str) -> None:
    write(folder, {**SWEEP, **change})
    with pytest.raises(ConfigError) as caught:
        load_sweep(folder / "s.yaml").points()
    assert any(problem.path.startswith(where) for problem in caught.value.problems)


def test_a_mistake_in_the_config_of_one_run_ends_the_sweep_before_it_begins(folder: Path) -> None:
    write(folder, {**SWEEP, "grid": {"optimizer.lr": ["fast"]}})
    result = call("--output", "out")
    assert result.exit_code == 2 and not (folder / "out").exists()
