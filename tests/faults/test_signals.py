"""Signals are obeyed at the next step boundary, with the state saved; the second one at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from curriculum_of_everything import CONFIG, STEPS
from fork_server import Ended, ForkServer
from whole_runs import Outcome, lines, outcome, saved_steps, status

SPARSE = ("--set", "run.checkpoint.every=100%", "--set", "run.checkpoint.at_phases=false")


@pytest.fixture(scope="module")
def uninterrupted(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(server, folder, {}).code == 0
    return outcome(folder)


def run(server: ForkServer, folder: Path, signals: dict[int, list[str]]) -> Ended:
    (folder / "exp.yaml").write_text(CONFIG)
    return server.stackwise("run", "exp.yaml", "--output", "run", *SPARSE, cwd=folder, signals=signals)


def stopping() -> list[object]:
    """Every signal that stops, at some step; the ones of old at more."""
    cases = [("TERM", 143, 15), ("INT", 130, 15), ("HUP", 129, 15), ("USR2", 128 + signal.SIGUSR2, 15), ("XCPU", 128 + signal.SIGXCPU, 15)]
    more = [(name, code, step) for name, code in (("TERM", 143), ("INT", 130)) for step in (16, 0)]
    return [*cases, *(pytest.param(*case, marks=pytest.mark.slow) for case in more)]


@pytest.mark.parametrize(("name", "code", "step"), stopping())
def test_one_signal_saves_the_state_behind_the_step_and_leaves(
    server: ForkServer, uninterrupted: Outcome, tmp_path: Path, name: str, code: int, step: int
) -> None:
    ended = run(server, tmp_path, {step: [name]})
    assert ended.code == code
    assert "Traceback" not in ended.err and f"SIG{name}" in ended.err and "stackwise resume run" in ended.err
    assert saved_steps(tmp_path / "run") == [step + 1]
    assert (status(tmp_path / "run")["status"], status(tmp_path / "run")["steps"]) == (f"stopped by SIG{name}", step + 1)
    assert not (tmp_path / "run" / "final").exists()
    assert server.stackwise("resume", "run", cwd=tmp_path).code == 0
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize(("names", "code"), [(["TERM", "TERM"], 143), (["INT", "INT"], 130), (["INT", "TERM"], 143)])
def test_the_second_signal_leaves_at_once(server: ForkServer, tmp_path: Path, names: list[str], code: int) -> None:
    ended = run(server, tmp_path, {3: ["USR1"], 20: names})
    assert ended.code == code
    assert saved_steps(tmp_path / "run") == [4]  # asked for at step 3; nothing was written after the second signal
    assert server.stackwise("resume", "run", cwd=tmp_path, signals={5: ["KILL"]}).code == -9


def test_a_limit_of_processor_time_that_repeats_itself_is_no_second_wish(server: ForkServer, tmp_path: Path) -> None:
    assert run(server, tmp_path, {20: ["XCPU", "XCPU", "XCPU"]}).code == 128 + signal.SIGXCPU
    assert saved_steps(tmp_path / "run") == [21]


def test_what_nohup_has_ignored_stays_ignored(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(CONFIG)
    patch = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    ended = server.stackwise("run", "exp.yaml", "--output", "run", *SPARSE, cwd=tmp_path, signals={15: ["HUP"]}, patch=patch)
    assert ended.code == 0 and status(tmp_path / "run")["status"] == "finished"


def test_usr1_saves_and_goes_on(server: ForkServer, uninterrupted: Outcome, tmp_path: Path) -> None:
    assert run(server, tmp_path, {10: ["USR1"], 21: ["USR1"]}).code == 0
    saved = [(line["step"], line["reason"]) for line in lines(tmp_path / "run" / "events.jsonl") if line["event"] == "checkpoint_saved"]
    assert saved == [(11, "signal"), (22, "signal"), (STEPS, "end")]
    assert outcome(tmp_path) == uninterrupted


def test_a_signal_after_the_last_step_does_not_lose_the_end(server: ForkServer, uninterrupted: Outcome, tmp_path: Path) -> None:
    assert run(server, tmp_path, {STEPS - 1: ["TERM"]}).code == 143
    told = server.stackwise("resume", "run", cwd=tmp_path)
    assert told.code == 0 and f"at step {STEPS} of {STEPS}" in told.err
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_signal_from_outside_at_any_time(tmp_path: Path) -> None:
    """While modules are imported and data are built nobody has promised anything; once a step is done its state is saved."""
    config = CONFIG.partition("phases:")[0].replace("40 steps", "40000 steps").replace("observers:", "# observers:")
    config = config.replace("remembering.shift, vocab: 8", "data.token-noise, rate: 0.1, vocab: 8")
    (tmp_path / "exp.yaml").write_text(config)
    code = "from stackwise.cli import main; main(prog_name='stackwise')"
    command = [sys.executable, "-c", code, "run", "exp.yaml", "--output", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert saved_steps(tmp_path / "run")[-1] == status(tmp_path / "run")["steps"] > 0


HANGS = """
import os, signal, threading, stackwise.runs.signals as s
s.PATIENCE_S = 0.3
from stackwise.planes.data.plane import DataPlane
deliver = DataPlane.batches
def hanging(plane, moment):
    if moment.step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()
    return deliver(plane, moment)
DataPlane.batches = hanging
"""


def test_a_step_that_never_ends_does_not_hold_a_stop_for_ever(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(CONFIG)
    command = ("run", "exp.yaml", "--output", "run", "--set", "run.checkpoint.every=2 steps")
    ended = server.stackwise(*command, cwd=tmp_path, patch=HANGS)
    assert ended.code == 143 and "SIGTERM came" in ended.err and saved_steps(tmp_path / "run") == [2, 4], ended.err
