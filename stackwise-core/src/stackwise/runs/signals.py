"""Signals as flags: set when they come, obeyed at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """A context in which SIGTERM and SIGINT ask for a stop and SIGUSR1 for a checkpoint; the second stop leaves at once.

    Outside the main thread, where no handler can be set, it does nothing.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        """The signal that asked for a stop."""
        self._save = False
        self._before: dict[int, Any] = {}

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask_to_stop) for number in STOPPING}
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None:
            os._exit(128 + number)  # whatever training waits for, the last checkpoint is whole
        self.stop = signal.Signals(number)

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
