"""Observers: called with every event, changing none."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from stackwise.conformance import bench
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import Subject, must
from stackwise.contracts.events import (
    CheckpointRefused,
    CheckpointSaved,
    ConfigChanged,
    Evaluated,
    PhaseEntered,
    Reacted,
    Rewound,
    RunFacts,
    RunFinished,
    RunStarted,
    Stalled,
    StepDone,
    Stopped,
)
from stackwise.contracts.protocols import LeavesRun, MeetsRun


class LaterKind(NamedTuple):
    """An event that no observer of today knows."""

    step: int


def events() -> list[Any]:
    """One event of every kind, and one of a kind that is yet to come."""
    metrics, rates = {"accuracy": 0.4}, {"default.lr": 0.1, "norms.lr": 0.2}
    return [
        RunStarted(2, "cpu", "float32", ()),
        ConfigChanged(0, "optimizer.lr", 0.2, 0.1),
        PhaseEntered(0, "check", 0, 10, 10, 10, 0, 0, 0, 0, 0, 0, 0.1),
        StepDone(0, "check", 1.0, 0.5, 0.1, 32, 0.01, False, metrics=metrics, rates=rates),
        Evaluated(1, "check", "clean", "cadence", {"loss": 0.9, "accuracy": 0.5}, 0.1),
        Reacted(1, "check", 1.0, 0.5, "the loss stands still"),
        CheckpointSaved(1, "step-0000000001", 0.1, "cadence"),
        LaterKind(1),
        StepDone(1, "check", float("nan"), float("inf"), 0.1, 64, 0.01, True, "its loss is not finite"),
        CheckpointRefused(2, "model/head.weight is not finite"),
        Rewound(1, 2, "two steps in a row were not finite"),
        StepDone(1, "check", 0.9, 0.5, 0.1, 64, 0.01),
        Stalled(2, "check", "clean.loss stands still"),
        Stopped(2, "check", "clean.loss is below 1"),
        RunFinished(2, 64, 0.2, 1, {"data": {"rows": 8, "tokens": 64}}),
    ]


def check_takes_every_event(subject: Subject) -> None:
    """An observer takes every event of a run, also a step that was not finite and an event it does not know.

    Usual cause: an `else` that raises; a number formatted that may be nan; a folder that is not there.
    """
    observer = artifact_of(subject)
    must(callable(observer), f"{type(observer).__name__} cannot be called with an event")
    if isinstance(observer, MeetsRun):
        Path("check").mkdir(exist_ok=True)
        observer.meet(RunFacts("check", "check", {"run": {"name": "check"}}, {"name": "check", "phases": []}))
    for event in events():
        observer(event)
    if isinstance(observer, LeavesRun):
        observer.leave("finished")


def check_leaves_events(subject: Subject) -> None:
    """Events are shared by all observers, so one that takes them apart leaves them as they were.

    Usual cause: `metrics.pop("loss")` on the map of an `Evaluated`.
    """
    observer = artifact_of(subject)
    try:
        for event in events():
            parts = [bench.copy_of(part) for part in event]
            with suppress(Exception):  # check_takes_every_event reports it
                observer(event)
            changed = [name for name, before, part in zip(event._fields, parts, event, strict=True) if repr(before) != repr(part)]
            must(not changed, f"it changes {', '.join(changed)} of {type(event).__name__}")
    finally:  # a thread of its own must not write when the folder of the check is gone
        if isinstance(observer, LeavesRun):
            with suppress(Exception):
                observer.leave("finished")
