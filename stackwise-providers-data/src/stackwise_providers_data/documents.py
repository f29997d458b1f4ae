"""Documents, and a digest of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from stackwise_providers_data.splits import Part

Document = tuple[str, bytes]
"""Where a document comes from, for messages, and its content."""


class Documents(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What messages call them."""
        ...

    @property
    def noun(self) -> str:
        """What one is, in the plural."""
        ...

    def files(self) -> Sequence[Path]:
        """Every file that the documents of all parts are read from."""
        ...

    def identity(self) -> Any:
        """What else decides which documents a part holds, as JSON."""
        ...

    def read(self, part: Part) -> Iterator[Document]:
        """The documents of a part; at least one.

        Raises:
            DataError: none, or one that cannot be read.
        """
        ...


class ContentDigest:
    """A digest of sizes and contents of documents, taken as they are read."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.size = 0
        """Bytes read."""

    def through(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, each counted as it goes by."""
        for label, content in documents:
            self._digest.update(len(content).to_bytes(8, "little"))
            self._digest.update(content)
            self.size += len(content)
            yield label, content

    def hexdigest(self) -> str:
        """The digest of what has been read."""
        return self._digest.hexdigest()


def digest_of(texts: Sequence[Documents], part: Part) -> str:
    """The digest of the documents of a part, one source after the other.

    Raises:
        DataError: a source without documents, or one that cannot be read.
    """
    content = ContentDigest()
    for text in texts:
        for _ in content.through(text.read(part)):
            pass
    return content.hexdigest()
