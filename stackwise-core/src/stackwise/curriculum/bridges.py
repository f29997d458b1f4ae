"""The record of a bridged junction."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class Bridge:
    """A difference that is crossed without loss, or a note on what cannot be checked here."""

    junction: str
    """`source:NAME-task`, `task-embedding`, `task-rack`, `embedding-rack`, `rack-head`, `task-head` or `head-task`."""
    kind: Literal["rename", "cast", "permute", "embed", "note", "bounds", "drop"]
    detail: str
    into: str = ""
    """Role of the receiving part (an adapter's, where adapters stand in between)."""
    field: str = ""
    """Name of the tensor on the receiving side; `hidden` inside the model; of `drop` the field that goes no further."""
    before: str = ""
    """The delivered name, dtype or dimension order."""
    after: str = ""
    """The needed name, dtype or dimension order."""
    limits: tuple[int, int] | None = None
    """Of `bounds`: the values v that the receiving side takes, limits[0] <= v < limits[1], where the giver does not say its own."""

    def __str__(self) -> str:
        return f"{self.junction}: {self.kind} {self.detail}"
