"""Names of characters. Plain Python, as it was in the script."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

ALPHABET = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = "LMNPS"  # the first letter of a character's category
LONGEST = 40


def examples() -> Iterator[tuple[str, int]]:
    """(name, kind) of every character that has a name of its own and is of one of the kinds."""
    for code in range(0x20000):
        name, kind = unicodedata.name(chr(code), ""), unicodedata.category(chr(code))[0]
        if name and kind in KINDS and not name.startswith(("CJK", "HANGUL", "TANGUT", "NUSHU", "KHITAN")):
            yield name, KINDS.index(kind)


def encode(name: str, length: int = LONGEST) -> list[int]:
    """Letters as numbers from 1, and 0 behind the end."""
    letters = [1 + ALPHABET.index(letter) for letter in name[:length]]
    return letters + [0] * (length - len(letters))
