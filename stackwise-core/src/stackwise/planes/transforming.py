"""The declared transforms of a batch, in order, each with a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stackwise.contracts import Batch, Scheduled, Transform
from stackwise.errors import ProviderError
from stackwise.phases import Part
from stackwise.streams import step_seed, stream_key
from stackwise.time import Moment

BuildTransform = Callable[[Part], Transform]


class Transforms:
    """Those of the state in force; called with a batch and its instant.

    Args:
        build: makes a declared transform; None where none is ever declared.
        seed: the run's seed. What a transform draws depends on it, on its place and id, and on the step.
    """

    def __init__(self, build: BuildTransform | None, seed: int) -> None:
        self._build, self._seed = build, seed
        self._chain: list[tuple[Part, Transform, torch.Generator, int]] = []

    def enter(self, parts: Sequence[Part]) -> None:
        """Cross into those declared; one that is declared as before, at its place, stays."""
        known = {(i, part.structure): rest for i, (part, *rest) in enumerate(self._chain)}
        self._chain = [(part, *(known.get((i, part.structure)) or self._made(i, part))) for i, part in enumerate(parts)]

    def __call__(self, batch: Batch, moment: Moment) -> Batch:
        """The batch after all of them."""
        for part, transform, generator, key in self._chain:
            if part.curves:
                transform.apply_values(part.values_at(moment.t))  # type: ignore[attr-defined]  # checked when it was built
            batch = transform(batch, moment, generator.manual_seed(step_seed(key, moment.step)))
        return batch

    def __bool__(self) -> bool:
        return bool(self._chain)

    def _made(self, index: int, part: Part) -> tuple[Transform, torch.Generator, int]:
        assert self._build is not None
        transform = self._build(part)
        if part.curves and not isinstance(transform, Scheduled):
            raise ProviderError(
                f"{part.id} declares options that follow time ({', '.join(part.curves)}) but the transform has no apply_values"
            )
        return transform, torch.Generator(), stream_key(self._seed, "transform", index, part.id)
