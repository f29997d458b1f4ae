"""Finished objects begin a run as they are: modules that trained in this process before, and loaders that were read, are told."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.machine.live import LiveState
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import generator_state
from stackwise.planes.data.values import digest_of_some
from stackwise.planes.model.difference import parts_of

_FIRST: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Each module that holds tensors of its own → a digest of some of them when it first began a run. It belongs to the process because
nothing else outlives a machine: what a user hands over stays as it is, without a mark on it."""

_STOOD: WeakKeyDictionary[object, list[bytes]] = WeakKeyDictionary()
"""Each loader with generators of its own → how they stood when it first began a run."""


def begin(live: LiveState, schedule: PhaseSchedule) -> list[str]:
    """Remember what the finished objects of a machine hold as it begins, and tell of those that hold what an earlier run left.

    Returns:
        A sentence for each that began a run before with other values, or at another place of its generator.
    """
    notes = [*(note for where, module in _finished(live, schedule) if (note := _changed(where, module)) is not None), *_moved(live.data)]
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


def _moved(data: DataPlane) -> Iterable[str]:
    for name, loader in data.brought().items():
        if not loader.generators:
            continue
        stands = [generator_state(generator) for generator in loader.generators]
        if _STOOD.setdefault(loader.source, stands) != stands:
            kind = type(loader.source).__name__
            yield (
                f"source '{name}': the {kind} began a run in this process before, and its generator has moved on since: this run goes "
                f"on from there; to begin as then, seed the generator again, or build the {kind} anew"
            )


def go_on(live: LiveState) -> list[str]:
    """A sentence for all that a resume cannot be sure of: data that were not compared, data sets that count, hooks that keep something."""
    brought = live.data.brought().items()
    return [
        *(
            f"source '{name}': its first batch is another one each time it is read, so nobody can tell by it whether the data changed "
            "since the run began; to have it compared, draw from torch's, numpy's or Python's own functions, which are seeded for each"
            for name, loader in brought
            if loader.uncompared
        ),
        *(
            f"source '{name}': {changed}, which no checkpoint puts back: where a sample depends on it, the run goes on with other data "
            "than if it had not been stopped; take it from the index"
            for name, loader in brought
            for changed in loader.counted
        ),
        *live.hook_notes(),
    ]


def _own(module: nn.Module) -> Iterable[torch.Tensor]:
    return (*module.parameters(recurse=False), *module.buffers(recurse=False))
