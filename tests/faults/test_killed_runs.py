"""A run that is killed at any step, any number of times, ends as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import field, frozen
from curriculum_of_everything import CONFIG, STEPS
from distributions import Site
from fork_server import ForkServer

from stackwise.checkpoints import CheckpointStore


@frozen
class Outcome:
    """Everything of a run that must not depend on whether it was interrupted."""

    tensors: dict[str, str]
    """sha256 of every tensor of the last state: parameters, optimizer state, what components remember."""
    state: Any
    """The rest of it: read positions, ledger, mixture, counters."""
    weights: str
    """sha256 of the final weights."""
    stream: list[dict[str, Any]]
    """Loss, gradient norm, learning rate and tokens of every step, and every evaluation."""
    events: list[dict[str, Any]]
    tally: str
    """What a remembering observer has heard."""
    data: dict[int, str] = field(repr=False)
    """Step → digest of its batches."""


def outcome(folder: Path, run: str = "run") -> Outcome:
    """Read all of it from the files; a step that was read twice must have been read alike."""
    directory = folder / run
    newest, skipped = CheckpointStore(directory / "checkpoints").newest()
    assert newest is not None and newest.step == STEPS and not skipped
    state = {**newest.document["machine"], "seconds": None}
    return Outcome(
        tensors={name: digest(tensor) for name, tensor in newest.load_tensors().items()},
        state=state,
        weights=sha256((directory / "final" / "weights.safetensors").read_bytes()).hexdigest(),
        stream=[timeless(line) for line in lines(directory / "metrics.jsonl")],
        events=[timeless(line) for line in lines(directory / "events.jsonl") if line["event"] in TOLD_ALIKE],
        tally=(folder / "tally.txt").read_text(),
        data=witnessed(folder),
    )


def witnessed(folder: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for step, read in map(json.loads, (folder / "witness.jsonl").read_text().splitlines()):
        assert found.setdefault(step, read) == read, f"step {step} read other data the second time"
    return found


TOLD_ALIKE = ("phase_entered", "evaluated", "run_finished")
"""Events that do not depend on whether a run was interrupted; starts and checkpoints do."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "seconds"}


def digest(tensor: torch.Tensor) -> str:
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + content).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.install("remembering", (Path(__file__).parents[1] / "support" / "remembering.py").read_text("utf-8"))
    with ForkServer([site.folder]) as running:
        yield running


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
