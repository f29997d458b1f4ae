"""Finished modules begin a run with the values that they hold: those that trained in this process before are told."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.machine.live import LiveState
from stackwise.planes.data.values import digest_of_some
from stackwise.planes.model.difference import parts_of

_FIRST: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Each module that holds tensors of its own → a digest of some of them when it first began a run. It belongs to the process because
nothing else outlives a machine: what a user hands over stays as it is, without a mark on it."""


def begin(live: LiveState, schedule: PhaseSchedule) -> list[str]:
    """Remember what the finished objects of a machine hold as it begins, and tell of those that hold what an earlier run left.

    Returns:
        A sentence for each that began a run before with other values.
    """
    notes = [note for where, module in _finished(live, schedule) if (note := _changed(where, module)) is not None]
    if all(phase.state is None for phase in schedule) and live.optimizer.optimizer.state:
        notes.append("the optimizer: it holds the state of steps that it took before, and goes on with it")
    return notes


def _finished(live: LiveState, schedule: PhaseSchedule) -> Iterable[tuple[str, nn.Module]]:
    if all(phase.state is None for phase in schedule):
        return [("model", live.model.model)]
    states = [phase.state.model for phase in schedule if phase.state is not None]
    given = {id(part.given): (path, part.given) for state in states for path, part in parts_of(state) if isinstance(part.given, nn.Module)}
    return given.values()


def _changed(where: str, module: nn.Module) -> str | None:
    digests = {each: digest_of_some(own) for each in module.modules() if (own := list(_own(each)))}
    if all(_FIRST.setdefault(each, digest) == digest for each, digest in digests.items()):
        return None
    return (
        f"{where}: the {type(module).__name__} began a run in this process before, with other values: this one begins with those that it "
        "holds now, trained as they are; to begin as then, build it anew, or give Built(callable, options)"
    )


def _own(module: nn.Module) -> Iterable[torch.Tensor]:
    return (*module.parameters(recurse=False), *module.buffers(recurse=False))
