"""What POSIX has and other systems may lack. Only this module asks for it, so that the package imports on any system."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_BASE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag that refuses to open a symbolic link."""
READ = os.O_RDONLY | _BASE | NO_LINK | getattr(os, "O_NONBLOCK", 0)
"""Flags to read a file that somebody else may have put there: they follow no link and wait for no pipe."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BASE
"""Flags to create a file that does not exist."""
WRITE = os.O_RDWR | _BASE | NO_LINK
"""Flags to force a file to disk; some systems ask for the right to write it."""
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BASE | NO_LINK | getattr(os, "O_NONBLOCK", 0)
"""Flags to append to a file, or create it; they follow no link and wait for no pipe."""
DIRECTORY: int | None = os.O_RDONLY | _BASE | os.O_DIRECTORY if hasattr(os, "O_DIRECTORY") else None
"""Flags to open a directory; None if the system cannot open one, and so cannot force its entries to disk."""


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the named signals that this system has.

    Args:
        names: as of the `signal` module (`SIGHUP`).
    """
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


def ticks_a_second() -> int:
    """In what parts of a second `/proc` counts processor time.

    Raises:
        ValueError: the system does not say.
    """
    if not hasattr(os, "sysconf"):
        raise ValueError("this system does not say how it counts processor time")
    return os.sysconf("SC_CLK_TCK")


def place_of(handle: int) -> Path | None:
    """The path of an open file, also after its directory was renamed; None if the system does not say, or the file was removed."""
    with suppress(OSError):
        place = Path(f"/proc/self/fd/{handle}").readlink()
        if os.path.samestat(place.stat(), os.fstat(handle)):
            return place
    return None
