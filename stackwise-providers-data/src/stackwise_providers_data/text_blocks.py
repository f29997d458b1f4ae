"""Files cut into blocks, some of which are held out: for texts in too few files to hold out whole ones.

A file is cut into blocks of about 64 KiB, or into as many as it takes to hold out the share asked for. The held-out ones lie evenly spread;
the first and the last share of a file are not special. Cuts lie after the end of a line where there is one near, and never inside
a character of UTF-8. They depend on the file and on the share alone.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import IO

from stackwise_providers_data.splits import Part, is_in

_BLOCK_BYTES = 64 << 10
_SMALLEST_BLOCK_BYTES = 8
_LEAST_BLOCKS = 20
_WINDOW_BYTES = 4096
_LONGEST_CHARACTER_BYTES = 4


def least_bytes(share: float) -> int:
    """The smallest file of which a share can be held out."""
    return _SMALLEST_BLOCK_BYTES * _least_blocks(share)


def stretches(path: Path, size: int, share: float, part: Part) -> list[tuple[int, int]]:
    """The stretches of a file that belong to a part, neighbours joined; a file that is too small to be cut is of the training part.

    Args:
        path: the file.
        size: its bytes.
        share: that is held out, above 0 and below 1.
        part: whose stretches are wanted.

    Returns:
        Begin and end of each, in bytes, in the order of the file.

    Raises:
        OSError: the file cannot be read.
    """
    if part == "whole":
        return [(0, size)]
    if size < least_bytes(share):
        return [(0, size)] if part == "training" else []
    edges = _edges(path, size, max(_least_blocks(share), size // _BLOCK_BYTES))
    heldout = _heldout_blocks(len(edges) - 1, share)
    chosen: list[tuple[int, int]] = []
    for (start, stop), held in zip(pairwise(edges), heldout, strict=True):
        if not is_in(part, heldout=held):
            continue
        if chosen and chosen[-1][1] == start:
            chosen[-1] = (chosen[-1][0], stop)
        else:
            chosen.append((start, stop))
    return chosen


def _least_blocks(share: float) -> int:
    return max(_LEAST_BLOCKS, ceil(1 / min(share, 1 - share) - 1e-9))


def _heldout_blocks(count: int, share: float) -> list[bool]:
    """Which of `count` blocks are held out: the share of them, at least one and not all, evenly spread."""
    number = min(max(1, round(share * count)), count - 1)
    before = [(i * number + count // 2) // count for i in range(count + 1)]
    return [after > first for first, after in pairwise(before)]


def _edges(path: Path, size: int, count: int) -> list[int]:
    """Where blocks begin, and the end of the file; rising, since no cut moves by half a block."""
    reach = min(_WINDOW_BYTES, size // count // 2 - 1)
    with path.open("rb") as file:
        return [0, *(_cut(file, i * size // count, reach) for i in range(1, count)), size]


def _cut(file: IO[bytes], place: int, reach: int) -> int:
    """The first begin of a line within reach of a place, else of a character, else the place."""
    file.seek(place - 1)
    window = file.read(max(reach, _LONGEST_CHARACTER_BYTES) + 1)
    if (end := window.find(b"\n", 0, reach + 1)) >= 0:
        return place + end
    continued = next((i for i, byte in enumerate(window[1 : _LONGEST_CHARACTER_BYTES + 1]) if byte & 0xC0 != 0x80), 0)
    return place + continued
