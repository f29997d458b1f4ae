"""Files that are read through a map while a run goes on: one that is cut off would end the process without a word (SIGBUS)."""

from __future__ import annotations

from pathlib import Path

from stackwise import DataError


class MappedFile:
    """A file as it was when it was mapped.

    Args:
        path: of the file.
        label: what messages call it.
    """

    def __init__(self, path: Path, label: str) -> None:
        self._path, self._label = path, label
        self._then = path.stat()

    def check(self) -> None:
        """Look whether it is as it was; a file that another one has replaced is still mapped as it was.

        Raises:
            DataError: it was cut off, or written to.
        """
        then = self._then
        try:
            now = self._path.stat()
        except OSError:  # removed or moved: what is mapped stays
            return
        if now.st_mtime_ns == then.st_mtime_ns and now.st_size == then.st_size:
            return
        if (now.st_ino, now.st_dev) != (then.st_ino, then.st_dev):
            return
        what = f"has {now.st_size} bytes in place of {then.st_size}" if now.st_size != then.st_size else "was written to"
        raise DataError(
            f"{self._label}: the file {what} since the run began to read it, so that rows to come may be others: put it back as it was, "
            "then resume; data that grow belong into a new file"
        )
