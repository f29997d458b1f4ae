"""A board that all processes of a run can read and write, beside the exchange of gradients: which failed, which are busy, which are
alive.
"""

from __future__ import annotations

import json
from contextlib import suppress

from attrs import asdict, frozen
from torch.distributed.distributed_c10d import PrefixStore, Store


@frozen
class Failure:
    """The first failure of a run."""

    rank: int
    sentence: str
    exit_code: int


class Board:
    """Short texts under names, in the store that the processes met at.

    A store that no longer answers holds nothing: its process is gone, and the caller learns that in other ways.

    Args:
        store: the store of the rendezvous.
        ranks: how many processes there are.
    """

    def __init__(self, store: Store, ranks: int) -> None:
        self._store, self._ranks = PrefixStore("stackwise", store), ranks

    def post(self, failure: Failure) -> bool:
        """Write a failure; returns whether it is the first."""
        text = json.dumps(asdict(failure))
        try:
            return bool(self._store.compare_set("failure", "", text).decode() == text)
        except RuntimeError:
            return True

    def failure(self) -> Failure | None:
        """What was posted first."""
        text = self._get("failure")
        return None if not text else Failure(**json.loads(text))

    def acknowledge(self, rank: int) -> None:
        """Say that a process has read the failure, or needs nothing of the board any more."""
        with suppress(RuntimeError):
            self._store.set(f"read/{rank}", "yes")

    def acknowledged(self) -> bool:
        """Whether all processes but the first have done so."""
        try:
            return bool(self._store.check([f"read/{rank}" for rank in range(1, self._ranks)]))
        except RuntimeError:
            return True

    def mark_busy(self, what: str) -> None:
        """Say what the others wait for while this process works alone; empty when it is done."""
        with suppress(RuntimeError):
            self._store.set("busy", what)

    def busy(self) -> str:
        """What the first process works at alone."""
        return self._get("busy") or ""

    def beat(self, rank: int, text: str) -> None:
        """Write the heartbeat of a process."""
        with suppress(RuntimeError):
            self._store.set(f"beat/{rank}", text)

    def beats(self) -> list[str | None]:
        """The last heartbeat of every process; None for one that has sent none."""
        return [self._get(f"beat/{rank}") for rank in range(self._ranks)]

    def _get(self, name: str) -> str | None:
        try:
            return self._store.get(name).decode() if self._store.check([name]) else None
        except RuntimeError:
            return None
