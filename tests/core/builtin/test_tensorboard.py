"""What TensorBoard's own reader finds of a run: everything that the log holds, once, both sides of a boundary apart."""

from __future__ import annotations

import io
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shown_runs import CONFIG, log

import stackwise
from stackwise.builtin import tracking
from stackwise.contracts.events import RunStarted, StepDone
from stackwise.errors import RunStopped
from stackwise.runs.run import resume

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


class Interruption(io.StringIO):
    """A terminal whose reader sends SIGTERM when the second phase is entered."""

    def write(self, text: str) -> int:
        if "enter grown" in text:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def config(folder: Path, options: str = "") -> Path:
    path = folder / "tracked.yaml"
    tokens = [(i * i + 3 * i) % 8 for i in range(240)]
    path.write_text(CONFIG.format(seed=3, lr=1e-2, steps=16, tokens=tokens) + f"observers: [{{use: core.tensorboard{options}}}]\n")
    return path


def read(folder: Path) -> Any:
    reader = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return reader.Reload()


def test_one_run_across_a_stop_and_a_resume_holds_every_scalar_of_the_log(tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(RunStopped):
        stackwise.run(config(tmp_path), output=run, stream=Interruption())
    resume(run, stream=io.StringIO())
    written, steps = read(run / "tensorboard"), [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    for tag, key in {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/tokens": "tokens"}.items():
        scalars = written.Scalars(tag)
        assert [scalar.step for scalar in scalars] == list(range(16))
        assert [scalar.value for scalar in scalars] == [np.float32(line[key]) for line in steps]
    assert {tag.split("/")[0] for tag in written.Tags()["scalars"]} == {"train", "lr", "boundary", "held", "held after boundary"}
    evaluated = [event for event in log(run, "events.jsonl") if event["event"] == "evaluated"]
    for tag, entry in {"held/loss": False, "held after boundary/loss": True}.items():
        expected = [(e["step"], np.float32(e["metrics"]["loss"])) for e in evaluated if (e["at"] == "entry") == entry]
        assert [(scalar.step, scalar.value) for scalar in written.Scalars(tag)] == expected
    texts = written.Tags()["tensors"]
    assert {"config/text_summary", "plan/text_summary"} <= set(texts)
    assert b"horizon: 16 steps" in written.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_shared_directory_gets_a_folder_per_run_with_the_steps_that_are_asked_for(tmp_path: Path):
    run, shared = tmp_path / "third", tmp_path / "shared"
    stackwise.run(config(tmp_path, f", directory: {shared}, every: 5"), output=run, stream=io.StringIO())
    assert not (run / "tensorboard").exists()
    (folder,) = shared.iterdir()
    assert folder.name == "third"
    assert [scalar.step for scalar in read(folder).Scalars("train/loss")] == [0, 5, 10, 15]


class Flaky:
    """A backend that refuses its next few calls."""

    def __init__(self) -> None:
        self.refusals, self.written = 0, []

    def _refuse(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError("the server hiccups")

    def open(self, facts: object, step: int, identity: object) -> None:
        self._refuse()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._refuse()
        self.written.append(step)

    def flush(self) -> None: ...
    def close(self, status: str) -> None: ...


def step(number: int) -> StepDone:
    return StepDone(number, "a", 1.0, 1.0, 0.1, 8, 0.1)


def test_a_hiccup_is_tried_again_told_when_it_lasts_and_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "PAUSES_S", (0.0, 0.0))
    backend = Flaky()
    tracker = tracking.Tracker(backend)
    tracker(RunStarted(9, "cpu", "float32", ()))
    backend.refusals = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker(step(0))
    backend.refusals = 3
    with pytest.warns(RuntimeWarning, match=r"step 1\b.*the server hiccups"):
        tracker(step(1))
    tracker(step(2))
    assert backend.written == [0, 2]


def test_only_the_steps_that_are_asked_for_are_written():
    backend = Flaky()
    tracker = tracking.Tracker(backend, every=3)
    tracker(RunStarted(9, "cpu", "float32", ()))
    for number in range(8):
        tracker(step(number))
    assert backend.written == [0, 3, 6]


def test_a_tracker_that_cannot_begin_says_so_once_and_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "PAUSES_S", ())
    backend = Flaky()
    backend.refusals = 1
    tracker = tracking.Tracker(backend)
    with pytest.warns(RuntimeWarning, match="could not begin"):
        tracker(RunStarted(9, "cpu", "float32", ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker(step(0))
        tracker.leave("finished")
    assert backend.written == []
