"""The declared transforms of a batch, in order, each with a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from stackwise.contracts.answers import MAPS, calling, expect, expect_state, mark
from stackwise.contracts.protocols import Batch, Stateful, Transform
from stackwise.curriculum.parts import Part
from stackwise.errors import DataError
from stackwise.planes.data.randomness import StepSeeds
from stackwise.planes.followers import Follower
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import stream_key

BuildTransform = Callable[[Part], Transform]


class _Link(NamedTuple):
    """One transform of the chain."""

    part: Part
    follower: Follower
    transform: Transform
    generator: torch.Generator
    seeds: StepSeeds


class Transforms:
    """The transforms of the phase in force, applied to every micro-batch of the current step.

    Args:
        build: makes a transform from its declaration; None if no phase declares any.
        seed: of the run. A transform's random numbers depend on it, on the transform's place and id, on the step and on the micro-batch.
    """

    def __init__(self, build: BuildTransform | None, seed: int) -> None:
        self._build, self._seed = build, seed
        self._chain: list[_Link] = []

    @property
    def parts(self) -> list[Part]:
        """Their declarations, in order."""
        return [link.part for link in self._chain]

    def enter(self, parts: Sequence[Part]) -> None:
        """Switch to the declared transforms; one whose declaration and place are unchanged is kept."""
        current = {(i, link.part.structure): link for i, link in enumerate(self._chain)}
        links = [(part, current.get((i, part.structure)) or self._build_link(i, part)) for i, part in enumerate(parts)]
        self._chain = [link._replace(part=part, follower=Follower(part, link.transform, "the transform")) for part, link in links]

    def begin(self, moment: Moment) -> None:
        """Apply the values in force at a step."""
        for link in self._chain:
            link.follower.apply(moment.t)

    def __call__(self, batch: Batch, moment: Moment, index: int = 0) -> Batch:
        """Apply all transforms to a micro-batch of the current step, each with the stream of that micro-batch."""
        for link in self._chain:
            try:
                batch = link.transform(batch, moment, link.generator.manual_seed(link.seeds(moment.step, index)))
                if not (isinstance(batch, MAPS) and batch):
                    expect(False, batch, "a map of field name to tensor")
            except BaseException as error:
                mark(error, link.part.id, "a batch")
                raise
        return batch

    def state_dict(self) -> dict[str, Any]:
        """State of the stateful transforms, by place."""
        states = {}
        for i, transform in self._stateful().items():
            with calling(self._chain[i].part.id, "state_dict"):
                states[str(i)] = expect_state(transform.state_dict())
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            DataError: the saved state belongs to other transforms than those declared.
        """
        stateful = self._stateful()
        if set(state) != set(map(str, stateful)):
            raise DataError(f"the saved transforms with state are {sorted(state)}, the declared ones are {sorted(map(str, stateful))}")
        for i, transform in stateful.items():
            with calling(self._chain[i].part.id, "load_state_dict"):
                transform.load_state_dict(state[str(i)])
            self._chain[i].follower.forget()

    def stateful(self) -> list[Stateful]:
        """The transforms that keep a state."""
        return list(self._stateful().values())

    def _stateful(self) -> dict[int, Stateful]:
        return {i: link.transform for i, link in enumerate(self._chain) if isinstance(link.transform, Stateful)}

    def __bool__(self) -> bool:
        return bool(self._chain)

    def _build_link(self, index: int, part: Part) -> _Link:
        assert self._build is not None
        transform, seeds = self._build(part), StepSeeds(stream_key(self._seed, "transform", index, part.id))
        return _Link(part, Follower(part, transform, "the transform"), transform, torch.Generator(), seeds)
