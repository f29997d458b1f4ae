"""JSON that gives back what it was given: nan, infinities and integers of any size included, nothing converted in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

_FLOAT, _INT = "$float", "$int"
_LONG_INT_BITS = 8192
"""Beyond this an integer is written in hexadecimal: Python refuses long decimal ones."""


def encode(document: Mapping[str, Any]) -> bytes:
    """A document as JSON bytes.

    Args:
        document: maps with text keys, lists or tuples (read back as lists), text, booleans, None and numbers.

    Raises:
        TypeError: a value or key of another type, with its place in the document.
    """
    return (json.dumps(_plain(document, "document"), indent=1, allow_nan=False) + "\n").encode()


def decode(content: bytes) -> dict[str, Any]:
    """The document that `encode` was given.

    Raises:
        ValueError: no JSON object, or one that `encode` does not write.
    """
    try:
        document: Any = json.loads(content, object_hook=_revive, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__}, not an object")
    return document


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _LONG_INT_BITS else {_INT: hex(value)}
    if isinstance(value, float):
        return float(value) if isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, Mapping):
        return {_key(key, place): _plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}[{i}]") for i, inner in enumerate(value)]
    raise TypeError(f"{place} is a {type(value).__name__}: a checkpoint's document holds maps, lists, text, numbers, booleans and None")


def _key(key: Any, place: str) -> str:
    """A key that starts like one of our own marks gets one more `$`, and loses it when it is read."""
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r}: the keys of a checkpoint's document are text")
    return f"${key}" if key.startswith("$") else key


def _revive(value: dict[str, Any]) -> Any:
    if value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    if value.keys() == {_INT}:
        return int(value[_INT], 16)
    return {key[1:] if key.startswith("$") else key: inner for key, inner in value.items()}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
