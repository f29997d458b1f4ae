"""Options that follow time: handed to their artifact whenever they change."""

from __future__ import annotations

from typing import cast

from stackwise.contracts.answers import mark
from stackwise.contracts.protocols import Scheduled
from stackwise.curriculum.parts import Part
from stackwise.errors import ProviderError


class Follower:
    """Hands an artifact the current values of its options that may follow time.

    Args:
        part: the declaration.
        artifact: the object built from it.
        label: what messages call the artifact (`task`, `loader`, …).

    Raises:
        ProviderError: options follow time and the artifact has no `apply_values`.
    """

    def __init__(self, part: Part, artifact: object, label: str) -> None:
        if part.curves and not isinstance(artifact, Scheduled):
            raise ProviderError(
                f"{part.id} declares options that follow time ({', '.join(part.curves)}) but {label} has no apply_values: give it one"
            )
        self._id, self._artifact = part.id, cast(Scheduled, artifact)  # without one nothing is due
        self._curves = self._due = tuple(part.curves.items())
        self._moving = tuple((name, curve) for name, curve in self._curves if not curve.is_constant)
        self.values: dict[str, float] = {}
        """The values last handed over."""

    @property
    def moves(self) -> bool:
        """Whether any value changes once it was handed over."""
        return bool(self._moving)

    def apply(self, t: float) -> None:
        """Hand over the values in force at t, if any of them changed."""
        if not self._due:
            return
        values = self.values.copy()
        for name, curve in self._due:
            values[name] = curve(t)
        self._due = self._moving
        if values != self.values:
            try:
                self._artifact.apply_values(values)
            except BaseException as error:
                mark(error, self._id, "apply_values")
                raise
            self.values = values

    def forget(self) -> None:
        """Hand over all values again next time, because the artifact was changed from outside."""
        self.values, self._due = {}, self._curves
