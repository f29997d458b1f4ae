"""Text for people is escaped on its way out, so that names and messages from outside cannot send control sequences to a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from stackwise.errors import printable


class Escaping:
    """A text stream that escapes what is written to it; everything else it leaves to the stream behind it.

    Args:
        stream: the one to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream
        """The stream behind it, for code that escapes text itself and writes control sequences, as a progress bar does."""

    def write(self, text: str) -> int:
        """Write the text, escaped."""
        self.unescaped.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


@contextmanager
def escaped_streams() -> Iterator[None]:
    """Escape what goes to standard error, and to standard output where that is a terminal: a file gets every byte as it is."""
    out, err = sys.stdout, sys.stderr
    if out is not None and out.isatty():
        sys.stdout = Escaping(out)
    if err is not None:
        sys.stderr = Escaping(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
