"""Random curricula that several processes can share out, and what came of each in one process or in many."""

from __future__ import annotations

import traceback
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from hypothesis import strategies as st
from tiny_walks import VOCAB, base, memory, plan_of

import stackwise
from stackwise.contracts.events import Evaluated, StepDone
from stackwise.machine import step as step_module
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.planes.shards import whole
from stackwise.processes.ranks import Ranks, joined

LENGTH = 6


@frozen
class Trained:
    """What a run came to."""

    losses: list[float]
    norms: list[float]
    evaluations: list[float]
    parameters: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    averages: dict[str, torch.Tensor]
    seen: list[tuple[int, int, str]]
    """Step, micro-batch and digest of what the model and the loss read: rows, masks and targets."""


def wobbled(config: dict[str, Any]) -> Trained:
    """Train a config in this process, with every trained weight moved by half a unit in its last place after each step.

    How far that comes from the run as it is says what the order of sums may do to it: of a curriculum with a large learning rate more
    than of another.
    """
    step, generator = OptimizerPlane.step, torch.Generator().manual_seed(0)

    def moved(plane: OptimizerPlane, t: float) -> None:
        step(plane, t)
        with torch.no_grad():
            for parameter in plane.parameters:
                parameter.mul_(1 + 2**-24 * torch.randn(parameter.shape, generator=generator).sign())

    OptimizerPlane.step = moved  # type: ignore[method-assign]  # while this run lasts
    try:
        return train(config)
    finally:
        OptimizerPlane.step = step  # type: ignore[method-assign]


def train(config: dict[str, Any], ranks: Ranks | None = None) -> Trained:
    """Train a config to its end in this process, alone or beside others."""
    seen: list[tuple[int, int, str]] = []
    prepare = step_module.prepare
    counts: dict[int, int] = {}

    def noted(objective: Any, model: Any, batch: Any, moment: Any, generator: Any) -> Any:
        made = prepare(objective, model, batch, moment, generator)
        place = counts[moment.step] = counts.get(moment.step, -1) + 1
        digest = sha256(b"".join(f"{name}".encode() + made[name].contiguous().numpy().tobytes() for name in sorted(made)))
        seen.append((moment.step, place if ranks is None else ranks.share.index(place), digest.hexdigest()))
        return made

    step_module.prepare = noted  # type: ignore[assignment]  # while this run lasts
    try:
        machine = stackwise.assemble(plan_of(config), ranks=ranks)
        events = list(machine.train())
    finally:
        step_module.prepare = prepare
    state = machine.state()
    optimizer = state["optimizer"]
    moments = {f"{name}.{key}": entry for name, entries in optimizer["parameters"].items() for key, entry in entries.items()}
    everything = seen if ranks is None else [each for theirs in ranks.gather(seen) for each in theirs]
    return Trained(
        losses=[event.loss for event in events if isinstance(event, StepDone)],
        norms=[event.grad_norm for event in events if isinstance(event, StepDone)],
        evaluations=[event.metrics["loss"] for event in events if isinstance(event, Evaluated)],
        parameters=_copies(state["model"]),
        moments=_copies(moments),
        averages=_copies(optimizer["average"] or {}),
        seen=sorted(everything),
    )


