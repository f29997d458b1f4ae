"""The one place where text for people leaves: names and messages from outside cannot act on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from stackwise.errors import printable


class Escaping:
    """A text stream that escapes what it is given; everything else is as the stream has it.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream
        """For who escapes by itself, and writes sequences of its own, as a progress bar does."""

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
