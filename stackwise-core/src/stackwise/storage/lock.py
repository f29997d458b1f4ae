"""One writer for each run directory: a lock that the operating system releases when the process ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from stackwise.errors import UserError
from stackwise.storage.regular import read_regular

LOCK, WRITER = "lock", "writer.json"
"""The locked file, and a second file that names the writer, because the locking library may change the first as it likes."""


class HeldError(UserError):
    """Another process writes to the run directory."""

    def __init__(self, directory: Path, writer: Mapping[str, Any] | None) -> None:
        self.directory, self.writer = directory, writer
        name = "another process" if writer is None else f"process {writer.get('pid')} on host {writer.get('host')}"
        super().__init__(f"{directory} is being written by {name}: wait for its end, or stop it")


class MovedError(UserError):
    """The run directory is no longer where it was when the run began to write there.

    Args:
        directory: the place where the run began to write.
        place: where the directory is now; None if that is unknown.
        saved: what became of the state, as a sentence.
    """

    def __init__(self, directory: Path, place: Path | None, saved: str = "nothing more was written") -> None:
        self.directory, self.place = directory, place
        now = f"is at {place} now" if place is not None else "was moved away, removed or replaced"
        super().__init__(f"{directory} {now}, while a run trains in it; {saved}")


class RunLock:
    """A lock on a run directory, from construction until `release`; a child process does not inherit it.

    Args:
        directory: the run directory.

    Raises:
        HeldError: another process holds it; the sentence names pid and host.
        UserError: the lock is not a regular file.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = _acquire(directory)
        self._held = directory.stat(), (directory / LOCK).stat()
        (directory / WRITER).unlink(missing_ok=True)  # a link is removed, never written through
        (directory / WRITER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), "utf-8")

    def holds(self, directory: Path) -> bool:
        """Whether a path still leads to the directory that was locked.

        Raises:
            UserError: it does, but the lock file is another one, so a second process may write there.
        """
        place, lock = _stat(directory), _stat(directory / LOCK)
        if place is None or not os.path.samestat(place, self._held[0]):
            return False
        if lock is None or not os.path.samestat(lock, self._held[1]):
            raise UserError(f"{directory / LOCK} was removed or replaced while a run trains here, so another may write too: this one stops")
        return True

    def release(self) -> None:
        """Release the lock. Its files stay: to remove them could unlock another process."""
        self._lock.release()


def read_writer(directory: Path) -> dict[str, Any] | None:
    """Pid and host of the process that locked the directory last, whether or not it still holds it."""
    try:
        content = json.loads(read_regular(directory / WRITER))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def is_held(directory: Path) -> bool:
    """Whether a process writes to the run directory now; False if this process cannot see it."""
    try:
        refuse_held(directory)
    except HeldError:
        return True
    except (OSError, UserError):
        return False
    return False


def refuse_held(directory: Path) -> None:
    """Refuse a directory that another process writes to, before anything heavy is imported.

    Raises:
        HeldError: a process writes there; the sentence names pid and host.
        UserError: the lock is not a regular file.
    """
    if os.path.lexists(directory / LOCK):
        _acquire(directory).release()


def _acquire(directory: Path) -> BaseFileLock:
    path = directory / LOCK
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(f"{path} is not a regular file, so it cannot lock the run directory: remove it")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise HeldError(directory, read_writer(directory)) from None
    return lock


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
