"""Whole runs small enough to make by the dozen: a decoder of width 8 on 16 token ids, and what tests read from a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from attrs import frozen
from torch import nn

import stackwise
from stackwise.contracts.events import Event, PhaseEntered, StepDone
from stackwise.errors import Problem
from stackwise.host.registry import Registry
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan

VOCAB = 16


@cache
def registry() -> Registry:
    """The installed components, found once."""
    return stackwise.discover()


def stream(count: int = 3000, seed: int = 0) -> torch.Tensor:
    """Random token ids below VOCAB."""
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def memory(seed: int = 0, **options: Any) -> dict[str, Any]:
    """A source of random tokens."""
    return {"use": "data.memory", "arrays": {"tokens": stream(seed=seed)}, **options}


def base(**sections: Any) -> dict[str, Any]:
    """A complete config of one phase; whole sections may be replaced."""
    return {
        "run": {"name": "tiny", "seed": 3, "horizon": "12 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": memory()}, "batch_size": 2, "seq_len": 4},
        "model": {
            "embedding": {"use": "transformer.token", "vocab": VOCAB},
            "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 0.01},
        **sections,
    }


def plan_of(config: Mapping[str, Any], **changes: Any) -> Plan:
    """The plan of a config with changes laid on it."""
    return stackwise.make_plan(stackwise.experiment(config, **changes), registry())


def machine_of(config: Mapping[str, Any], **changes: Any) -> TrainingMachine:
    """The machine of a config with changes laid on it."""
    return stackwise.assemble(plan_of(config, **changes))


def problems_of(config: Mapping[str, Any], **changes: Any) -> tuple[Problem, ...]:
    """What is wrong with a config, by its own account."""
    try:
        plan_of(config, **changes)
    except stackwise.ConfigError as error:
        return error.problems
    return ()


def drive(machine: TrainingMachine) -> list[Event]:
    """Every event of the whole run."""
    return list(machine.train())


def losses(events: list[Event]) -> list[tuple[int, float, float, float]]:
    """The bits of a run: step, loss, gradient norm and learning rate."""
    return [(e.step, e.loss, e.grad_norm, e.lr) for e in events if isinstance(e, StepDone)]


def weights(machine: TrainingMachine) -> dict[str, torch.Tensor]:
    """A copy of every parameter, tied ones once, by canonical name."""
    return {name: p.detach().clone() for name, p in machine.model.model.named_parameters()}


def moments(machine: TrainingMachine) -> dict[str, dict[str, torch.Tensor]]:
    """A copy of all optimizer state by canonical name, that of frozen parameters included."""
    return {
        name: {path: torch.as_tensor(value).clone() for key, entry in entries.items() for path, value in flattened(key, entry)}
        for name, entries in machine.optimizer.state_by_name().items()
        if entries
    }


def flattened(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of an entry, in whatever lists they stand."""
    if not isinstance(value, list | tuple):
        yield path, value
        return
    for i, inner in enumerate(value):
        yield from flattened(f"{path}.{i}", inner)


def held(machine: TrainingMachine) -> list[nn.Parameter]:
    """The parameters in the optimizer's groups, as often as they stand there."""
    return [p for group in machine.optimizer.optimizer.param_groups for p in group["params"]]


def same_tensors(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Whether two maps hold the same names and the same bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@frozen(kw_only=True)
class Snapshot:
    """What a machine held at one instant."""

    weights: dict[str, torch.Tensor]
    identities: dict[str, int]
    moments: dict[str, dict[str, torch.Tensor]]
    positions: dict[str, Any]
    """Source → read position."""
    ledger: dict[str, dict[str, int]]


def snapshot(machine: TrainingMachine) -> Snapshot:
    """A copy of everything that a boundary may touch."""
    return Snapshot(
        weights=weights(machine),
        identities={name: id(p) for name, p in machine.model.model.named_parameters()},
        moments=moments(machine),
        positions=machine.data.state_dict()["sources"],
        ledger=machine.data.ledger(),
    )


def boundaries(machine: TrainingMachine) -> Iterator[tuple[Snapshot, PhaseEntered, Snapshot]]:
    """Walk the whole run; what was there right before and right after each phase but the first was entered.

    The config declares no evaluation: what lies between the last step of a phase and the first event after it is the boundary.
    """
    before: Snapshot | None = None
    for event in machine.train():
        if isinstance(event, PhaseEntered) and before is not None:
            yield before, event, snapshot(machine)
        if isinstance(event, StepDone) and event.step + 1 in machine.schedule.clock.starts:
            before = snapshot(machine)


def watch_batches(machine: TrainingMachine, seen: Callable[[int, list[Any]], None]) -> None:
    """Call `seen(step, micro-batches)` for every step's data."""
    deliver = machine.data.batches

    def batches(moment: stackwise.Moment) -> list[Any]:
        delivered = deliver(moment)
        seen(moment.step, delivered)
        return delivered

    machine.data.batches = batches  # type: ignore[method-assign]  # one machine of one test
