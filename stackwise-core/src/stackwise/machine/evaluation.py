"""Evaluations: the same data, length and corruption in every phase, so that curves can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from attrs import Factory, frozen
from torch import nn

from stackwise.contracts.protocols import Batch
from stackwise.curriculum.states import DataState
from stackwise.errors import DataError
from stackwise.machine.ids import ids_fault
from stackwise.machine.placement import Placement
from stackwise.machine.preparing import judging, prepare
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import seed_others, seeded
from stackwise.planes.objective import Judged, Objective
from stackwise.processes.ranks import Ranks
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import step_seed, stream_key

T = TypeVar("T")


def gradients_if_asked(prepared: Any) -> torch.set_grad_enabled:
    """Record a graph only for a task that differentiates: one whose prepared batch has a tensor that requires a gradient.

    Inference mode would be faster still, but a tensor that a module caches in it (a table of positions) cannot be trained with.
    """
    tensors = prepared.values() if isinstance(prepared, Mapping) else ()
    return torch.set_grad_enabled(any(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in tensors))


def number(value: torch.Tensor | float) -> float:
    """A scalar tensor or a number as a float."""
    return float(value.item() if isinstance(value, torch.Tensor) else value)


OnProgress = Callable[[str, int, int], None]
"""Hears an evaluation's name, the batches that are done, and how many there are."""


@frozen(kw_only=True)
class Evaluation:
    """A named evaluation with its own data plane."""

    name: str
    data: DataPlane
    state: DataState
    batches: int
    values: Mapping[str, Mapping[str, float]] = Factory(dict)
    """Task id → fixed values for its options that follow time in training."""
    seed: int = 0
    weights: str = "live"
    """`live`, or `ema` for the averaged ones."""

    def run(
        self,
        model: nn.Module,
        objective: Objective,
        placement: Placement,
        moment: Moment,
        progress: OnProgress | None = None,
        ranks: Ranks | None = None,
        *,
        divided: bool = False,
    ) -> dict[str, float]:
        """Loss and metrics over the same batches every time, each weighted by its denominator; training state is untouched.

        Args:
            model: to judge.
            objective: the task.
            placement: device and precision.
            moment: the instant at which it is judged.
            ranks: processes that share out the batches; the sums are added in the order of the batches, to the bits that one process has.
            divided: whether each of them holds a part of the model, so that all compute at the same time.

        Raises:
            DataError: no batch has a target.
        """
        self.data.enter(self.state, lookahead=objective.lookahead)
        start = self.data.state_dict()
        key, generator = stream_key(self.seed, "evaluate", self.name), torch.Generator()
        sums: list[dict[str, tuple[float, float]]] = []
        try:
            with seeded(step_seed(key, 0)), objective.fixed(self.values), judging(model), placement.forward_context():
                reads = self._share(moment, progress, ranks) if ranks is None or not divided else self._rounds(moment, progress, ranks)
                for instant, batch, counts in reads:
                    i = instant.step
                    seed_others(step_seed(key, i))
                    for process_wide in placement.generators():  # for a model that draws even in evaluation mode
                        process_wide.manual_seed(step_seed(key, i))
                    drawn = generator.manual_seed(step_seed(key, i))
                    judged = self._judged(model, objective, batch, instant, drawn)
                    pairs = {"loss": (judged.total, judged.weight), **judged.metrics}
                    if counts:
                        sums.append({name: (number(total), number(weight)) for name, (total, weight) in pairs.items()})
        finally:
            self.data.load_state_dict(start)
        return _means(self.name, _added(sums if ranks is None else _in_order(ranks.gather(sums))))

    def _judged(self, model: nn.Module, objective: Objective, batch: Batch, instant: Moment, generator: torch.Generator) -> Judged:
        try:
            prepared = prepare(objective, model, batch, instant, generator, evaluates=True)
            with gradients_if_asked(prepared):
                return objective.loss(model, prepared)
        except IndexError as error:
            if (fault := ids_fault(error, [batch], self.data)) is None:
                raise
            raise fault from error

    def _share(self, moment: Moment, progress: OnProgress | None, ranks: Ranks | None) -> Iterator[tuple[Moment, Batch, bool]]:
        """This process's batches: instant, batch, and that it counts."""
        lap = self.data.lap()
        for i in range(self.batches):
            if progress is not None:
                progress(self.name, i, self.batches)
            instant = moment._replace(step=i, t=0.0, phase_t=0.0)
            mine = ranks is None or ranks.share.owns(i)
            batches = self.data.batches(instant) if mine else self.data.pass_over(instant)
            if self.data.lap() > lap:  # of ready-made batches that come to an end before, none is read twice
                return
            yield from ((instant, batch, True) for batch in batches)

    def _rounds(self, moment: Moment, progress: OnProgress | None, ranks: Ranks) -> Iterator[tuple[Moment, Batch, bool]]:
        """This process's batches, as many as any other has: in the last round one that does not count stands for a missing one."""
        lap, count = self.data.lap(), ranks.share.ranks
        own: tuple[Moment, Batch] | None = None
        last: tuple[Moment, Batch] | None = None
        for i in range(self.batches):
            if progress is not None:
                progress(self.name, i, self.batches)
            instant = moment._replace(step=i, t=0.0, phase_t=0.0)
            batches = self.data.batches(instant)
            if self.data.lap() > lap:
                break
            last = instant, batches[0]
            own = last if ranks.share.owns(i) else own
            if (i + 1) % count == 0:
                assert own is not None  # of each round one batch is this process's
                yield (*own, True)
                own = last = None
        if last is not None:
            yield (*(own or last), own is not None)


def _added(found: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for pairs in found:
        for name, (value, count) in pairs.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = total + value, weight + count
    return sums


def _in_order(found: Sequence[Sequence[T]]) -> list[T]:
    """What the processes found, in the order of the batches that they shared out."""
    return [found[i % len(found)][i // len(found)] for i in range(sum(map(len, found)))]


def _means(name: str, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    if not sums or sums["loss"][1] == 0:
        raise DataError(f"evaluation '{name}' found no target in its batches")
    return {metric: total / weight for metric, (total, weight) in sums.items() if weight}
