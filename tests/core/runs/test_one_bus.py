"""Every event of a run reaches every declared observer, by one path: checkpoints, rewinds and changed configs like steps."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny_walks import base, memory, plan_of

import stackwise
from stackwise.contracts.events import Event
from stackwise.reports.progress import Progress
from stackwise.runs.loop import RunLoop
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import RunDirectory


class CountsKinds:
    """The smallest observer of all."""

    def __init__(self) -> None:
        self.kinds = Counter[str]()

    def __call__(self, event: Event) -> None:
        self.kinds[type(event).__name__] += 1


class Remembers(CountsKinds):
    """One whose counts are part of the run."""

    def state_dict(self) -> dict[str, Any]:
        return {"kinds": self.kinds}  # the live object: who saves it copies it

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kinds = Counter(state["kinds"])


class Fails:
    """Raises at its third event."""

    heard = 0

    def __call__(self, event: Event) -> None:
        self.heard += 1
        if self.heard == 3:
            raise ValueError("no more")


class Stutters(Fails):
    """Raises at some events and asks to be tried again; it is told when the run is over."""

    retries, fails_at = 2, (3, 4, 7)
    left: str | None = None

    def __call__(self, event: Event) -> None:
        self.heard += 1
        if self.heard in self.fails_at:
            raise ConnectionError("no line")

    def leave(self, status: str) -> None:
        self.left = status


class GivesUp(Stutters):
    """Fails once too often in a row."""

    fails_at = (3, 4, 5)


def config(observers: list[Any]) -> dict[str, Any]:
    """Twelve steps; a checkpoint every two, at the boundary and at the end, evaluations in between."""
    return base(
        run={"name": "tiny", "seed": 3, "horizon": "12 steps", "device": "cpu", "non_finite": "rewind", "checkpoint": {"every": "2 steps"}},
        data={"sources": {"a": memory(heldout=0.2)}, "batch_size": 2, "seq_len": 4},
        evaluate={"e": {"every": "4 steps", "batches": 1}},
        phases={"one": {"until": "5 steps"}, "two": {"optimizer": {"lr": 0.001}}},
        observers=observers,
    )


def loop_of(folder: Path, observers: list[Any]) -> RunLoop:
    """A run in a directory: a new one, or what is left of the one that is there."""
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "plan.json").write_text('{"phases": []}', encoding="utf-8")  # one without prices
    plan = plan_of(config(observers))
    machine, store = stackwise.assemble(plan), CheckpointStore(folder / "run" / "checkpoints", keep_last=20)
    checkpoint, _ = store.newest()
    if checkpoint is None:
        return RunLoop(plan=plan, machine=machine, directory=RunDirectory(folder / "run"), store=store, progress=silent(plan))
    machine.restore(checkpoint.load_state())
    directory = RunDirectory(folder / "run")
    directory.cut(checkpoint.step)
    reason = checkpoint.about["reason"]
    return RunLoop(plan=plan, machine=machine, directory=directory, store=store, progress=silent(plan), reason=reason)


def train(loop: RunLoop) -> None:
    """To the end, or to where it is stopped."""
    with closing(loop.directory), closing(loop.store):
        loop.train()


def silent(plan: Any) -> Progress:
    return Progress(plan.schedule, io.StringIO())


def sicken(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """The loss is not a number in some of the steps that are run."""
    run, steps = stackwise.machine.step.Step.run, iter(range(10**6))  # type: ignore[attr-defined]

    def sick(self: Any, batches: Any, moment: Any) -> Any:
        if next(steps) in calls:
            return stackwise.machine.step.Outcome(float("nan"), 1.0, "its loss is not finite", {})  # type: ignore[attr-defined]
        return run(self, batches, moment)

    monkeypatch.setattr("stackwise.machine.step.Step.run", sick)


def logged(folder: Path) -> Counter[str]:
    """Kinds of events that the logs of the run hold; steps are in a file of their own."""
    kinds = Counter("".join(map(str.title, json.loads(line)["event"].split("_"))) for line in read(folder / "run" / "events.jsonl"))
    kinds["StepDone"] = sum("evaluation" not in json.loads(line) for line in read(folder / "run" / "metrics.jsonl"))
    return kinds


def read(path: Path) -> Iterator[str]:
    yield from path.read_text().splitlines()


def test_an_observer_hears_every_event_also_those_that_are_not_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 6, 7 and 8 are sick and training goes back to the checkpoint of step 6, whose save is announced again."""
    counts = CountsKinds()
    sicken(monkeypatch, range(6, 9))
    train(loop_of(tmp_path, [counts]))
    # 12 steps and 3 sick ones; 2, 4, 5, 6, 8, 10, 12 are saved, 8 among the sick steps too, and 6 is told of again
    assert counts.kinds["StepDone"] == 15 and counts.kinds["Rewound"] == 1 and counts.kinds["CheckpointSaved"] == 9
    assert counts.kinds["RunStarted"] == 2 and counts.kinds["RunFinished"] == 1


def test_counts_that_are_part_of_the_run_are_those_of_its_log_after_a_rewind_and_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given up, in the log as in the observer's state, is not counted; starts alone are told to every process."""
    sicken(monkeypatch, range(6, 9))
    first = Remembers()
    loop = loop_of(tmp_path, [first])
    with pytest.raises(KeyboardInterrupt):
        train(stop_at(loop, 10))
    second = Remembers()
    train(loop_of(tmp_path, [second]))
    assert second is not first and first.kinds["Rewound"] == second.kinds["Rewound"] == 1
    assert second.kinds == logged(tmp_path)
    assert second.kinds["StepDone"] == 12


def stop_at(loop: RunLoop, step: int) -> RunLoop:
    def stop(event: Any) -> None:
        if type(event).__name__ == "StepDone" and event.step == step:
            raise KeyboardInterrupt

    loop.machine.observers.listen(stop)
    return loop


def test_an_observer_that_raises_is_dropped_for_good_and_the_others_hear_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sicken(monkeypatch, range(6, 9))
    fails, counts = Fails(), CountsKinds()
    with pytest.warns(RuntimeWarning, match="ValueError: no more; it is dropped and the run goes on"):
        train(loop_of(tmp_path, [fails, counts]))
    assert fails.heard == 3 and counts.kinds["Rewound"] == 1


def test_an_observer_may_be_asked_again_and_is_told_of_the_end_even_if_it_was_dropped(tmp_path: Path) -> None:
    stutters, gives_up, counts = Stutters(), GivesUp(), CountsKinds()
    with pytest.warns(RuntimeWarning, match="ConnectionError: no line") as told:
        loop = loop_of(tmp_path, [stutters, gives_up, counts])
        train(loop)
    loop.machine.observers.leave("finished")
    assert stutters.heard == counts.kinds.total() > 7 and gives_up.heard == 5
    assert [str(each.message).endswith("next event") for each in told if "no line" in str(each.message)].count(False) == 1
    assert stutters.left == gives_up.left == "finished"


def test_a_listener_of_the_run_itself_ends_it_when_it_raises(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        train(stop_at(loop, 2))
    assert loop.machine.step == 3