def _copies(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: whole(tensor).clone() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def train_all(folder: str = ".") -> None:
    """In each of several processes: train every config of a folder's `configs.pt`, and write what came of them, in the first one."""
    place = Path(folder)
    with joined() as ranks:
        assert ranks is not None
        found: list[Trained | str] = []
        for config in torch.load(place / "configs.pt", weights_only=False):
            try:
                found.append(train(config, ranks))
            except Exception as error:
                if not ranks.gather(str(error))[0]:
                    raise
                found.append("".join(traceback.format_exception(error)))
        if ranks.is_first:
            torch.save(found, place / "found.pt")


IN_EACH = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import shared_curricula; shared_curricula.train_all()"
"""Executed by every process of a fork server."""


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance of all tensors of two maps as one vector, relative to its length: ‖a − b‖ / ‖a‖.

    Of a single tensor that would say less: the second matrix of an adapter begins at zero, and after a few steps the rounding of sums is
    1e-4 of what little it holds.
    """
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    assert all(one[name].shape == other[name].shape and one[name].dtype == other[name].dtype for name in one)
    lengths = [
        torch.cat([torch.zeros(1).double(), *(t.double().flatten() for t in each)]).norm() for each in (one.values(), _minus(one, other))
    ]
    return float(lengths[1] / lengths[0]) if lengths[0] else float(lengths[1])


def _minus(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [one[name].double() - other[name].double() for name in one]


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest such distance of a single tensor, of those that are not all but zero."""
    return max((apart({name: one[name]}, {name: other[name]}) for name in one if one[name].double().norm() > 1e-3), default=0.0)


LINEAR: tuple[dict[str, Any], ...] = (
    {"use": "optim.sgd", "lr": 0.1, "momentum": 0.9, "clip": 0.5},
    {"use": "optim.sgd", "lr": 0.2, "momentum": 0.0},
)
"""Optimizers whose step is as large as the gradient, so that rounding stays rounding."""

DIVIDING: tuple[dict[str, Any], ...] = (
    {"use": "optim.schedule-free", "lr": 0.02, "eps": 1e-3, "clip": 0.5},
    {"use": "optim.adamw", "lr": 0.01, "eps": 1e-3, "clip": 0.5},
)
"""Optimizers with second moments. They divide by at least 1e-3: with the usual eps a gradient of almost nothing, which another order of
the sums makes another number, moves a weight by a whole learning rate."""


def pairs() -> dict[str, Any]:
    """A source of random responses, two behind each prompt of two tokens."""
    shape, generator = (60, LENGTH + 1), torch.Generator().manual_seed(7)
    chosen, rejected = (torch.randint(VOCAB, shape, generator=generator) for _ in range(2))
    rejected[:, :2] = chosen[:, :2]
    prefix = torch.full((60,), 2)
    return {"use": "data.memory", "arrays": {"chosen": chosen, "rejected": rejected, "prefix": prefix}, "heldout": 0.3}


MOVES = ("deeper", "shallower", "wider", "frozen", "adapted", "optimizer", "averaged")


@st.composite
def curricula(draw: st.DrawFn, micro_batches: int, optimizers: tuple[dict[str, Any], ...] = LINEAR) -> dict[str, Any]:
    """A config of two to four short phases, each of whose boundaries changes one to three things, and perhaps one more that learns from
    preferences, beside a copy of the model as the phase begins.

    Args:
        draw: of hypothesis.
        micro_batches: of every step, or twice as many.
        optimizers: those to choose from, phase by phase.
    """
    rack: dict[str, Any] = {"use": "transformer.decoder", "width": 8, "heads": 2, "ff": 10, "dropout": 0.1, "stacks": [{"base": 2}]}
    optimizer = first = draw(st.sampled_from(optimizers))
    phases: dict[str, Any] = {"p0": {"until": "3 steps"}}
    depth, width, adapted, steps = 2, 8, False, 3
    for index in range(1, draw(st.integers(2, 4))):
        phase: dict[str, Any] = {"model": {}, "enter": {}}
        moves = draw(st.sets(st.sampled_from(MOVES), min_size=1, max_size=3))
        if adapted:
            adapted, phase["model"]["weight_adapters"], phase["model"]["freeze"] = False, None, []
        if "wider" in moves and width == 8:
            width = 16
            phase["model"]["rack"], phase["enter"]["growth"] = {"width": 16, "heads": 4}, {"use": "transformer.widen"}
        elif "deeper" in moves and depth < 4:
            depth += draw(st.integers(1, 2))
            growth = draw(st.sampled_from(["stack", "identity"]))
            phase["model"]["rack"], phase["enter"]["growth"] = {"stacks": [{"base": depth}]}, {"use": f"transformer.{growth}"}
        elif "shallower" in moves and depth > 1:
            depth -= 1
            phase["model"]["rack"] = {"stacks": [{"base": depth}]}
        if "adapted" in moves:
            adapted = True
            lora = {"use": "transformer.lora", "select": ["*.attention.*"], "rank": 2}
            phase["model"] |= {"freeze": ["rack.*", "embedding"], "weight_adapters": {"low": lora}}
        elif "frozen" in moves:
            phase["model"]["freeze"] = draw(st.sampled_from([["embedding"], ["rack.stacks.base.0"], []]))
        if "optimizer" in moves:
            optimizer = draw(st.sampled_from(optimizers))
        if "averaged" in moves:
            optimizer = {**optimizer, "ema": {"decay": 0.8}}
        phase["optimizer"] = dict(optimizer)
        steps += draw(st.integers(1, 3))
        phases[f"p{index}"] = {"until": f"{steps} steps", **{key: value for key, value in phase.items() if value}}
    evaluate: dict[str, Any] = {"e": {"every": "2 steps", "batches": 3}}
    if draw(st.booleans()):
        steps, evaluate = steps + 2, {}  # an evaluation reads the rows of one task
        prefers = {"task": {"use": "transformer.preference"}, "data": {"sources": {"replace": {"pairs": pairs()}}, "mix": {"replace": {}}}}
        phases["prefers"] = {"until": f"{steps} steps", **prefers}
    return base(
        run={"name": "drawn", "seed": draw(st.integers(0, 9)), "horizon": f"{steps} steps", "device": "cpu", "probe": True},
        data={
            "sources": {"a": memory(0, heldout=0.1), "b": memory(1, heldout=0.1)},
            "mix": {"a": 2, "b": 1},
            "batch_size": 2,
            "seq_len": LENGTH,
            "accumulate": micro_batches * draw(st.integers(1, 2)),
        },
        task={"use": draw(st.sampled_from(["transformer.causal-lm", "transformer.mask-diffusion"]))},
        model={
            "embedding": {"use": "transformer.token", "vocab": VOCAB + 1},
            "rack": rack,
            "head": {"use": "transformer.lm", "tied": draw(st.booleans())},
        },
        evaluate=evaluate,
        optimizer=first,
        phases=phases,
    )
