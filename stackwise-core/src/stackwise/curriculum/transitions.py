"""How one declared state becomes the next: the policy of a boundary, and the difference it crosses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import Factory, field, frozen

from stackwise.contracts.growth import BlockOrigin
from stackwise.curriculum.parts import Part
from stackwise.timeline.schedules import Curve


@frozen(kw_only=True)
class Enter:
    """How a boundary is crossed; belongs to its phase and is never inherited."""

    growth: Part | None = None
    moments: Literal["copy", "reset"] = "copy"
    """Whether moments are carried over or start anew: those of copied parameters, and all of them if the optimizer changes."""
    fresh: tuple[str, ...] = ()
    """Selectors of parameters that start anew."""
    weight_adapters: Literal["merge", "drop"] = "merge"
    """Whether weight adapters that leave are merged into their matrices or lost."""
    rewarm: Curve | None = None
    """Factor on the learning rate of fresh parameters, from 0 to 1 over its first steps."""


@frozen(kw_only=True)
class Change:
    """One key whose declaration differs from the phase before."""

    path: str
    before: str
    after: str


@frozen(kw_only=True)
class Transition:
    """The difference between two declared states, and how it is crossed."""

    changes: tuple[Change, ...]
    blocks: Mapping[tuple[str, int], BlockOrigin] = Factory(dict)
    """Every block of the new rack → its origin, when the stacks change."""
    operator: object = field(default=None, eq=False, repr=False)
    """The growth operator, one object for plan, pricing and run; None if nothing grows."""
    preserves_function: bool = True
    notes: tuple[str, ...] = ()
    """What is lost or started anew on purpose, in sentences."""
    touches_function: bool = False
    """Whether the boundary builds, grows, replaces or restarts a part of the model while the batches stay the same."""
