"""A run that is killed at any step, any number of times, ends as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from curriculum_of_everything import CONFIG, STEPS
from fork_server import ForkServer
from whole_runs import Outcome, digest, losses, outcome, status

from stackwise.checkpoints import CheckpointStore


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


@pytest.mark.parametrize("step", [step if step in (0, 8, 24) else pytest.param(step, marks=pytest.mark.slow) for step in range(STEPS)])
def test_killed_once(server: ForkServer, uninterrupted: Outcome, tmp_path: Path, step: int) -> None:
    begin(server, tmp_path, kill=step)
    told = go_on(server, tmp_path)
    assert f"at step {step} of {STEPS}" in told
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.slow) for step in range(0, STEPS, 3)])
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


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 8, 24])
def test_killed_with_two_reader_processes(server: ForkServer, uninterrupted: Outcome, tmp_path: Path, step: int) -> None:
    begin(server, tmp_path, "run.workers=2", kill=step)
    go_on(server, tmp_path)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
def test_killed_at_any_time_of_the_clock(tmp_path: Path) -> None:
    """Whole processes, killed from outside wherever they are: imports, steps, saves; the rest is equal to the bit."""
    config = CONFIG.partition("phases:")[0].replace(f"{STEPS} steps", "400 steps").replace("observers:", "# observers:")
    config = config.replace("remembering.shift, vocab: 8", "data.token-noise, rate: 0.1, vocab: 8")
    config += "phases:\n  one: {until: 50%}\n  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}\n"
    (tmp_path / "exp.yaml").write_text(config)
    command = [sys.executable, "-c", "from stackwise.cli import main; main(prog_name='stackwise')"]
    begin_at = [*command, "run", "exp.yaml", "--resume", "auto", "--output"]
    started = time.monotonic()
    subprocess.run([*begin_at, "whole"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    length, random = time.monotonic() - started, Random(6)
    for _ in range(5):
        process = subprocess.Popen([*begin_at, "run"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(random.uniform(0.2, 0.9) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*begin_at, "run"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert status(tmp_path / "run")["status"] == "finished"
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 400
    ends = [CheckpointStore(tmp_path / name / "checkpoints").newest()[0] for name in ("run", "whole")]
    first, second = ({name: digest(tensor) for name, tensor in end.load_tensors().items()} for end in ends if end is not None)
    assert first == second
