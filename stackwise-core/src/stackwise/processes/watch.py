"""A thread in every process that notices when another one hangs, names it, and ends this one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

from stackwise.errors import RankLost
from stackwise.processes.board import Board, Failure
from stackwise.processes.place import Place

LIFE = 2.5
"""Ticks of the thread within which it has certainly sent a heartbeat."""

MOST_BUSY = 20
"""How many times `patience_s` one process may work alone (a checkpoint on a slow disk) before it counts as hanging too."""


class Watch:
    """Sends heartbeats, and ends a wait that takes too long.

    Args:
        board: of all processes.
        place: which of the processes this one is.
        hosts: the host of every process, by rank.
        patience_s: how long another process is waited for.
        exchanges: how many exchanges this process has begun. All processes begin the same ones in the same order, so whoever has begun the
            fewest is waited for by the others, and waits for nobody.
    """

    def __init__(self, board: Board, place: Place, hosts: Sequence[str], patience_s: float, exchanges: Callable[[], int]) -> None:
        self.patience_s, self._exchanges = patience_s, exchanges
        self._where = ""
        self._board, self._place, self._hosts = board, place, hosts
        self._waits: dict[object, float] = {}
        """Each wait of a thread of this process, and when it began."""
        self._doubt: Thread | None = None
        """The thread that finds out whom to name."""
        self._end = Event()
        self._thread = Thread(target=self._run, name="stackwise-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time in which this process waits for the others."""
        wait = object()
        self._waits[wait] = time.monotonic()
        try:
            yield
        finally:
            del self._waits[wait]

    @contextmanager
    def inside(self, where: str) -> Iterator[None]:
        """The time in which the processes are at a place of the run that has a name."""
        self._where = where
        try:
            yield
        finally:
            self._where = ""

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def lost(self, before: Sequence[str | None]) -> list[int]:
        """The processes that have sent no heartbeat since an earlier reading.

        Args:
            before: `Board.beats` at least `sign_s` ago.
        """
        after = self._board.beats()
        if after[self._place.rank] is None and self._place.rank:
            return [0]  # the board itself is gone, and the first process holds it
        return [rank for rank, (was, now) in enumerate(zip(before, after, strict=True)) if was == now and rank != self._place.rank]

    def behind(self) -> list[int]:
        """The processes that the others wait for, by what all of them have last said; nobody where they are equally far."""
        begun = {rank: int(beat.split()[1]) for rank, beat in enumerate(self._board.beats()) if beat is not None}
        least = min(begun.values(), default=0)
        return [rank for rank, count in begun.items() if count == least] if any(count > least for count in begun.values()) else []

    def sentence(self, lost: Sequence[int], what: str) -> str:
        """Name processes."""
        if not lost:
            return f"a process of the run {what}, and it is not known which"
        return f"{' and '.join(f'rank {rank} on {self._hosts[rank]}' for rank in lost)} {what}"

    @property
    def _waiting_since(self) -> float | None:
        return min(list(self._waits.values()), default=None)

    @property
    def sign_s(self) -> float:
        """Seconds within which every live process sends a heartbeat."""
        return LIFE * self._tick_s

    @property
    def _tick_s(self) -> float:
        return min(1.0, self.patience_s / 10)

    def _run(self) -> None:
        count = 0
        while not self._end.wait(self._tick_s):
            count += 1
            self._board.beat(self._place.rank, f"{count} {self._exchanges()}")
            since = self._waiting_since
            waited_s = 0.0 if since is None else time.monotonic() - since
            looks = self._doubt is not None and self._doubt.is_alive()
            if not looks and waited_s > self.patience_s * (MOST_BUSY if self._board.busy() else 1):
                self._doubt = Thread(target=self._give_up, args=(since,), name="stackwise-give-up", daemon=True)
                self._doubt.start()

    def _give_up(self, since: float | None) -> None:
        """Name the process that hangs and leave, while the other thread keeps sending heartbeats; the wait itself cannot be ended.

        A wait that ends after all is none of its business, and the next one is watched again.
        """
        patience_s = time.monotonic() - (since or 0.0)
        before = self._board.beats()
        time.sleep(self.sign_s)
        lost = self.lost(before) or self.behind()
        if lost == [self._place.rank]:
            time.sleep(self.sign_s)  # let the others speak of this process
        if self._waiting_since != since:
            return
        place = self._where or ((busy := self._board.busy()) and f"while the first process {busy}")
        what = f"has not come to where the others have waited for {patience_s:.0f} s (run.parallel.patience)"
        sentence = self.sentence(lost, f"{what}, {place}" if place else what)
        if self._board.post(Failure(self._place.rank, sentence, RankLost.exit_code)):
            with suppress(OSError, ValueError):
                print(f"{self._place}: {sentence}", file=sys.stderr, flush=True)
        failure = self._board.failure()
        os._exit(RankLost.exit_code if failure is None else failure.exit_code)
