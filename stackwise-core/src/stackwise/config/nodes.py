"""The tree every config becomes: values that know where they were written and which phase touched them last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import evolve, frozen

from stackwise.contracts.components import Built
from stackwise.errors import Position

BASE = -1
"""The layer of everything that is written outside the phases."""

KeyPath = tuple[str, ...]
"""Keys from the root down; the index of a list entry is written as a number."""


@frozen(eq=False)
class Node:
    """One value of a config.

    `value` is a dict of nodes, a tuple of nodes, a scalar, or any Python object, as `kind` says. `position` is where its
    key stands (for a list entry: where the entry starts). `layer` is the index of the phase that touched it last, -1
    outside the phases.
    """

    kind: Literal["map", "list", "scalar", "object"]
    value: Any
    position: Position
    layer: int = BASE

    @property
    def entries(self) -> Mapping[str, Node]:
        """The children by key; empty for anything but a map."""
        return self.value if self.kind == "map" else {}

    @property
    def is_null(self) -> bool:
        """Whether null is written here."""
        return self.kind == "scalar" and self.value is None

    def child(self, key: str) -> Node | None:
        """The entry of a map by key, or of a list by index."""
        if self.kind == "list":
            return self.value[int(key)] if key.isdecimal() and int(key) < len(self.value) else None
        return self.entries.get(key)

    def plain(self) -> Any:
        """The value as ordinary dicts, lists and scalars; objects stay what they are."""
        if self.kind == "map":
            return {key: child.plain() for key, child in self.value.items()}
        if self.kind == "list":
            return [child.plain() for child in self.value]
        return self.value

    def printable(self) -> Any:
        """Like `plain`, with every object replaced by a short description."""
        if self.kind == "map":
            return {key: child.printable() for key, child in self.value.items()}
        if self.kind == "list":
            return [child.printable() for child in self.value]
        return describe(self.value) if self.kind == "object" else self.value

    def in_layer(self, layer: int) -> Node:
        """The same tree, touched by phase `layer`."""
        if self.kind == "map":
            return evolve(self, value={key: child.in_layer(layer) for key, child in self.value.items()}, layer=layer)
        if self.kind == "list":
            return evolve(self, value=tuple(child.in_layer(layer) for child in self.value), layer=layer)
        return evolve(self, layer=layer)

    def nearest(self, path: KeyPath) -> Node:
        """The node at `path`, or the deepest one on the way that exists."""
        node = self
        for key in path:
            if (child := node.child(key)) is None:
                break
            node = child
        return node


def split(node: Node, dotted: str) -> KeyPath:
    """A dotted path as keys; a key that holds dots itself (`12.5%`) is recognised where the tree has it."""
    parts = tuple(dotted.split(".")) if dotted else ()
    return next(_splits(node, parts), parts)


def _splits(node: Node, parts: KeyPath) -> Iterator[KeyPath]:
    if not parts:
        yield ()
    for count in range(1, len(parts) + 1):
        key = ".".join(parts[:count])
        if (child := node.child(key)) is not None:
            yield from ((key, *rest) for rest in _splits(child, parts[count:]))


def describe(value: Any) -> str:
    """A value in few words, for messages and run directories: no memory addresses, at most 120 characters."""
    if isinstance(value, Built):
        text = f"Built({_name(value.make)})"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {describe(entry)}" for key, entry in list(value.items())[:9]) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(describe(entry) for entry in value[:9]) + (", …]" if len(value) > 9 else "]")
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int | float | str) or type(value).__module__ in ("stackwise.timeline.duration", "stackwise.timeline.schedules"):
        text = repr(value) if isinstance(value, int | float | str) else str(value)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        text = f"<{type(value).__name__} {tuple(value.shape)} {value.dtype}>"
    elif callable(value) and hasattr(value, "__qualname__"):
        text = _name(value)
    else:
        text = f"<{_name(type(value))}>"
    return text if len(text) <= 120 else text[:119] + "…"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
