"""Threads of OpenMP spin while each has a core, and sleep as soon as other processes need one: the load is looked at twice a second.

GNU's library lets a thread that waits for the others of its step spin for some milliseconds before it sleeps. That is the fastest way to
wait while every thread has a core, and by far the slowest while another process holds one, because the thread that all wait for does not
run then. Where a process has more threads of the library than there are cores, the library spins hardly at all. So threads that do
nothing are begun when cores become scarce, and ended when they are free again. No number of a run changes with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from time import perf_counter, process_time, sleep

_PERIOD = 0.5
_SCARCE = 0.25
"""So much of a core may be missing."""
_CALM = 20
"""Periods without a lack of cores after which threads spin again: a load that comes and goes is no calm."""
_STAT, _TICKS = Path("/proc/stat"), "SC_CLK_TCK"
_NOT_BUSY = (3, 4, 7)
"""Columns of a line of /proc/stat: idle, waiting for a disk, and what the host of a virtual machine took."""


def can_watch() -> bool:
    """Whether this machine says what other processes use."""
    return _load_here() is not None


def watch_spinning() -> None:
    """Begin to watch, in a thread of this process; torch has to be loaded, as what is half loaded cannot be used."""
    load = _load_here()
    if load is not None:
        threading.Thread(target=_watch, args=(load,), name="stackwise-spinning", daemon=True).start()


def _load_here() -> _Load | None:
    try:
        return _Load(os.sched_getaffinity(0))
    except (AttributeError, OSError, ValueError):  # not Linux, or a container that hides it
        return None


class _Load:
    """What other processes use of some cores."""

    def __init__(self, cores: Collection[int]) -> None:
        self.cores = len(cores)
        self._names = {f"cpu{core}" for core in cores}
        self._last = self._now()

    def others(self) -> float:
        """The cores that they used since the last call."""
        last, self._last = self._last, self._now()
        (start, busy_before), (stop, busy) = last, self._last
        return max(0.0, (busy - busy_before) / (stop - start))

    def _now(self) -> tuple[float, float]:
        """The time, and the seconds of others until then."""
        lines = [line.split() for line in _STAT.read_text().splitlines()]
        ticks = [int(word) for name, *words in lines if name in self._names for i, word in enumerate(words[:8]) if i not in _NOT_BUSY]
        if not ticks:
            raise ValueError(f"{_STAT} has no line for any of {sorted(self._names)}")
        return perf_counter(), sum(ticks) / os.sysconf(_TICKS) - process_time()


def _watch(load: _Load) -> None:
    import torch

    idle: _IdleThreads | None = None
    calm = 0
    while True:
        sleep(_PERIOD)
        others = load.others()
        threads = _in_new_thread(torch.get_num_threads) if others > _SCARCE else 1
        if threads > 1 and others + threads > load.cores + _SCARCE:
            calm = 0
            idle = idle or _IdleThreads(threads, load.cores)
        elif idle is not None and (calm := calm + 1) >= _CALM:
            idle.end()
            idle = None


def _in_new_thread(ask: Callable[[], int]) -> int:
    """An answer that a thread keeps once it has it, as it keeps the number of threads that it computes with."""
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(ask()), daemon=True)
    asking.start()
    asking.join()
    return found[0]


class _IdleThreads:
    """Threads of OpenMP that wait, as many as it takes to have more than there are cores."""

    def __init__(self, threads: int, cores: int) -> None:
        self._over = threading.Event()
        self._holders = [threading.Thread(target=self._hold, daemon=True) for _ in range((cores - 1) // (threads - 1))]
        for holder in self._holders:
            holder.start()

    def _hold(self) -> None:
        """Each thread of Python's that computes has its own threads of OpenMP, until it ends."""
        import torch

        torch.zeros(1 << 17).neg_()
        self._over.wait()

    def end(self) -> None:
        """End them."""
        self._over.set()
        for holder in self._holders:
            holder.join()
