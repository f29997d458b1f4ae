"""Saves that end the process at each of their file-system calls in turn; run as a script, as each child is forked from one small process.

Usage: python crash_points.py DIRECTORY SCENARIO…; prints one JSON object a crash: the scenario, the call, and what lies there afterwards.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree, rmtree

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faulty_disk import CRASHED, TENSORS, check_whole, count_calls, exiting, hidden_entries, ruled, save

from stackwise.storage.checkpoints.store import CheckpointStore

Store = Callable[[Path], CheckpointStore]

SCENARIOS: dict[str, tuple[Store, tuple[tuple[int, int], ...], tuple[int, int]]] = {
    "first": (CheckpointStore, (), (10, 1)),
    "second": (CheckpointStore, ((10, 1),), (20, 2)),
    "replacing": (CheckpointStore, ((10, 1), (20, 2)), (20, 3)),
    "pruning": (lambda place: CheckpointStore(place, keep_last=1), ((10, 1), (20, 2)), (30, 3)),
    "replacing the only one": (lambda place: CheckpointStore(place, keep_last=1), ((10, 1),), (10, 2)),
}
"""Name → (the store, (step, number) of the states saved before, those of the save that is cut short)."""


def forked(work: Callable[[], object]) -> int:
    """The exit code of a child that does some work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sweep(scenario: str, folder: Path) -> Iterator[dict[str, object]]:
    """Every crash point of a scenario, until a save gets through."""
    make, before, (step, which) = SCENARIOS[scenario]
    prepared = folder / "prepared"
    (prepared / "run").mkdir(parents=True)
    assert forked(lambda: [save(CheckpointStore(prepared / "run" / "checkpoints"), *saved) for saved in before]) == 0
    place = folder / "crashed"
    checkpoints = place / "run" / "checkpoints"

    def cut_short(at: int, torn: bool) -> None:
        with ruled(exiting(at, torn=torn)):
            save(make(checkpoints), step, which)

    def crash(at: int, torn: bool) -> dict[str, object]:
        rmtree(place, ignore_errors=True)
        copytree(prepared, place)
        code = forked(lambda: cut_short(at, torn))
        assert code in (0, CRASHED), code
        return {"at": at, "torn": torn, "crashed": code == CRASHED, **found_in(checkpoints), **after_recovery(make, checkpoints)}

    calls = calls_of(lambda: save(make(checkpoints), step, which), prepared, place)
    for at in range(len(calls) + 1):
        yield crash(at, torn=False)
        if at < len(calls) and calls[at] in ("write", TENSORS):
            yield crash(at, torn=True)


def calls_of(work: Callable[[], object], prepared: Path, place: Path) -> list[str]:
    """The calls of a save that gets through, counted in a child so that this process starts no thread."""
    copytree(prepared, place)
    answer = place / "calls"
    assert forked(lambda: answer.write_text(" ".join(count_calls(work)))) == 0
    return answer.read_text().split()


def found_in(checkpoints: Path) -> dict[str, object]:
    """The newest valid checkpoint as another process finds it, checked tensor by tensor."""
    newest, _ = CheckpointStore(checkpoints).newest()
    return {"found": None if newest is None else [newest.step, check_whole(newest)]}


def after_recovery(make: Store, checkpoints: Path) -> dict[str, object]:
    """What a next save leaves behind."""
    result: dict[str, object] = {}

    def recover() -> None:
        store = make(checkpoints)
        with ruled(exiting(-1)):
            save(store, 40, 4)
        newest, skipped = store.newest()
        assert newest is not None and (newest.step, check_whole(newest), skipped) == (40, 4, [])
        for name in store.names():
            check_whole(store.at(int(name.removeprefix("step-"))))
        assert hidden_entries(checkpoints) == []

    result["recovers"] = forked(recover) == 0
    return result


if __name__ == "__main__":
    for name in sys.argv[2:]:
        for line in sweep(name, Path(sys.argv[1]) / name):
            print(json.dumps({"scenario": name, **line}))
