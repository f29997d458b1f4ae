"""Passes every event to the declared observers, then to the run's own listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any
from warnings import warn

from stackwise.contracts.answers import calling, expect_state
from stackwise.contracts.events import Event, RunFacts
from stackwise.contracts.protocols import LeavesRun, MeetsRun, Observer, Stateful
from stackwise.errors import UserError


class Observers:
    """Observers and listeners of a run. They outlive the machine: after a rewind the new one has the same observers.

    Args:
        declared: observers in order; one that raises is dropped with a warning, and the run goes on. One with an attribute `retries`
            is asked again at the next event, so many times in a row.
        names: for each of them its id and what messages call it; left out for those given in code.
    """

    def __init__(self, declared: Sequence[Observer] = (), names: Sequence[tuple[str, str]] = ()) -> None:
        self._declared = tuple(declared)
        self._names = {id(observer): name for observer, name in zip(declared, names, strict=False)}
        self._active = list(declared)
        self._failures: dict[int, int] = {}
        """Of observers, how often each failed in a row."""
        self._listeners: list[Observer] = []
        self.evaluating: Callable[[str, int, int], None] | None = None
        """Hears how far an evaluation is: its name, batches done, batches in all."""

    def listen(self, listener: Observer) -> None:
        """Add a listener of the run itself, called after the declared observers; its errors end the run."""
        self._listeners.append(listener)

    def meet(self, facts: Callable[[], RunFacts]) -> None:
        """Introduce the run to the declared observers that want to know it; the facts are gathered only for them."""
        active: Sequence[Any] = tuple(self._active)
        for observer in active:
            if isinstance(observer, MeetsRun):
                self._guarded(observer, partial(observer.meet, facts()))

    def leave(self, status: str) -> None:
        """Tell the declared observers that want to know it that this process is done with the run; those too that were dropped, which may
        hold a file or a thread."""
        declared: Sequence[Any] = self._declared
        for observer in declared:
            if isinstance(observer, LeavesRun):
                self._guarded(observer, partial(observer.leave, status))

    def tell(self, event: Event) -> None:
        """Pass an event on."""
        if self._active:
            for observer in tuple(self._active):
                self._tell_declared(observer, event)
        for listener in self._listeners:
            listener(event)

    def _tell_declared(self, observer: Observer, event: Event) -> None:
        self._guarded(observer, partial(observer, event))

    def _guarded(self, observer: Any, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            failures = self._failures[id(observer)] = self._failures.get(id(observer), 0) + 1
            retries = getattr(observer, "retries", 0)
            again = isinstance(retries, int) and failures <= retries
            if not again and observer in self._active:
                self._active.remove(observer)
            _, told = self._names.get(id(observer), ("", repr(observer)))
            follows = "it is asked again at the next event" if again else "it is dropped and the run goes on"
            warn(f"observer {told} raised {type(error).__name__}: {error}; {follows}", RuntimeWarning, stacklevel=5)
        else:
            self._failures.pop(id(observer), None)

    def state_dict(self) -> dict[str, Any]:
        """State of the stateful observers by position, dropped ones included; copies, as more events come before it is saved."""
        states = {}
        for place, observer in self._stateful().items():
            with calling(self._id(observer), "state_dict"):
                states[place] = deepcopy(expect_state(observer.state_dict()))
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load each stateful observer's state.

        Raises:
            UserError: the declared observers are not the saved ones.
        """
        stateful = self._stateful()
        if state.keys() != stateful.keys():
            raise UserError(f"observers with state are saved as {sorted(state)}, declared are {sorted(stateful)}")
        for place, observer in stateful.items():
            with calling(self._id(observer), "load_state_dict"):
                observer.load_state_dict(deepcopy(state[place]))

    def _id(self, observer: object) -> str:
        return self._names.get(id(observer), ("", ""))[0]

    def _stateful(self) -> dict[str, Stateful]:
        observers: Sequence[object] = self._declared
        return {str(place): observer for place, observer in enumerate(observers) if isinstance(observer, Stateful)}
