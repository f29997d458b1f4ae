"""Read-ahead: a thread makes the batches of coming steps while the current one trains.

Every step's request is known from the schedule, so the thread does what the loop would have done, in the same order; only the clock
changes. A batch counts as delivered when the loop has taken it, and `state` is the state behind that batch, however far the thread is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from attrs import frozen

from stackwise.timeline.duration import Moment

T = TypeVar("T")
S = TypeVar("S")


@frozen
class _Made(Generic[T, S]):
    """One step's batches, and the state right after they were made."""

    step: int
    value: T
    state: S


@frozen
class _Failed:
    """What went wrong in place of the next batch."""

    error: BaseException


class _End:
    """Behind the last step."""


class ReadAhead(Generic[T, S]):
    """Makes what is asked for at coming moments, at most `depth` steps ahead.

    Between `open` and `close`, what `produce` and `state` touch belongs to the thread.

    Args:
        produce: makes one step's batches; called in the order of the moments.
        state: the state after the last production, as a snapshot that later productions do not change.
        depth: most steps that are made and not taken yet; 0: `next` calls `produce` itself and there is no thread.
    """

    def __init__(self, produce: Callable[[Moment], T], state: Callable[[], S], depth: int) -> None:
        if depth < 0:
            raise ValueError(f"a read-ahead of {depth} steps goes backwards: give 0 (none) or more")
        self._produce, self._state, self._depth = produce, state, depth
        self._run: _Run[T, S] | None = None
        self._left_behind: list[S] = []
        """The state of the last delivered step after closing early, while the producer is further; empty: they agree."""

    def open(self, moments: Iterator[Moment]) -> None:
        """Begin with the steps that are left of a phase; a run that is still open is closed."""
        self.close()
        self._left_behind = []
        if self._depth:
            self._run = _Run(self._produce, self._state, self._depth, moments)

    def next(self, moment: Moment) -> T:
        """What was made for a step; waits for it.

        Raises:
            Exception: whatever `produce` raised for this step, and never before this step.
            RuntimeError: not the step that comes next, or no run is open.
        """
        if not self._depth:
            return self._produce(moment)
        if self._run is None:
            raise RuntimeError(f"step {moment.step} is asked of a read-ahead that is closed: open it with the steps that are left")
        return self._run.next(moment)

    def state(self) -> S:
        """The state as of the last step that `next` returned; as of opening before the first."""
        if self._run is not None:
            return self._run.delivered_state
        return self._left_behind[0] if self._left_behind else self._state()

    def close(self) -> bool:
        """Stop and join the thread, a production in progress being finished first; what was made and not taken is dropped.

        Returns:
            Whether the producer is further than what was taken.
        """
        run, self._run = self._run, None
        if run is not None and run.stop():
            self._left_behind = [run.delivered_state]
        return bool(self._left_behind)


class _Run(Generic[T, S]):
    """One thread over one sequence of moments."""

    def __init__(self, produce: Callable[[Moment], T], state: Callable[[], S], depth: int, moments: Iterator[Moment]) -> None:
        self.delivered_state = state()
        self._produce, self._state = produce, state
        self._made: SimpleQueue[_Made[T, S] | _Failed | _End] = SimpleQueue()
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._permits.put(None)
        self._stopping = False
        self._over: _Failed | _End | None = None
        self._thread = Thread(target=self._make_all, args=(moments,), name="stackwise-read-ahead", daemon=True)
        self._thread.start()

    def next(self, moment: Moment) -> T:
        """Take the next result and let the thread make one more."""
        made = self._over or self._made.get()
        if isinstance(made, _Made):
            if made.step != moment.step:
                raise RuntimeError(f"step {moment.step} is asked for where step {made.step} comes next")
            self._permits.put(None)
            self.delivered_state = made.state
            return made.value
        self._over = made
        if isinstance(made, _Failed):
            raise made.error
        raise RuntimeError(f"step {moment.step} lies behind the steps that the read-ahead was opened with")

    def stop(self) -> bool:
        """End the thread; whether anything was begun that nobody took."""
        self._stopping = True
        self._permits.put(None)
        self._thread.join()
        if isinstance(self._over, _Failed):
            return True
        try:
            return not isinstance(self._made.get_nowait(), _End)
        except Empty:
            return False

    def _make_all(self, moments: Iterator[Moment]) -> None:
        try:
            for moment in moments:
                self._permits.get()
                if self._stopping:
                    return
                value = self._produce(moment)
                self._made.put(_Made(moment.step, value, self._state()))
        except BaseException as error:  # the loop that waits must get it, whatever it is
            self._made.put(_Failed(error))
        else:
            self._made.put(_End())
