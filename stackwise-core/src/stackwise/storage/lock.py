"""One writer a run directory: a lock that the operating system lets go when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from stackwise.errors import UserError

LOCK = "lock"


class RunLock:
    """Held from its making until `release`.

    Args:
        directory: the run directory.

    Raises:
        UserError: another process holds it; the sentence names pid and host.
    """

    def __init__(self, directory: Path) -> None:
        self._file: TextIO = (directory / LOCK).open("a+", encoding="utf-8")  # held open until it is released
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise _held(directory) from None
        self._file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let go; the file stays, because removing it could unlock another's."""
        self._file.close()


def holder(directory: Path) -> dict[str, Any] | None:
    """Pid and host of the process that wrote the lock last, whether or not it still holds it."""
    try:
        content = json.loads((directory / LOCK).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def is_held(directory: Path) -> bool:
    """Whether a process writes to the run directory now."""
    try:
        with (directory / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go as the file closes
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def refuse_held(directory: Path) -> None:
    """Look before anything heavy is imported, so that the second process is told at once.

    Raises:
        UserError: a process writes there; the sentence names pid and host.
    """
    if is_held(directory):
        raise _held(directory)


def _held(directory: Path) -> UserError:
    return UserError(f"{directory} is being written by {_told(holder(directory))}: wait for its end, or stop it")


def _told(who: dict[str, Any] | None) -> str:
    return "another process" if who is None else f"process {who.get('pid')} on host {who.get('host')}"
