"""One map of a config while it is read: its children are taken one by one, and the mistakes in it are collected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from stackwise.config.faults import Fault, faults_of
from stackwise.config.hints import unknown_key
from stackwise.config.merging import REPLACE
from stackwise.config.nodes import KeyPath, Node, describe
from stackwise.config.planes import Ref
from stackwise.config.strict import MISTAKES, convert
from stackwise.contracts.components import Built
from stackwise.contracts.options import config_key
from stackwise.errors import near_names

_T = TypeVar("_T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")


def broken_name(name: str) -> str | None:
    """The rule that a name chosen in a config breaks, or None."""
    return None if _NAME.match(name) else f"{name[:40]!r} is not a name: letters, digits, '_' and '-', at most 100 of them"


def _merging_word(name: str, entries: Mapping[str, Node]) -> str | None:
    """The advice for a word that looks like `replace` but does nothing, or stands beside names; None for an ordinary name."""
    if name == REPLACE:
        return f"stands alone: write {{{REPLACE}: {{<name>: …}}}} and all names in it, or none of them in it to add to what was there"
    holds_names = "use" not in entries[name].entries and any(child.kind == "map" for child in entries[name].entries.values())
    if not holds_names:
        return None
    if name in _ADDING:
        return "has no meaning here: names that are written are added to what was there, so write {<name>: …}"
    return f"holds names itself: did you mean the word `{REPLACE}`?" if near_names(name, [REPLACE]) else None


_ADDING = ("add", "append", "extend", "extends", "merge", "plus")


class Section:
    """One map of a config, and the mistakes in it. A null counts as an absent key."""

    def __init__(self, node: Node | None, path: KeyPath, wanted: str) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self.children: dict[str, Node] = {}
        if node is None or node.is_null:
            return
        if node.kind != "map":
            self.fault((), f"{describe(node.plain())} is not a map: {wanted}")
        self.children = {key: child for key, child in node.entries.items() if not child.is_null}

    def fault(self, path: KeyPath, message: str, *, missing: bool = False) -> None:
        """Record a mistake at `path` below this section."""
        self.faults.append(Fault((*self.path, *path), message, missing=missing))

    def take(self, key: str) -> Node | None:
        """Remove and return a child."""
        return self.children.pop(key, None)

    def take_map(self, key: str, wanted: str) -> Mapping[str, Node]:
        """Remove a child whose keys are names, and return its children."""
        inner = Section(self.take(key), (*self.path, key), wanted)
        for name in list(inner.children):
            if broken := broken_name(name) or _merging_word(name, inner.children):
                inner.fault((name,), broken)
                del inner.children[name]
        self.faults += inner.faults
        return inner.children

    def ref(self, node: Node | None, path: KeyPath, owned: tuple[str, ...] = ()) -> Ref:
        """A component at `path` below this section; `owned` are the keys that the core reads, not the component."""
        dotted = ".".join((*self.path, *path))
        if node is None or node.is_null:
            self.fault(path, "is missing: name a component with `use: <provider>.<component>`", missing=True)
            return Ref(path=dotted)
        if node.kind == "object":
            return Ref(given=node.value, path=dotted)
        if node.kind != "map":
            value = describe(node.plain())
            hint = f"write {{use: {node.value}}}" if isinstance(node.value, str) else "write {use: <provider>.<component>}"
            self.fault(path, f"{value} is not a component: {hint}")
            return Ref(path=dotted)
        return self._read_ref(node, path, dotted, owned)

    def _read_ref(self, node: Node, path: KeyPath, dotted: str, owned: tuple[str, ...]) -> Ref:
        use = node.child("use")
        options = {key: child.plain() for key, child in node.entries.items() if key not in owned and key != "use"}
        if use is None or use.is_null:
            self.fault((*path, "use"), "is missing: name a component, `<provider>.<component>`", missing=True)
        elif use.kind == "object":
            if isinstance(use.value, Built):
                return Ref(given=use.value, options=options, path=dotted)
            for key in options:
                self.fault((*path, key), "a finished object takes no options: give Built(callable, options), which can be built anew")
            return Ref(given=use.value, path=dotted)
        elif not isinstance(use.value, str) or not use.value.strip():
            self.fault((*path, "use"), f"{describe(use.plain())} is not a component id: `<provider>.<component>`")
        else:
            return Ref(use=use.value, options=options, path=dotted)
        return Ref(path=dotted)

    def refs(self, node: Node | None, path: KeyPath) -> tuple[Ref, ...]:
        """A list of components."""
        if node is None:
            return ()
        if node.kind != "list":
            self.fault(path, f"{describe(node.plain())} is not a list: write [{{use: <provider>.<component>}}]")
            return ()
        return tuple(self.ref(entry, (*path, str(i))) for i, entry in enumerate(node.value))

    def build(self, cls: type[_T], ready: Mapping[str, Any], fallback: Mapping[str, Any] | None = None) -> _T:
        """An instance of `cls` from the `ready` fields and the remaining children, taken as plain values.

        `fallback` replaces required values that are missing or at fault.
        """
        fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)  # type: ignore[arg-type]  # an attrs class
        keys = [config_key(a) for a in fields if a.metadata.get("doc")]
        for key in [key for key in self.children if key not in keys]:
            self.fault((key,), unknown_key(key, keys, self.children.pop(key).plain()))
        raw = {**{key: child.plain() for key, child in self.children.items()}, **ready}
        try:
            return self._convert(raw, cls)
        except MISTAKES as error:
            faults = faults_of(error)
        self.faults += [attrs.evolve(fault, path=(*self.path, *fault.path)) for fault in faults]
        wrong = {fault.path[0] for fault in faults if fault.path}
        return self._convert({**(fallback or {}), **{key: value for key, value in raw.items() if key not in wrong}}, cls)

    def _convert(self, raw: Mapping[str, Any], cls: type[_T]) -> _T:
        instance: _T = convert(raw, cls)
        return instance
