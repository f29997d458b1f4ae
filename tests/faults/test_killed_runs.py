"""A run that is killed at any step, any number of times, ends as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from shutil import copytree

import pytest
from curriculum_of_everything import CONFIG, STEPS
from fork_server import ForkServer
from whole_runs import Outcome, digested, lines, losses, outcome, status, timeless

from stackwise.storage.checkpoints.store import CheckpointStore


@pytest.fixture(scope="module")
def uninterrupted(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("uninterrupted")
    begin(server, folder)
    found = outcome(folder)
    assert len(found.data) == STEPS and len([line for line in found.stream if "loss" in line and "evaluation" not in line]) == STEPS
    return found


def begin(server: ForkServer, folder: Path, *settings: str, kill: int | None = None) -> None:
    """The run from its start, to its end or until it is killed when step `kill` is done."""
    (folder / "exp.yaml").write_text(CONFIG)
    overrides = [word for setting in settings for word in ("--set", setting)]
    ended = server.stackwise("run", "exp.yaml", "--output", "run", *overrides, cwd=folder, signals={} if kill is None else {kill: ["KILL"]})
    assert ended.code == (0 if kill is None else -9), ended.err


def go_on(server: ForkServer, folder: Path, kill: int | None = None) -> str:
    """What standard error said."""
    ended = server.stackwise("resume", "run", cwd=folder, signals={} if kill is None else {kill: ["KILL"]})
    assert ended.code == (0 if kill is None else -9), ended.err
    return ended.err


FIRST = (0, 8, 24)
"""Steps at which a run is killed that has never been interrupted: at the start, and on both sides of what changes most."""


@pytest.fixture(scope="module")
def killed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Step → a folder with a run that was killed behind it: one of `FIRST`, or a copy of the one killed a step before that went on to here.

    A run is thus killed once, twice, up to sixteen times in a row, at the price of a start and a step each.
    """
    known: dict[int, Path] = {}

    def killed_at(step: int) -> Path:
        if step not in known:
            known[step] = tmp_path_factory.mktemp("killed") / str(step)
            if step in FIRST or step - 1 not in known:
                known[step].mkdir()
                begin(server, known[step], kill=step)
            else:
                copytree(known[step - 1], known[step])
                go_on(server, known[step], kill=step)
        return known[step]

    return killed_at


BOUNDARIES = (8, 16, 24, 32)
"""First steps of the later phases."""


@pytest.mark.slow
def test_killed_around_every_boundary_in_a_row(server: ForkServer, uninterrupted: Outcome, tmp_path: Path) -> None:
    """Behind the last step but one of a phase, behind its last, behind the first of the next; what one resume loses, the end shows."""
    begin(server, tmp_path, kill=0)
    for kill in (*(step + place for step in BOUNDARIES for place in (-2, -1, 0)), STEPS - 2):
        go_on(server, tmp_path, kill=kill)
    go_on(server, tmp_path)
    found = outcome(tmp_path)
    assert found == uninterrupted and found.log == uninterrupted.log


@pytest.mark.parametrize("step", [step if step in FIRST else pytest.param(step, marks=pytest.mark.rare) for step in range(STEPS)])
def test_killed_at_every_step(server: ForkServer, uninterrupted: Outcome, killed: Callable[[int], Path], tmp_path: Path, step: int) -> None:
    folder = Path(copytree(killed(step), tmp_path / "run"))
    told = go_on(server, folder)
    assert f"at step {step} of {STEPS}" in told
    found = outcome(folder)
    assert found == uninterrupted and found.log == uninterrupted.log


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=pytest.mark.slow if step in (6, 30) else pytest.mark.rare) for step in range(0, STEPS, 3)]
)
def test_killed_twice_and_three_times_between_sparse_checkpoints(
    server: ForkServer, uninterrupted: Outcome, tmp_path: Path, step: int
) -> None:
    begin(server, tmp_path, "run.checkpoint.every=7 steps", kill=step)
    go_on(server, tmp_path, kill=min(step + 2, STEPS - 1))
    go_on(server, tmp_path, kill=min(step + 9, STEPS - 1))
    go_on(server, tmp_path)
    assert outcome(tmp_path) == uninterrupted


def test_killed_three_times_with_read_ahead(server: ForkServer, uninterrupted: Outcome, tmp_path: Path) -> None:
    begin(server, tmp_path, "run.read_ahead=3", "run.checkpoint.asynchronous=true", kill=9)
    for kill in (16, 25, None):
        go_on(server, tmp_path, kill=kill)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.rare
def test_killed_three_times_with_two_reader_processes(server: ForkServer, uninterrupted: Outcome, tmp_path: Path) -> None:
    begin(server, tmp_path, "run.workers=2", kill=7)
    for kill in (8, 24, None):
        go_on(server, tmp_path, kill=kill)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
def test_killed_at_any_time_of_the_clock(server: ForkServer, tmp_path: Path) -> None:
    """Killed from outside wherever it is, in a step, in a save or while it gets ready; the rest is equal to the bit."""
    config = CONFIG.partition("phases:")[0].replace(f"{STEPS} steps", "400 steps").replace("observers:", "# observers:")
    config = config.replace("remembering.shift, vocab: 8", "data.token-noise, rate: 0.1, vocab: 8")
    config += "phases:\n  one: {until: 50%}\n  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}\n"
    (tmp_path / "exp.yaml").write_text(config)
    begin_at = ("run", "exp.yaml", "--resume", "auto", "--output")
    started = time.monotonic()
    assert server.stackwise(*begin_at, "whole", cwd=tmp_path).code == 0
    length, random, killed = time.monotonic() - started, Random(6), 0
    for _ in range(4):
        ended = server.stackwise(*begin_at, "run", cwd=tmp_path, kill_after_s=random.uniform(0.02, 0.3) * length)
        assert ended.code in (0, -9), ended.err
        killed += ended.code == -9
    assert killed > 1
    assert server.stackwise(*begin_at, "run", cwd=tmp_path).code == 0
    assert status(tmp_path / "run")["status"] == "finished"
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 400
    logs = [
        [timeless(line) for line in lines(tmp_path / name / "events.jsonl") if line["event"] != "run_started"] for name in ("run", "whole")
    ]
    assert logs[0] == logs[1]
    ends = [CheckpointStore(tmp_path / name / "checkpoints").newest()[0] for name in ("run", "whole")]
    first, second = ({**digested(end.load_state()), "seconds": None, "cpu_seconds": None} for end in ends if end is not None)
    assert first == second
