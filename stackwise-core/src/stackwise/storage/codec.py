"""Values ↔ JSON without loss: nan, infinities, integers of any size, tuples and keys of any kind included.

What JSON does not have is written as a map with one key that begins with `$`; a map of the user's with such keys is written as `$map`.
This module does without torch, so that logs and documents can be read quickly. `storage/nested_state.py` takes the tensors out of a state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

WriteOther = Callable[[Any, tuple[str, ...]], Any]
"""Writes a value that is neither container nor scalar, from the value and its path; raises EncodingError if it cannot."""

TENSOR, MAP, TUPLE, FLOAT, INT = "$tensor", "$map", "$tuple", "$float", "$int"
_TEXT_OF_FLOATS = ("nan", "inf", "-inf")
_LONG_INT_BITS = 8192
"""Longer integers are written in hexadecimal, because Python refuses to read long decimal ones."""


class EncodingError(TypeError):
    """A value of a class that the codec cannot write.

    Args:
        path: where the value stands.
        kind: the name of its class.
    """

    def __init__(self, path: str, kind: str) -> None:
        self.path, self.kind = path, kind
        super().__init__(f"{path} is a {kind}: a file of ours holds maps, lists, tuples, tensors, text, numbers, booleans and None")


def join_state(document: Any, tensor: Callable[[str], Any]) -> Any:
    """Rebuild the value that `encode` or `split_state` wrote.

    Args:
        document: the JSON.
        tensor: returns the tensor of a name; KeyError if there is none.

    Raises:
        ValueError: neither function writes such a document, or it names a tensor that is missing.
    """
    try:
        return _decode(document, tensor)
    except KeyError as error:
        raise ValueError(f"there is no tensor {error}") from None
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is not as it was encoded: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_json(document: Mapping[str, Any]) -> bytes:
    """A document without tensors as JSON bytes; its keys are text, and begin with no `$`.

    Raises:
        EncodingError: a value of another kind.
    """
    return as_bytes(encode(document, "document"))


def encode(value: Any, name: str, write_other: WriteOther | None = None) -> Any:
    """Write a value as JSON can hold it.

    Args:
        value: dicts, lists, tuples, text, numbers, booleans, None.
        name: what an error calls the value.
        write_other: writes values of other classes, such as tensors; without it there may be none.

    Raises:
        EncodingError: the value holds something else.
    """

    def refuse(other: Any, path: tuple[str, ...]) -> Any:
        raise EncodingError(".".join((name, *path)), type(other).__name__)

    return _encode(value, (), refuse if write_other is None else write_other)


def as_bytes(encoded: Any) -> bytes:
    """An encoded value as the bytes of a JSON file."""
    return (json.dumps(encoded, indent=1, allow_nan=False) + "\n").encode()


def to_line(document: Mapping[str, Any]) -> str:
    """A document as one line of a log, for any JSON reader: nan, infinities and all that JSON does not have become text."""
    return json.dumps(_plain(document), default=str, allow_nan=False) + "\n"


def to_text(document: Mapping[str, Any]) -> str:
    """A document as the text of a JSON file, for any JSON reader, as `to_line` writes it."""
    return json.dumps(_plain(document), indent=1, default=str, allow_nan=False) + "\n"


def typed(value: Any, wanted: Any, name: str) -> Any:
    """A JSON value as an instance of a type. The type decides whether the text "nan" is a number or a name.

    Args:
        value: the JSON value.
        wanted: int, float, str, bool, None, Any, a union, a tuple or a mapping of them.
        name: of the field, for the message.

    Raises:
        ValueError: the value has another type, or is a whole number beyond 64 bits; the message names the field.
    """
    kind, arms = get_origin(wanted) or wanted, get_args(wanted)
    if kind is UnionType and value is None and NoneType in arms:
        return None
    if kind is UnionType:
        return typed(value, next(arm for arm in arms if arm is not NoneType), name)
    if kind is tuple and isinstance(value, list):
        return tuple(typed(entry, arms[0], f"{name}.{i}") for i, entry in enumerate(value))
    if kind in (Mapping, dict) and isinstance(value, dict):
        return {key: typed(entry, arms[1], f"{name}.{key}") for key, entry in value.items()}
    if kind is float and isinstance(value, str) and value in _TEXT_OF_FLOATS:
        return float(value)
    if kind is float and isinstance(value, int) and type(value) is not bool and value.bit_length() < 64:
        return float(value)
    if kind is Any or (type(value) is kind and not (kind is int and value.bit_length() >= 64)):
        return value
    raise ValueError(f"{name} is {_shown(value)}, where a {getattr(kind, '__name__', kind)} belongs")


def from_json(content: bytes) -> dict[str, Any]:
    """The document that `to_json` wrote.

    Raises:
        ValueError: the bytes are not JSON object, or `to_json` does not write such a one.
    """
    document = join_state(read_object(content), refuse_tensor)
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__}, not an object")
    return document


def read_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object and leave it encoded.

    Raises:
        ValueError: the bytes are not JSON object, or hold nan or an infinity.
    """
    try:
        document: Any = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__}, not an object")
    return document


def _encode(value: Any, path: tuple[str, ...], write_other: WriteOther) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _LONG_INT_BITS else {INT: hex(value)}
    if isinstance(value, float):
        return float(value) if isfinite(value) else {FLOAT: str(float(value))}
    if isinstance(value, Mapping):
        entries = [(key, _encode(inner, (*path, str(key)), write_other)) for key, inner in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(entries)
        return {MAP: [[_encode(key, path, write_other), inner] for key, inner in entries]}
    if type(value) in (list, tuple):
        items = [_encode(entry, (*path, str(i)), write_other) for i, entry in enumerate(value)]
        return items if type(value) is list else {TUPLE: items}
    return write_other(value, path)


def _decode(value: Any, tensor: Callable[[str], Any]) -> Any:
    if isinstance(value, list):
        return [_decode(entry, tensor) for entry in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not (mark := next(iter(value))).startswith("$"):
        return {key: _decode(inner, tensor) for key, inner in value.items()}
    content = value[mark]
    if mark == TENSOR:
        return tensor(content)
    if mark == TUPLE:
        return tuple(_decode(entry, tensor) for entry in content)
    if mark == MAP:
        return {_decode(key, tensor): _decode(inner, tensor) for key, inner in content}
    if mark == FLOAT:
        return float(content)
    if mark == INT:
        return int(content, 16)
    raise ValueError(f"nothing is written as {mark!r}")


def refuse_tensor(name: str) -> Any:
    """Passed to `join_state` for documents without tensors."""
    raise ValueError(f"it names the tensor {name!r}, and has none")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(float(value)) if isinstance(value, float) and not isfinite(value) else value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text} is beyond any number")
    return number
