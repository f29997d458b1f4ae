"""Threads of OpenMP spin while each has a core, and sleep as soon as other processes need one: the load is looked at twice a second.

GNU's library lets a thread that waits for the others of its step spin for some milliseconds before it sleeps. That is the fastest way to
wait while every thread has a core, and by far the slowest while another process holds one, because the thread that all wait for does not
run then. Where a process has more threads of the library than there are cores, the library spins hardly at all. So threads that do
nothing are begun when cores become scarce, and ended when they are free again. No number of a run changes with it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from time import perf_counter, process_time, sleep

from stackwise.host.isolation import OWN_THREADS
from stackwise.storage.posix import ticks_a_second

_PERIOD = 0.5
_SCARCE = 0.25
"""So much of a core may be missing."""
_CALM = 20
"""Periods without a lack of cores after which threads spin again: a load that comes and goes is no calm."""
_STAT, _MAPS = Path("/proc/stat"), Path("/proc/self/maps")
_NOT_BUSY = (3, 4, 7)
"""Columns of a line of /proc/stat: idle, waiting for a disk, and what the host of a virtual machine took."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Begins with `max` where processor time is not rationed. Where it is, spinning uses it up, however few processes there are."""


class Load:
    """What other processes use of some cores.

    Raises:
        OSError, ValueError: the system does not say it.
    """

    def __init__(self, cores: Collection[int]) -> None:
        self.cores = len(cores)
        self._names = {f"cpu{core}" for core in cores}
        self._last = self._now()

    def others(self) -> float:
        """The cores that they used since the last call."""
        (start, before), (stop, after) = self._last, self._now()
        self._last = stop, after
        used = (after - before) / (stop - start)
        return used if 0 <= used <= self.cores + 1 else 0.0  # a core that was taken out and put back begins to count anew

    def _now(self) -> tuple[float, float]:
        """The time, and the seconds of others until then."""
        lines = [line.split() for line in _STAT.read_text().splitlines()]
        columns = [[int(word) for word in words[:8]] for name, *words in lines if name in self._names]
        if not any(map(any, columns)):
            raise ValueError(f"{_STAT} says nothing of {sorted(self._names)}")
        ticks = sum(count for counts in columns for i, count in enumerate(counts) if i not in _NOT_BUSY)
        return perf_counter(), ticks / ticks_a_second() - process_time()


def load_of_others() -> Load | None:
    """What to watch; None where the system does not say it, or rations the time. Ask before torch is loaded: it may bind this thread."""
    try:
        if _QUOTA.exists() and not _QUOTA.read_text().startswith("max"):
            return None
        return Load(os.sched_getaffinity(0))
    except (AttributeError, OSError, ValueError):  # not Linux, or a container that hides it
        return None


def watch_spinning(load: Load) -> None:
    """Begin to watch, in a thread of this process, where torch computes with GNU's library; it has to be loaded already."""
    libraries = {path for line in _MAPS.read_text().splitlines() if "libgomp" in (path := line.rpartition(" ")[2])}
    if len(libraries) == 1:
        library = ctypes.CDLL(libraries.pop())
        threading.Thread(target=_watch, args=(load, library), name=f"{OWN_THREADS}spinning", daemon=True).start()


def _watch(load: Load, library: ctypes.CDLL) -> None:
    """Until the process ends, or watching fails."""
    import torch

    idle: _IdleThreads | None = None
    calm = 0
    try:
        while True:
            sleep(_PERIOD)
            others = load.others()
            threads = _in_new_thread(torch.get_num_threads) if others > _SCARCE else 1
            if threads > 1 and others + threads > load.cores + _SCARCE:
                calm = 0
                idle = idle or _IdleThreads(library, load.cores - threads + 2)
            elif idle is not None and (calm := calm + 1) >= _CALM:
                idle.end()
                idle = None
    except (OSError, ValueError, RuntimeError) as error:
        if idle is not None:
            idle.end()
        print(f"how threads wait is no longer fitted to the load: {error}", file=sys.stderr)


def _in_new_thread(ask: Callable[[], int]) -> int:
    """An answer that a thread keeps once it has it, as it keeps the number of threads that it computes with."""
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(ask()), name=f"{OWN_THREADS}asking", daemon=True)
    asking.start()
    asking.join()
    return found[0]


class _IdleThreads:
    """One thread of Python's, to which the library gives its threads, and with which they end.

    Args:
        library: of OpenMP, GNU's.
        count: of its threads, the one of Python's included.

    Raises:
        RuntimeError: no more threads can be begun.
    """

    def __init__(self, library: ctypes.CDLL, count: int) -> None:
        self._over, self._library = threading.Event(), library
        _check_room(count)
        self._holder = threading.Thread(target=self._hold, args=(count,), name=f"{OWN_THREADS}idle", daemon=True)
        self._holder.start()

    def _hold(self, count: int) -> None:
        does_nothing = ctypes.cast(self._library.omp_in_parallel, ctypes.c_void_p)
        self._library.GOMP_parallel(does_nothing, None, count, 0)
        self._over.wait()

    def end(self) -> None:
        """End them."""
        self._over.set()
        self._holder.join()


def _check_room(count: int) -> None:
    """Begin and end so many threads of Python's: where that is not allowed they raise, and the library would end the process."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, name=f"{OWN_THREADS}room", daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    finally:
        over.set()
