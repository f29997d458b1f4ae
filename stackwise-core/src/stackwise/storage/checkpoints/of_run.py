"""The one door to the checkpoints of a run: whoever saves, resumes, evaluates or exports opens its store here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stackwise.storage.checkpoints.retention import Direction
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import CHECKPOINTS
from stackwise.storage.shared_file import Others


def store_of(
    run: Path,
    *,
    keep_last: int | None = None,
    best: tuple[str, Direction] | None = None,
    pins: Collection[int] = (),
    others: Others | None = None,
) -> CheckpointStore:
    """The checkpoints of a run directory.

    Args:
        run: the directory.
        keep_last: how many of the newest a save keeps; all when left out.
        best: metric and direction by which a save keeps one more.
        pins: steps that are never pruned.
        others: processes that write their parts of a divided model; None where this one holds all of it.
    """
    return CheckpointStore(run / CHECKPOINTS, keep_last=keep_last, best=best, pins=pins, others=others)
