"""YAML text → positioned nodes, strictly: YAML 1.2 core scalars, nothing executed, nothing expanded, everything budgeted."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Final

import yaml

from stackwise.config.nodes import Node
from stackwise.errors import ConfigError, Position, Problem

MAX_BYTES: Final = 1_000_000
MAX_NODES: Final = 40_000
MAX_DEPTH: Final = 40
MAX_PROBLEMS: Final = 20
MAX_DIGITS: Final = 30
MAX_KEY: Final = 200

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAB_INDENT = re.compile(r"^ *\t", re.MULTILINE)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_KEY = re.compile(r"\s*[A-Za-z0-9_.-]+\s*:")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_RADIX = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")


def read_yaml(text: str, source: str) -> Node:
    """Read one YAML document.

    Args:
        text: the document.
        source: its name in positions.

    Raises:
        ConfigError: not YAML, not one document, or anything a config may not hold (tags, anchors, merge keys, equal keys,
            nan, more than its budget); every such mistake up to the first that makes reading on impossible.
    """
    return _Reader(text, source).read()


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """The value of a plain scalar by the YAML 1.2 core schema (section 10.3.2).

    Raises:
        ValueError: a number that is not finite, too small, or longer than 30 digits.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.match(text) or _RADIX.match(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} characters is longer than the {MAX_DIGITS} that are read")
        return int(text, 0) if _RADIX.match(text) else int(text)
    if _FLOAT.match(text):
        if not isfinite(value := float(text)):
            raise ValueError(f"{text} is too large for a number: give a finite one")
        if value == 0 and any(digit in "123456789" for digit in re.split("[eE]", text)[0]):
            raise ValueError(f"{text} is too small for a number: it would be 0; write 0, or one of at least 5e-324")
        return value
    if _NOT_FINITE.match(text):
        raise ValueError(f"{text} is not finite: give a finite number")
    return text


class _Reader:
    """One pass over the parser's events; the budgets are counted here, before anything is built from them."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.problems: list[Problem] = []
        self.nodes = 0
        self.events: Any = None

    def read(self) -> Node:
        self._check_text()
        self.events = yaml.parse(self.text, Loader=_LOADER)
        try:
            root = self._document()
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from None
        if self.problems:
            raise ConfigError(self.problems)
        return root

    def _check_text(self) -> None:
        if len(self.text) > MAX_BYTES:
            raise self._stop(
                f"more than {MAX_BYTES} characters: a config is small; data belongs into files of its own", Position(self.source, 1, 1)
            )
        if match := _UNPRINTABLE.search(self.text):
            raise self._stop(f"character {match[0]!r} is not text", self._position_of(match.start()))
        if match := _TAB_INDENT.search(self.text):
            raise self._stop("a tab in the indentation: indent with spaces", self._position_of(match.end() - 1))

    def _document(self) -> Node:
        next(self.events)  # the start of the stream
        first = next(self.events)
        if isinstance(first, yaml.StreamEndEvent):
            raise self._stop("there is nothing in it", Position(self.source, 1, 1))
        if first.version or first.tags:
            raise self._stop("a directive (%) has no meaning here: take it away", self._position(first))
        root = self._value(next(self.events), depth=0, position=None)
        next(self.events)  # the end of the document
        if not isinstance(second := next(self.events), yaml.StreamEndEvent):
            raise self._stop("a second document starts here: a config is one document", self._position(second))
        return root

    def _value(self, event: Any, depth: int, position: Position | None) -> Node:
        self.nodes += 1
        position = position or self._position(event)
        if self.nodes > MAX_NODES:
            raise self._stop(f"more than {MAX_NODES} values: a config is small", position)
        if depth > MAX_DEPTH:
            raise self._stop(f"nested more than {MAX_DEPTH} deep", position)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"the alias *{event.anchor} is not followed: write the value out, or share it by `extends`", self._position(event))
            return Node("scalar", None, position)
        if event.anchor is not None:
            self._refuse(f"the anchor &{event.anchor} has no meaning here: take it away", self._position(event))
        if event.tag is not None:
            self._refuse(
                f"the tag {event.tag} is not read: values are text, numbers, true, false, null, lists and maps", self._position(event)
            )
        if isinstance(event, yaml.MappingStartEvent):
            return Node("map", self._map(depth), position)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node("list", self._list(depth), position)
        return Node("scalar", self._scalar(event), position)

    def _map(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            where = self._position(event)
            key = self._key(event, depth)
            value = self._value(next(self.events), depth + 1, where)
            if key in entries:
                self._refuse(f"the key '{key}' was given before, at {entries[key].position}: keep one of the two", where)
            elif key is not None:
                entries[key] = value
        return entries

    def _list(self, depth: int) -> tuple[Node, ...]:
        entries: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            entries.append(self._value(event, depth + 1, None))
        return tuple(entries)

    def _key(self, event: Any, depth: int) -> str | None:
        where = self._position(event)
        node = self._value(event, depth + 1, where)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse("a key is text", where)
            return None
        plain = event.implicit[0]
        if len(event.value) > MAX_KEY:
            self._refuse(f"a key of {len(event.value)} characters: at most {MAX_KEY}", where)
            return None
        if plain and event.value == "<<":
            self._refuse("a merge key (<<) is not read: share by `extends`", where)
            return None
        if isinstance(node.value, str) or (plain and type(node.value) is int):
            return str(event.value)
        self._refuse(f"the key {event.value or 'null'} is not text: write it in quotes", where)
        return None

    def _scalar(self, event: Any) -> bool | int | float | str | None:
        if not event.implicit[0]:
            return str(event.value)
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            self._refuse(str(error), self._position(event))
            return None

    def _position(self, event: Any) -> Position:
        return Position(self.source, event.start_mark.line + 1, event.start_mark.column + 1)

    def _position_of(self, offset: int) -> Position:
        return Position(self.source, self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset))

    def _refuse(self, message: str, where: Position) -> None:
        self.problems.append(Problem(message, where=where))
        if len(self.problems) >= MAX_PROBLEMS:
            raise ConfigError(self.problems)

    def _stop(self, message: str, where: Position) -> ConfigError:
        return ConfigError([*self.problems, Problem(message, where=where)])

    def _not_yaml(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = ", ".join(filter(None, (getattr(error, "problem", None), getattr(error, "context", None)))) or str(error)
        where = Position(self.source, mark.line + 1, mark.column + 1) if mark else Position(self.source)
        return self._stop(f"this is not YAML: {reason}{_indentation(self.text, mark.line) if mark else ''}", where)


def _indentation(text: str, number: int) -> str:
    """What is wrong with the indentation of a line, as far as the lines above it say; line numbers count from 0."""
    lines = [line for line in text.splitlines()[: number + 1] if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) < 2 or not _KEY.match(lines[-1]) or not _KEY.match(lines[-2]):
        return ""
    own, above = (len(line) - len(line.lstrip()) for line in (lines[-1], lines[-2]))
    if own > above and lines[-2].partition(":")[2].strip():
        name = lines[-2].strip().partition(":")[0]
        return f"; this line is indented deeper than `{name}` above it, which has its value already: keys of one map start in one column"
    if own < above and own not in {len(line) - len(line.lstrip()) for line in lines[:-1]}:
        return (
            f"; this line is indented by {own} space{'s' if own > 1 else ''}, and no line above it is: keys of one map start in one column"
        )
    return ""
