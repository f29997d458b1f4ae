"""The guard around foreign code: it finds, restores and names what importing or calling a provider changes in the process.

A provider that reseeds a generator or changes the default dtype would otherwise change the numbers of every run in whose
environment it merely is installed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple


class _Piece(NamedTuple):
    """One piece of global state: how it is read, compared and put back (None: it cannot be)."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None] | None
    equal: Callable[[Any, Any], bool] = lambda before, after: bool(before == after)


class _StandIn:
    """Stands for stdout while foreign code runs: writes to stderr, and may be closed."""

    def __init__(self) -> None:
        self.stands_for = "stderr"

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self.stands_for), name)

    def close(self) -> None:
        """Nothing: what comes after stays open."""


@contextmanager
def guarded(*, building: bool = False) -> Iterator[list[str]]:
    """Run foreign code; afterwards global state is as it was before.

    Covers the generators of `random`, numpy and torch, torch's defaults (dtype, device, precision of products, recording of
    gradients, threads), the working directory, the environment, entries of the module path, signal handlers, and running threads.
    What the code prints to stdout goes to stderr, so that output meant for a script stays clean; an artifact that keeps `sys.stdout`
    writes there later. Where the code is the first to import torch, torch's defaults are compared with those of a fresh process.

    Args:
        building: whether the code is a factory, which may draw from torch's generator (though not seed it) and start threads.

    Yields:
        A list that, after the block, names every piece that had changed.
    """
    changed: list[str] = []
    stdout = _StandIn()
    before = [(piece, _read_or_none(piece)) for piece in _pieces(building)]
    try:
        with redirect_stdout(stdout):
            yield changed
    finally:
        if building:
            stdout.stands_for = "stdout"  # an artifact that kept it writes where it meant to
        imported_now = _torch_defaults() if not any(piece.name == _DTYPE for piece, _ in before) else ()
        for piece, value in (*before, *imported_now):
            if not piece.equal(value, _read_or_none(piece)):
                changed.append(piece.name)
                if piece.write is not None and value is not None:
                    piece.write(value)


def _read_or_none(piece: _Piece) -> Any:
    try:
        return piece.read()
    except OSError:
        return None  # the working directory was removed


def _pieces(building: bool) -> list[_Piece]:
    pieces = [
        _Piece("the random generator of `random`", random.getstate, random.setstate),
        _Piece("the working directory", os.getcwd, os.chdir),
        _Piece("the module path", lambda: list(sys.path), _write_path, lambda before, after: set(before) <= set(after)),
        _Piece("the environment variables", _read_environment, _write_environment),
    ]
    if not building:
        pieces.append(_Piece("a running thread", _others_threads, None, _no_new_thread))
    if threading.current_thread() is threading.main_thread():
        pieces.append(_Piece("a signal handler", _read_handlers, _write_handlers))
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        pieces.append(_Piece("the random generator of numpy", numpy_random.get_state, numpy_random.set_state, _same_numpy_state))
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_rng_state"):
        pieces += [
            _Piece(
                "the random generator of torch",
                lambda: (torch.get_rng_state(), torch.initial_seed()),
                lambda before: torch.set_rng_state(before[0]),
                lambda before, after: before[1] == after[1] and (building or torch.equal(before[0], after[0])),
            ),
            _Piece("the number of threads of torch", torch.get_num_threads, torch.set_num_threads),
            *(piece for piece, _ in _torch_defaults()),
        ]
    return pieces


_DTYPE = "the default dtype of torch"


def _torch_defaults() -> tuple[tuple[_Piece, Any], ...]:
    """The defaults of torch, each with its value in a fresh process."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        return ()
    return (
        (_Piece(_DTYPE, torch.get_default_dtype, torch.set_default_dtype), torch.float32),
        (_Piece("the default device of torch", torch.get_default_device, _write_default_device), torch.device("cpu")),
        (_Piece("the recording of gradients", torch.is_grad_enabled, torch.set_grad_enabled), True),
        (
            _Piece("the precision of products in torch", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
            "highest",
        ),
    )


def _write_default_device(before: Any) -> None:
    """The CPU is set as None: as a device it would send every later call through a mode."""
    sys.modules["torch"].set_default_device(None if before.type == "cpu" else before)


def _write_path(before: list[str]) -> None:
    """Entries that were removed come back in front; those that a library added stay, since its modules may be imported from there."""
    sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]


_TORCHS_OWN = ("TORCHINDUCTOR_", "TRITON_")
"""Prefixes of variables that torch sets for itself when parts of it are imported."""


def _read_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_TORCHS_OWN)}


def _write_environment(before: dict[str, str]) -> None:
    for name in set(_read_environment()) - set(before):
        del os.environ[name]
    os.environ.update(before)


OWN_THREADS = "stackwise-"
"""Begins the names of this package's threads."""
_STRAYS: set[threading.Thread] = set()


def _others_threads() -> frozenset[threading.Thread]:
    """All but those of this package, which begin and end whenever they like."""
    return frozenset(thread for thread in threading.enumerate() if not thread.name.startswith(OWN_THREADS))


def _no_new_thread(before: frozenset[threading.Thread], after: frozenset[threading.Thread]) -> bool:
    _STRAYS.update(after - before)
    return after <= before


def stray_threads() -> list[threading.Thread]:
    """The threads that providers left running and that Python would wait for at its end, perhaps for ever."""
    return [thread for thread in _STRAYS if thread.is_alive() and not thread.daemon]


_SIGNALS = tuple(map(int, signal.valid_signals()))
"""Listed once: a guard reads all handlers twice, and the enumeration costs more than they do."""


def _read_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _write_handlers(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _same_numpy_state(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[0] == after[0] and bool((before[1] == after[1]).all()) and before[2:] == after[2:]
