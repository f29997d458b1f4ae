"""What a loader says of data whose digest is still being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

DIGEST = "sha256"


class LateFingerprint(Mapping[str, Any]):
    """A fingerprint that waits for the digest only when the digest is read.

    Args:
        facts: the entries that are known at once.
        digest: waits for the sha256 and returns it.
    """

    def __init__(self, facts: Mapping[str, Any], digest: Callable[[], str]) -> None:
        self._facts, self._digest = dict(facts), digest

    def __getitem__(self, key: str) -> Any:
        return self._digest() if key == DIGEST else self._facts[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._facts
        yield DIGEST

    def __len__(self) -> int:
        return len(self._facts) + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # as a dict

    def __reduce__(self) -> Any:
        return dict, (dict(self),)
