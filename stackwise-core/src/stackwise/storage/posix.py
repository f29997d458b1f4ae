"""What POSIX has and other systems may lack, asked for here alone, so that the package imports on any system."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_BASE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""A flag: opening a symbolic link fails."""
READ = os.O_RDONLY | _BASE | NO_LINK | getattr(os, "O_NONBLOCK", 0)
"""Flags to read a file that somebody else may have put there: no link is followed, and no pipe waited for."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BASE
"""Flags to make a file that does not exist."""
WRITE = os.O_RDWR | _BASE | NO_LINK
"""Flags to force a file of ours to disk, which some systems do only for who may write it."""
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BASE | NO_LINK | getattr(os, "O_NONBLOCK", 0)
"""Flags to add to a file, or make it; no link is followed, and no pipe waited for."""
DIRECTORY: int | None = os.O_RDONLY | _BASE | os.O_DIRECTORY if hasattr(os, "O_DIRECTORY") else None
"""Flags to open a directory; None where a directory cannot be opened, nor its entries forced to disk."""


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of some signals that this system has.

    Args:
        names: as of the `signal` module (`SIGHUP`).
    """
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


def place_of(handle: int) -> Path | None:
    """Where an open file is now, also after its directory was renamed; None where the system does not tell, or the file was removed."""
    with suppress(OSError):
        place = Path(f"/proc/self/fd/{handle}").readlink()
        if os.path.samestat(place.stat(), os.fstat(handle)):
            return place
    return None
