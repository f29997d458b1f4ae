"""Signals as flags: set on arrival, obeyed at the next step boundary."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from stackwise.storage import posix

STOPPING = posix.signals("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2", "SIGXCPU")
SAVING = posix.signals("SIGUSR1")
_REPEATED = posix.signals("SIGXCPU")
"""Sent every second of processor time until the hard limit, so a second one is not a second request to stop."""
PATIENCE_S = 600.0
"""How long a step under way may take after a request to stop: a reader that hangs must not hold a batch system's job for ever."""


class Signals:
    """A context in which a signal asks for a stop and SIGUSR1 for a checkpoint; a second stop exits at once.

    SIGTERM and Ctrl-C stop, and so do a terminal that closes (SIGHUP, unless `nohup` has it ignored), a batch system that warns
    (SIGUSR2) and a limit of processor time (SIGXCPU).

    Outside the main thread, where no handler can be set, it does nothing.

    Args:
        echo_s: seconds in which a request to stop that comes again is the same one, sent by several.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self._echo_s, self._since = echo_s, 0.0
        self.stop: signal.Signals | None = None
        """The signal that asked for a stop."""
        self._save = False
        self._before: dict[int, Any] = {}
        self._patience: threading.Timer | None = None

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        request, self._save = self._save, False
        return request

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            ignored = {number for number in posix.signals("SIGHUP") if signal.getsignal(number) is signal.SIG_IGN}
            handlers = dict.fromkeys(STOPPING, self._ask_to_stop) | dict.fromkeys(SAVING, self._ask_to_save)
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items() if number not in ignored}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._patience is not None:
            self._patience.cancel()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None and number in _REPEATED:
            return
        if self.stop is not None:
            if time.monotonic() - self._since < self._echo_s:
                return
            os._exit(128 + number)  # safe at any point: the last checkpoint is whole
        self.stop, self._since = signal.Signals(number), time.monotonic()
        self._patience = threading.Timer(PATIENCE_S, self._give_up, (self.stop,))
        self._patience.daemon = True
        self._patience.start()

    @staticmethod
    def _give_up(by: signal.Signals) -> None:
        with suppress(OSError, ValueError):
            text = f"stopped: {by.name} came {PATIENCE_S:.0f} s ago and the step has not ended; nothing was saved since"
            print(text, file=sys.stderr, flush=True)
        os._exit(128 + by)  # as after a second signal

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
