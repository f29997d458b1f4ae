"""A run that stops itself stops at the same step when it was killed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer
from stopping_runs import STOPPING
from whole_runs import lines, losses, status, timeless

TOLD = ("stopped", "evaluated", "phase_entered", "run_finished")


def told(folder: Path) -> list[dict[str, Any]]:
    return [timeless(line) for line in lines(folder / "run" / "events.jsonl") if line["event"] in TOLD]


def begin(server: ForkServer, folder: Path, kill: int | None = None) -> None:
    (folder / "stopping.yaml").write_text(STOPPING)
    signals = {} if kill is None else {kill: ["KILL"]}
    ended = server.stackwise("run", "stopping.yaml", "--output", "run", cwd=folder, signals=signals)
    assert ended.code == (0 if kill is None else -9), ended.err


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    begin(server, folder)
    return folder


@pytest.mark.parametrize("before", [1, 2, 8])
def test_it_stops_at_the_same_step(server: ForkServer, whole: Path, tmp_path: Path, before: int):
    """Killed `before` steps before the stop, between the evaluations that count; the count is in the state that it goes on from."""
    stop = status(whole / "run")["stopped_at"]
    begin(server, tmp_path, kill=stop - before)
    ended = server.stackwise("resume", "run", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert status(tmp_path / "run")["stopped_at"] == stop
    assert told(tmp_path) == told(whole)
    assert losses(tmp_path / "run") == losses(whole / "run")
    weights = Path("run") / "final" / "weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()
