"""The data of the timeline drawing: for each phase a lane for each plane, with every scheduled value sampled at a few steps."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from stackwise.assembly.pricing import PhasePrice
from stackwise.contracts.selectors import matches
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.plan import Plan
from stackwise.timeline.clock import Clock
from stackwise.timeline.schedules import Curve

INSTANTS = 32
"""Evenly spaced steps of a phase at which a changing value is sampled; the knots of its schedule are added."""

Samples = list[list[float]]
"""Pairs of step and value."""


def lanes_of(plan: Plan, prices: Iterable[PhasePrice]) -> list[dict[str, Any]]:
    """Task, data, model and optimizer of every phase, as a picture shows them."""
    return [_Lane(plan.schedule.clock, phase, price).as_json() for phase, price in zip(plan.schedule, prices, strict=True)]


class _Lane:
    """The drawing of one phase."""

    def __init__(self, clock: Clock, phase: CompiledPhase, price: PhasePrice) -> None:
        assert phase.state is not None  # a plan's phases are declared
        self._clock, self._phase, self._price, self._state = clock, phase, price, phase.state

    def as_json(self) -> dict[str, Any]:
        return {"task": self._task(), "data": self._data(), "model": self._model(), "optimizer": self._optimizer()}

    def _samples(self, *curves: Curve, factor: float = 1.0) -> Samples:
        """Pairs of step and product of the curves: at the first and last step, at knots and in between; one pair if it is constant."""
        first, last = self._phase.start, self._phase.stop - 1
        knots = {self._clock.step_at(knot.t) for curve in curves if not curve.is_constant for knot in curve.knots}
        even = {first + round((last - first) * i / INSTANTS) for i in range(INSTANTS + 1)} if knots else {first}
        steps = sorted(step for step in even | knots | {k - 1 for k in knots} if first <= step <= last)
        samples = [[step, factor * prod(curve(self._clock.t(step)) for curve in curves)] for step in steps]
        return samples if any(value != samples[0][1] for _, value in samples) else samples[:1]

    def _values(self, *parts: Part) -> dict[str, Samples]:
        """The scheduled options of some parts whose values change in this phase."""
        return {f"{part.id} {name}": samples for part in parts for name, samples in self._moving(part).items()}

    def _moving(self, part: Part) -> dict[str, Samples]:
        return {name: self._samples(curve) for name, curve in part.curves.items() if not curve.is_constant}

    def _task(self) -> dict[str, Any]:
        weights = {f"{name} weight": self._samples(curve) for name, curve in self._state.auxiliary.items() if not curve.is_constant}
        function = self._state.task.plain_options.get("function") if self._state.task.given is not None else None  # of a stackwise.Loss
        use = getattr(function, "__name__", type(function).__name__) if callable(function) else self._state.task.id
        return {"use": use, "values": {**self._values(self._state.task), **weights}}

    def _data(self) -> dict[str, Any]:
        data = self._state.data
        return {
            "sources": {name: part.id for name, part in data.sources.items()},
            "mix": {name: self._samples(curve) for name, curve in data.mix.items()},
            "shapes": self._shapes(),
            "transforms": [part.id for part in data.transforms],
            "values": {
                **{f"{name} {key}": samples for name, part in data.sources.items() for key, samples in self._moving(part).items()},
                **self._values(*data.transforms),
            },
        }

    def _shapes(self) -> list[list[int | None]]:
        """Step, rows, seq_len and micro-batches wherever the batch shape changes; equal shapes in a row are listed once."""
        shapes: list[list[int | None]] = []
        for start, shape in self._state.data.shapes:
            drawn = [shape.rows, shape.seq_len, len(shape.micro_batches)]
            if not shapes or shapes[-1][1:] != drawn:
                shapes.append([start, *drawn])
        return shapes

    def _model(self) -> dict[str, Any]:
        model, gate = self._state.model, self._phase.gate
        return {
            **{role: getattr(model, role).id for role in ("embedding", "rack", "head")},
            "bars": [
                self._bar("embedding", "embedding."),
                *(self._block(name, i) for name, count in model.stacks.items() for i in range(count)),
                *([] if model.stacks else [self._bar("rack", "rack.")]),
                self._bar("head", "head."),
            ],
            "freeze": list(model.freeze),
            "weight_adapters": {name: {"use": a.part.id, "select": list(a.select)} for name, a in model.weight_adapters.items()},
            "gate": None if gate.is_constant else self._samples(gate),
            "values": self._values(model.embedding, model.rack, model.head),
        }

    def _block(self, stack: str, index: int) -> dict[str, Any]:
        """A block, and where it comes from: fresh, kept, or copied from another block."""
        bar = self._bar(f"{stack} {index}", f"rack.stacks.{stack}.{index}.")
        origin = self._phase.blocks.get((stack, index))
        if origin is None:
            return bar
        if origin.source is None:
            return {**bar, "from": "fresh"}
        source, old = origin.source
        if (source, old) == (stack, index):
            return {**bar, "from": "kept"}
        return {**bar, "from": "copied", "origin": str(old) if source == stack else f"{source} {old}"}

    def _bar(self, label: str, prefix: str) -> dict[str, Any]:
        """A part of the model. If its tensors have several origins it counts as copied, and the number of each is listed."""
        receipt, freeze = self._price.receipt, self._state.model.freeze
        ways = {"kept": receipt.adopted, "copied": receipt.copied, "fresh": receipt.fresh}
        tensors = {way: sum(name.startswith(prefix) for name in names) for way, names in ways.items()}
        came = [way for way, count in tensors.items() if count] if self._phase.index else ["kept"]
        names = [name for each in ways.values() for name in each if name.startswith(prefix)]
        frozen = [name for name in names if matches(freeze, name)]
        bar = {"label": label, "from": came[0] if len(came) == 1 else "copied" if came else "kept"}
        bar |= {"frozen": "all" if names and frozen == names else "some" if frozen else "none"}
        return bar if len(came) < 2 else {**bar, "tensors": tensors}

    def _optimizer(self) -> dict[str, Any]:
        optimizer = self._state.optimizer
        factor = optimizer.lr_factor(self._price.parameters)
        groups: dict[str, dict[str, list[Curve]]] = {g.name: {key: [curve] for key, curve in g.curves.items()} for g in optimizer.groups}
        if (again := self._phase.enter.rewarm) is not None:
            for name in self._price.receipt.fresh:
                group = next(g for g in optimizer.groups if not g.select or matches(g.select, name))
                groups[f"{group.name}.fresh"] = {key: [c, again] for key, c in group.curves.items() if key.endswith("lr")}
        return {
            "use": optimizer.part.id,
            "groups": {
                name: {key: self._samples(*curves, factor=factor if key.endswith("lr") else 1.0) for key, curves in values.items()}
                for name, values in groups.items()
            },
            "clip": optimizer.clip,
            "ema": None if optimizer.ema is None else self._samples(optimizer.ema),
            "reaction": None if optimizer.reaction is None else optimizer.reaction.id,
        }
