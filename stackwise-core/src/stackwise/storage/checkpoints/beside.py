"""Saves of a process that is not the first: its part of each state goes into the file that the first one makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stackwise.errors import disk_errors
from stackwise.storage.checkpoints.background import Writer
from stackwise.storage.nested_state import split_state
from stackwise.storage.shared_file import Held, Others, write_shared


class StoreBeside(Writer):
    """Stands where the first process has a `CheckpointStore`.

    Args:
        others: the processes that hold parts of the state.
    """

    _others: Others

    def __init__(self, others: Others) -> None:
        super().__init__(others)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        asynchronous: bool = False,
        pin: str | None = None,
    ) -> None:
        """Write what this process holds of a state; everything but the state is the first one's to write.

        Raises:
            DiskError: the disk of any process refuses, or did so in the save before.
        """
        self.wait()
        held = Held.of(split_state(state)[0], self._others)
        rows = held.copied(self._snapshot.copy) if asynchronous else held
        self._start(lambda: self._write(rows), asynchronous=asynchronous)

    def _write(self, held: Held) -> None:
        with disk_errors(Path("the checkpoint"), "earlier checkpoints are untouched: free space or mend the disk, then resume"):
            write_shared(None, held, self._others)
