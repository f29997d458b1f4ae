"""A provider whose every component remembers: what it holds decides what comes next, so that a resume which loses any of it shows.

Written into a distribution of its own by `install`; a task, a transform, an optimizer and an observer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen

from stackwise import Component, Moment, OptimizerSpec, ParameterGroup, RunFinished, TaskSpec, TensorSpec, hookimpl, option, scheduled


@frozen(kw_only=True)
class TaskOptions:
    """Language modelling backwards: the token before."""

    def to_spec(self) -> TaskSpec:
        """As for the token after."""
        tokens = TensorSpec("batch time", "integer", (0, "vocab"))
        logits = TensorSpec("batch time vocab", "floating")
        return TaskSpec(batch={"tokens": tokens}, inputs={"tokens": tokens}, outputs={"logits": logits}, lookahead=1)


class Backwards:
    """Every third batch that it prepares for training counts double."""

    def __init__(self) -> None:
        self.prepared = 0

    def get_spec(self) -> TaskSpec:
        return TaskOptions().to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.prepared += 1
        tokens = batch["tokens"].long().flip(1)
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> Any:
        logits, targets = outputs["logits"], batch["targets"]
        nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")
        return nats * (1 + (self.prepared % 3 == 0)), float(targets.numel()), {}

    def state_dict(self) -> dict[str, Any]:
        return {"prepared": self.prepared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prepared = state["prepared"]


@frozen(kw_only=True)
class ShiftOptions:
    """A shift of token ids that grows."""

    vocab: int = option(doc="ids stay below it", minimum=1)


class Shift:
    """Adds to every id how many batches it has seen."""

    def __init__(self, vocab: int) -> None:
        self.vocab, self.seen = vocab, torch.zeros((), dtype=torch.int64)

    def __call__(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.seen = self.seen + 1
        return {**batch, "tokens": (batch["tokens"] + self.seen) % self.vocab}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"].clone()


@frozen(kw_only=True)
class SlowingOptions:
    """Momentum whose steps get shorter."""

    lr: float = scheduled(0.01, doc="learning rate", minimum=0)

    def to_spec(self) -> OptimizerSpec:
        """One moment."""
        return OptimizerSpec(state_elements=lambda shape: int(torch.Size(shape).numel()))


class Slowing(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimizers do, and divides by the count."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch calls it
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= group["taken"]
        super().step(closure)


@frozen(kw_only=True)
class TallyOptions:
    """A count of events."""

    path: str = option(doc="where to write it at the end")


class Tally:
    """Counts steps and evaluations, and sums losses."""

    def __init__(self, path: str) -> None:
        self.path, self.count, self.total = path, 0, 0.0

    def __call__(self, event: Any) -> None:
        self.count += type(event).__name__ in ("StepDone", "Evaluated", "PhaseEntered")
        self.total += getattr(event, "loss", 0.0)
        if isinstance(event, RunFinished):
            Path(self.path).write_text(f"{self.count} {self.total!r}")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = state["count"], state["total"]


def build_task(options: TaskOptions, context: Any) -> Backwards:
    return Backwards()


def build_shift(options: ShiftOptions, context: Any) -> Shift:
    return Shift(options.vocab)


def build_slowing(options: SlowingOptions, context: Any, groups: Sequence[ParameterGroup]) -> Slowing:
    return Slowing([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups], momentum=0.9)


def build_tally(options: TallyOptions, context: Any) -> Tally:
    return Tally(options.path)


def _component(name: str, options: str, build: str, **example: Any) -> Component:
    return Component(name=name, options=f"{__name__}:{options}", factory=f"{__name__}:{build}", example=example)


@hookimpl
def stackwise_tasks() -> list[Component]:
    return [_component("backwards", "TaskOptions", "build_task")]


@hookimpl
def stackwise_transforms() -> list[Component]:
    return [_component("shift", "ShiftOptions", "build_shift", vocab=8)]


@hookimpl
def stackwise_optimizers() -> list[Component]:
    return [_component("slowing", "SlowingOptions", "build_slowing", lr=0.01)]


@hookimpl
def stackwise_observers() -> list[Component]:
    return [_component("tally", "TallyOptions", "build_tally", path="tally.txt")]
