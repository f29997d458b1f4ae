"""What a machine does at each step and boundary because it is one of several processes that train one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import Any

import attrs
import torch

from stackwise.contracts.protocols import Batch, Stateful
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import UserError
from stackwise.machine.live import LiveState
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.moments import MomentsReceipt
from stackwise.planes.shards import is_part, own
from stackwise.processes.ranks import Ranks
from stackwise.timeline.duration import Moment


class Together:
    """Holds the processes to one state.

    After a boundary, and again after the first step that follows, every parameter, buffer and moment has the same bits everywhere. A
    difference is reported by name: what a model keeps of the rows that it saw, or whatever else only one process did.

    Args:
        ranks: the processes.
        live: the live training state.
    """

    def __init__(self, ranks: Ranks, live: LiveState) -> None:
        self._ranks, self._live = ranks, live
        self._looks = False

    def crossing(self, phase: CompiledPhase) -> AbstractContextManager[None]:
        """The time of a boundary, so that a process that hangs in it is named with it."""
        return self._ranks.watch.inside(f"in the boundary into phase '{phase.name}'")

    def enter(self, phase: CompiledPhase, model: ModelReceipt, moments: MomentsReceipt) -> None:
        """Compare what a boundary did, and what came of it.

        Raises:
            UserError: a process has something else, or a part keeps a state of the rows that it saw.
        """
        self.begin(phase)
        receipt = _digest(repr((phase.name, attrs.asdict(model), attrs.asdict(moments))).encode())
        self._compare(f"after the boundary into phase '{phase.name}'", {"receipt of the boundary": receipt})

    def begin(self, phase: CompiledPhase) -> None:
        """Refuse what cannot be shared out, and look at the next step."""
        self._looks = True
        for what, part in (("task", self._live.objective.task), *(("transform", each) for each in self._live.data.stateful_transforms())):
            if isinstance(part, Stateful):
                raise UserError(
                    f"the {what} {type(part).__name__} of phase '{phase.name}' keeps a state from batch to batch, and each of several "
                    "processes would see a part of the batches only: train in one process, or use one without state_dict"
                )

    def after_step(self, moment: Moment, *, drew: bool) -> None:
        """After the first step of a phase, compare everything.

        Args:
            moment: of the step.
            drew: whether anything drew from numpy's or Python's generators, whose place goes through the run.

        Raises:
            UserError: a process has something else, or something drew.
        """
        if self._looks:
            self._looks = False
            self._compare(f"after step {moment.step}", {})
        if drew:
            raise UserError(
                f"step {moment.step} drew from numpy's or Python's own generator, whose place goes through the whole run, and each of "
                "several processes computes a part of it: draw from torch's, which begins anew in each micro-batch, or train in one process"
            )

    def last_batch(self, batches: list[Batch], moment: Moment) -> Batch:
        """The last micro-batch of a step, which one of the processes has."""
        share, count = self._ranks.share, self._live.data.micro_batches(moment.step)
        own = {name: tensor.cpu() for name, tensor in batches[-1].items()} if share.owns(count - 1) else None
        batch: Batch = self._ranks.broadcast(own, source=(count - 1) % share.ranks)
        return {name: tensor.to(self._live.placement.device) for name, tensor in batch.items()}

    def _compare(self, when: str, more: Mapping[str, str]) -> None:
        state = {"model": self._live.model.state_dict(), "optimizer": self._live.optimizer.state_dict()}
        sharding = self._live.sharding
        leaves = list(_leaves(state, ""))
        self._ranks.agree({**more, **{path: _digest(content) for path, content, is_part in leaves if not is_part}}, when)
        if sharding is not None:
            self._ranks.agree({path: _digest(content) for path, content, is_part in leaves if is_part}, when, sharding.parts)


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=12).hexdigest()


def _leaves(state: Any, path: str) -> Iterator[tuple[str, bytes, bool]]:
    """Path and bytes of every tensor and every other value of a nested state, and whether others hold the rest of it."""
    if isinstance(state, torch.Tensor):
        yield path, own(state.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), is_part(state)
    elif isinstance(state, Mapping):
        for key, inner in state.items():
            yield from _leaves(inner, f"{path}: {key}" if path else str(key))
    elif isinstance(state, list | tuple):
        for index, inner in enumerate(state):
            yield from _leaves(inner, f"{path}: {index}")
    else:
        yield path, repr(state).encode(), False
