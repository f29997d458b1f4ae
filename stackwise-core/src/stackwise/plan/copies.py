"""Whether two files hold the same, judged by their sizes and by samples of their bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

_PLACES, _BYTES = 16, 4096
"""How many samples of a file are compared, the first and the last bytes among them, and their size; a small file is compared whole."""

_LEAST = 1024
"""Files of fewer bytes are not compared: many folders hold small files that are equal, such as modules that only import, or notices."""


class Copies:
    """Finds the files that hold what another file holds, from a kilobyte on.

    Args:
        names: of the data to look among; those that are not files are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_size: dict[int, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            if (size := _size(name)) >= _LEAST:
                self._by_size[size].append(name)

    def of(self, name: str) -> Iterator[str]:
        """The files among them that hold what this one does, under another name."""
        for other in self._by_size.get(_size(name), ()):
            if other != name and _alike(Path(name), Path(other)):
                yield other


def _size(name: str) -> int:
    """Bytes of a file; 0 of what is none."""
    try:
        path = Path(name)
        return path.stat().st_size if path.is_absolute() and path.is_file() else 0
    except (OSError, ValueError):
        return 0


def _alike(one: Path, other: Path) -> bool:
    try:
        with one.open("rb") as first, other.open("rb") as second:
            size = one.stat().st_size
            for i in range(_PLACES if size > _PLACES * _BYTES else 1):
                place = i * (size - _BYTES) // (_PLACES - 1)
                first.seek(place)
                second.seek(place)
                length = _BYTES if size > _PLACES * _BYTES else size
                if first.read(length) != second.read(length):
                    return False
    except OSError:
        return False
    return True
