"""One component as declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import Factory, frozen

from stackwise.contracts.components import Built
from stackwise.timeline.schedules import Curve


@frozen(kw_only=True)
class Part:
    """One component as declared: a registered id with options, a `Built` callable, or a finished object.

    `options` holds the structure; what follows time is in `curves`, so two parts with equal `structure` differ in values only.
    """

    kind: str
    id: str
    """`<provider>.<component>`, or a name for messages when the part came as an object."""
    options: Any = None
    """Filled options object, or the mapping of a `Built`."""
    curves: Mapping[str, Curve] = Factory(dict)
    """Every option that may follow time, by name."""
    given: Any = None
    """The `Built` or the finished object; None when the id names a registered component."""
    counts: tuple[str, ...] = ("stacks",)
    """Options of a user's own callable that say how many blocks there are: a growth operator answers for them."""

    @property
    def structure(self) -> tuple[Any, ...]:
        """What must be built anew when it changes."""
        if isinstance(self.given, Built):
            return (self.id, self.given.make, _ordered(self.options))
        return (self.id, self.given if self.given is None else id(self.given), self.options)

    @property
    def plain_options(self) -> Mapping[str, Any]:
        """The structure's options by name."""
        if self.options is None or isinstance(self.options, Mapping):
            return self.options or {}
        return {a.name: getattr(self.options, a.name) for a in attrs.fields(type(self.options))}

    def options_at(self, t: float) -> Any:
        """The options with the values in force at t."""
        values = self.values_at(t)
        if isinstance(self.options, Mapping):
            return {**self.options, **values}
        return attrs.evolve(self.options, **values) if values else self.options

    def values_at(self, t: float) -> dict[str, float]:
        """The values in force at t of the options that may follow time."""
        return {name: curve(t) for name, curve in self.curves.items()}


def _ordered(value: Any) -> Any:
    """Nested maps as tuples of items, because the order of stacks has meaning and dict equality ignores it."""
    if isinstance(value, Mapping):
        return tuple((key, _ordered(inner)) for key, inner in value.items())
    return tuple(map(_ordered, value)) if isinstance(value, list | tuple) else value
