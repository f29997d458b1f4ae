"""Runs as processes in a folder of their own, and what they leave behind."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen

from stackwise.storage.checkpoints.store import CheckpointStore

TOLD_ALIKE = ("phase_entered", "evaluated", "run_finished")
"""Events that do not depend on whether a run was interrupted; starts and checkpoints do."""


@frozen
class Outcome:
    """Everything of a run that must not depend on whether it was interrupted."""

    state: dict[str, Any]
    """The last state, with the sha256 of each tensor in its place."""
    weights: str
    """sha256 of the final weights."""
    stream: list[dict[str, Any]]
    """Loss, gradient norm, learning rate and tokens of every step, and every evaluation."""
    events: list[dict[str, Any]]
    tally: str
    """What a remembering observer has heard; empty where there is none."""
    log: list[dict[str, Any]] = field(eq=False)
    """Every event but the starts; equal where checkpoints are due alike."""
    data: dict[int, str] = field(repr=False)
    """Step → digest of its batches."""


def outcome(folder: Path, run: str = "run", *, once: bool = True) -> Outcome:
    """Read all of it from the files of a run that has finished; a step that was read twice must have been read alike.

    Args:
        folder: the working directory.
        run: the run directory in it.
        once: false where steps were meant to be read twice, from other data; the data are left out then.
    """
    directory, tally = folder / run, folder / "tally.txt"
    assert status(directory)["status"] == "finished"
    log = [timeless(line) for line in lines(directory / "events.jsonl") if line["event"] != "run_started"]
    newest, skipped = CheckpointStore(directory / "checkpoints").newest()
    assert newest is not None and newest.step == status(directory)["steps"] and not skipped
    return Outcome(
        state={**digested(newest.load_state()), "seconds": None, "cpu_seconds": None},
        weights=sha256((directory / "final" / "weights.safetensors").read_bytes()).hexdigest(),
        stream=[timeless(line) for line in lines(directory / "metrics.jsonl")],
        events=[line for line in log if line["event"] in TOLD_ALIKE],
        log=log,
        tally=tally.read_text() if tally.exists() else "",
        data=witnessed(folder) if once else {},
    )


def witnessed(folder: Path) -> dict[int, str]:
    """Step → digest of its batches, as every process of a run has written it down."""
    found: dict[int, str] = {}
    for step, read in map(json.loads, (folder / "witness.jsonl").read_text().splitlines()):
        assert found.setdefault(step, read) == read, f"step {step} read other data the second time"
    return found


def status(directory: Path) -> dict[str, Any]:
    """What `status.json` says."""
    content: dict[str, Any] = json.loads((directory / "status.json").read_text())
    return content


def saved_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints, oldest first."""
    return [int(name.removeprefix("step-")) for name in CheckpointStore(directory / "checkpoints").names()]


def losses(directory: Path) -> dict[int, Any]:
    """Step → loss, as logged; each step once."""
    steps = [line for line in lines(directory / "metrics.jsonl") if "evaluation" not in line]
    assert len({line["step"] for line in steps}) == len(steps)
    return {line["step"]: line["loss"] for line in steps}


def lines(path: Path) -> list[dict[str, Any]]:
    """A log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line without the time it took."""
    return {key: value for key, value in line.items() if key not in ("seconds", "cpu_seconds")}


def digested(state: Any) -> Any:
    """A nested state with the sha256 of each tensor in its place."""
    if isinstance(state, torch.Tensor):
        return digest(state)
    if isinstance(state, dict):
        return {key: digested(inner) for key, inner in state.items()}
    return type(state)(map(digested, state)) if isinstance(state, list | tuple) else state


def digest(tensor: torch.Tensor) -> str:
    """sha256 of dtype, shape and bits."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + content).hexdigest()
