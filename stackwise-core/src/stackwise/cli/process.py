"""Settings of OpenMP, of memory allocation and of signals for a process that trains; they are made before torch is loaded."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading

from stackwise.cli.spinning import load_of_others, watch_spinning
from stackwise.storage import posix

SPINS = "1000"
"""Where the load cannot be watched: how many times a thread of OpenMP spins while it waits for the others, before it sleeps. OpenMP's own
default is 300,000: where another process holds a core, each of the hundreds of parallel regions of a step then waits out a time slice."""

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
_ALLOCATING = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER, _LARGEST = 2**31 - 1, 32 << 20


def prepare_process() -> None:
    """Have freed memory stay with the process, a request to save wait for something to save, and threads sleep where nobody watches them.

    What the user has set in the environment stays as it is. Nothing is done where torch is loaded already: threads, memory and signals
    then belong to the code that loaded it.
    """
    if "torch" in sys.modules:
        return
    _ignore_early_saves()
    if not _waits_as_told() and load_of_others() is None:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATING):
        _keep_memory()


def load_torch() -> None:
    """Import torch without looking for garbage meanwhile, and watch how its threads wait.

    What it makes stays as long as the process, and is not looked through later. Importing it makes a million objects, and Python would go
    through those so far again and again: a tenth to a sixth of the time.
    """
    if "torch" in sys.modules:
        return
    load, enabled = None if _waits_as_told() else load_of_others(), gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401  # here for its import alone
    finally:
        if enabled:
            gc.freeze()
            gc.enable()
    if load is not None:
        watch_spinning(load)


def _waits_as_told() -> bool:
    """Whether the environment says how threads wait."""
    return any(name in os.environ for name in _WAITING)


def _ignore_early_saves() -> None:
    """SIGUSR1 asks a run to save its state; before its first step there is none, and by default the signal would kill the process."""
    if threading.current_thread() is threading.main_thread():
        for number in posix.signals("SIGUSR1"):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.SIG_IGN)


def _keep_memory() -> None:
    """Memory that a step frees stays mapped for the next step, where glibc allocates it; arrays of more than 32 MB are given back."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
