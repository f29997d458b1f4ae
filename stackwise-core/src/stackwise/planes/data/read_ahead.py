"""Read-ahead: a thread makes the batches of coming steps while the current one trains.

The schedule fixes every step's request beforehand, so the thread makes the batches the loop would have made, in the same order; only the
wall-clock time changes. `state` is the loader state after the last batch the loop took, however far ahead the thread is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

from attrs import frozen

from stackwise.timeline.duration import Moment

T = TypeVar("T")
S = TypeVar("S")


class _Item(NamedTuple, Generic[T, S]):
    """One step's batches, and the state right after they were made."""

    step: int
    value: T
    state: S


@frozen
class _Failure:
    """The exception raised instead of the next batch."""

    error: BaseException


class _End:
    """Follows the last step."""


class ReadAhead(Generic[T, S]):
    """Makes the batches of coming steps, at most `depth` steps ahead.

    Between `open` and `close`, only the thread may touch what `produce` and `state` use.

    Args:
        produce: makes one step's batches; called in the order of the moments.
        state: the state after the last production, as a snapshot that later productions do not change.
        depth: most steps made but not yet taken; 0: no thread, `next` calls `produce` itself.
    """

    def __init__(self, produce: Callable[[Moment], T], state: Callable[[], S], depth: int) -> None:
        if depth < 0:
            raise ValueError(f"a read-ahead of {depth} steps goes backwards: give 0 (none) or more")
        self._produce, self._state, self._depth = produce, state, depth
        self._run: _Run[T, S] | None = None
        self._delivered_state: list[S] = []
        """After an early close: the state after the last delivered step, if the producer is further ahead; else empty."""

    def open(self, moments: Iterator[Moment]) -> None:
        """Start on the remaining steps of a phase, after closing a run that is still open."""
        self.close()
        self._delivered_state = []
        if self._depth:
            self._run = _Run(self._produce, self._state, self._depth, moments)

    def next(self, moment: Moment) -> T:
        """Wait for the batches of a step.

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
        return self._delivered_state[0] if self._delivered_state else self._state()

    def close(self) -> bool:
        """Stop and join the thread, once it has finished the step in progress; what nobody took is dropped.

        Returns:
            Whether the producer is ahead of the last delivered step.
        """
        run, self._run = self._run, None
        if run is not None and run.stop():
            self._delivered_state = [run.delivered_state]
        return bool(self._delivered_state)


class _Run(Generic[T, S]):
    """One thread over one sequence of moments."""

    def __init__(self, produce: Callable[[Moment], T], state: Callable[[], S], depth: int, moments: Iterator[Moment]) -> None:
        self.delivered_state = state()
        self._produce, self._state = produce, state
        self._items: SimpleQueue[_Item[T, S] | _Failure | _End] = SimpleQueue()
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._permits.put(None)
        self._stopping = False
        self._outcome: _Failure | _End | None = None
        self._thread = Thread(target=self._make_all, args=(moments,), name="stackwise-read-ahead", daemon=True)
        self._thread.start()

    def next(self, moment: Moment) -> T:
        """Take the next result and let the thread make one more."""
        item = self._outcome or self._items.get()
        if isinstance(item, _Item):
            if item.step != moment.step:
                raise RuntimeError(f"step {moment.step} is asked for where step {item.step} comes next")
            self._permits.put(None)
            self.delivered_state = item.state
            value: T = item.value
            return value
        self._outcome = item
        if isinstance(item, _Failure):
            raise item.error
        raise RuntimeError(f"step {moment.step} lies after the steps that the read-ahead was opened with")

    def stop(self) -> bool:
        """Stop the thread, and say whether it made or began a step that nobody took."""
        self._stopping = True
        self._permits.put(None)
        self._thread.join()
        if isinstance(self._outcome, _Failure):
            return True
        try:
            return not isinstance(self._items.get_nowait(), _End)
        except Empty:
            return False

    def _make_all(self, moments: Iterator[Moment]) -> None:
        try:
            for moment in moments:
                self._permits.get()
                if self._stopping:
                    return
                value = self._produce(moment)
                self._items.put(_Item(moment.step, value, self._state()))
        except BaseException as error:  # passed on to the loop, which waits for it
            self._items.put(_Failure(error))
        else:
            self._items.put(_End())
