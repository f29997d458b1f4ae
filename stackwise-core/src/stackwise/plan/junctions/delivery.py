"""Which of a task's optional fields its sources deliver, and what that makes of its needs and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from stackwise.contracts.specs import TaskSpec, TensorSpec


@frozen
class Delivery:
    """The fields of every source whose fields are known, seen by one task.

    Args:
        task: names the optional fields.
        sources: role of a source → the fields it delivers.
        rename: field the task uses → field the sources deliver, as the config asks.
    """

    task: TaskSpec
    sources: Mapping[str, Mapping[str, TensorSpec]]
    rename: Mapping[str, str]

    def optional(self, role: str) -> tuple[str, ...]:
        """The optional fields that a source delivers under their own name, or that the config says it delivers."""
        return tuple(name for name in self.task.optional if name in self.sources[role] or name in self.rename)

    def anywhere(self) -> frozenset[str]:
        """The optional fields that some source delivers."""
        return frozenset(name for role in self.sources for name in self.optional(role))

    def used(self, role: str) -> dict[str, TensorSpec]:
        """What the task takes from a source: the fields it needs, and those optional ones that come."""
        return {**self.task.batch, **{name: self.task.optional[name] for name in self.optional(role)}}

    def inputs(self) -> dict[str, TensorSpec]:
        """What the prepared batch offers: the task's inputs without the optional fields that no source delivers."""
        absent = self.task.optional.keys() - self.anywhere()
        return {name: spec for name, spec in self.task.inputs.items() if name not in absent}

    def offered(self, fields: Iterable[str]) -> dict[str, TensorSpec]:
        """The inputs for an embedding with these fields: an optional one only by its own name, never as a guess for another."""
        asked = set(fields)
        return {name: spec for name, spec in self.inputs().items() if name not in self.task.optional or name in asked}

    def uneven(self) -> tuple[str, str, tuple[str, ...]] | None:
        """A source, one it is mixed with, and the optional fields that the first delivers and the second does not."""
        for giver in self.sources:
            for other in self.sources:
                if lone := tuple(name for name in self.optional(giver) if name not in self.optional(other)):
                    return giver, other, lone
        return None

    def unheeded(self, side: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
        """A source and the optional fields it delivers that the task hands on but that are not among these side inputs."""
        taken = set(side)
        for role in self.sources:
            if handed := tuple(name for name in self.optional(role) if name in self.task.inputs and name not in taken):
                return role, handed
        return None
