"""How much a timeline reads of each source, and whether a source that does not repeat holds that much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil

import attrs
from attrs import frozen

from stackwise.config import PhaseConfig
from stackwise.contracts.specs import EpochSize, TaskSpec
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import Problem
from stackwise.plan.extents import epochs_of
from stackwise.plan.junctions.join import Joined
from stackwise.timeline.clock import Clock
from stackwise.timeline.schedules import Curve

Sizes = Mapping[str, EpochSize | None]

MOST_INSTANTS = 250_000
"""Weights that move are evaluated at every step of a stretch of equal steps, or at the middles of at most this many equal parts."""


@frozen
class Reads:
    """What a phase reads of one source: its declared share of every step, summed. If the shares of every step were summed, the mixture
    delivers this within two rows."""

    rows: float
    epochs: float | None
    """None where the source does not say its size."""


def reads_of(phase: CompiledPhase, joined: Joined, clock: Clock, sizes: Sizes) -> dict[str, Reads]:
    """Source → what a phase reads of it; empty if the config declares no rows."""
    state, task = phase.state, joined.drafts.task.spec
    if state is None:
        return {}
    lookahead = task.lookahead if isinstance(task, TaskSpec) else 0
    totals = dict.fromkeys(state.data.sources, Reads(0.0, 0.0))
    steady = all(curve.is_constant for curve in state.data.mix.values())
    starts = [*(start for start, _ in state.data.shapes), phase.stop]
    for (start, shape), stop in zip(state.data.shapes, starts[1:], strict=True):
        if shape.rows is None:
            return {}
        shares = _shares(state.data.mix, [clock.t(start)] if steady else _instants(clock, start, stop))
        for name, share in shares.items():
            rows = share * (stop - start) * shape.rows
            part, known = epochs_of(Fraction(rows), shape, sizes.get(name), lookahead), totals[name].epochs
            totals[name] = Reads(totals[name].rows + rows, None if part is None or known is None else known + float(part))
    return totals


def declared_sizes(joined: Joined) -> Sizes:
    """Source → the size of one epoch; None if the source does not say it before it is read."""
    return {name: draft.epoch_size for name, draft in joined.drafts.sources.items()}


def shortages(
    clock: Clock, phases: Sequence[CompiledPhase], joined: Sequence[Joined], declared: Sequence[PhaseConfig], sizes: Sequence[Sizes]
) -> list[Problem]:
    """One problem for each source that does not repeat and of which the run would read more than one epoch.

    Args:
        clock: the compiled time.
        phases: the compiled phases.
        joined: one a phase.
        declared: one a phase; knows where its sources are written.
        sizes: one a phase: source → size of one epoch, if known.
    """
    read: dict[str, _Reading] = {}
    for phase, each, config, known in zip(phases, joined, declared, sizes, strict=True):
        for name, reading in _readings(phase, each, clock, known, config):
            before = read.get(name)
            read[name] = reading if before is None or before.structure != reading.structure else before.and_then(reading)
    return [problem for name, reading in read.items() if (problem := reading.shortage(name)) is not None]


@frozen
class _Reading:
    """What the phases so far read of one source, as long as they declare it alike."""

    structure: object
    size: EpochSize
    rows: float
    epochs: float
    config: PhaseConfig
    steps: int = 0
    """Of the one phase that reads it; 0 where several do."""

    def and_then(self, later: _Reading) -> _Reading:
        return attrs.evolve(self, rows=self.rows + later.rows, epochs=self.epochs + later.epochs, steps=0)

    def shortage(self, name: str) -> Problem | None:
        most = ceil(self.rows - 1e-6)  # a mixture delivers less than one row more than its share
        if self.rows <= 0 or (most - 1e-6) * self.epochs <= self.rows:
            return None
        holds = f"{self.size.rows:,} rows" if self.size.rows is not None else f"{self.size.entries:,} entries"
        enough = int(self.rows / self.epochs + 1e-9)
        shorter = f" to {steps:,} steps, which fill whole batches" if (steps := int(enough / self.rows * self.steps + 1e-9)) else ""
        data, rows = self.config.data, self.size.rows
        if steps and rows and isinstance(data.batch_size, int) and self.rows == self.steps * data.batch_size and data.step_tokens is None:
            shorter += f", or to `horizon: 1 epoch`, whose last step has the {rows - steps * data.batch_size:,} rows that are left"
        return self.config.problem(
            f"data.sources.{name}",
            f"one epoch of {holds} is all that it gives, as it does not repeat, and the run reads {most:,} rows, "
            f"{self.epochs:.2f} epochs; enough for {enough:,}: let it repeat, give it more data, or shorten the run{shorter}",
        )


def _readings(phase: CompiledPhase, joined: Joined, clock: Clock, sizes: Sizes, config: PhaseConfig) -> Iterator[tuple[str, _Reading]]:
    finite = {name: size for name, size in sizes.items() if size is not None and not size.repeats}
    if not finite or phase.state is None:
        return
    reads = reads_of(phase, joined, clock, finite)
    for name, size in finite.items():
        read = reads.get(name)
        if read is not None and read.epochs is not None:
            part = phase.state.data.sources[name].structure
            yield name, _Reading(part, size, read.rows, read.epochs, config, phase.stop - phase.start)


def _instants(clock: Clock, start: int, stop: int) -> list[float]:
    """The times of all steps of a stretch; of a very long one, evenly spaced steps."""
    stride = -(-(stop - start) // MOST_INSTANTS)
    if stride == 1:
        return [t for _, t, *_ in clock.times(start, stop)]
    return [clock.t(step) for step in range(start + stride // 2, stop, stride)]


def _shares(mix: Mapping[str, Curve], times: list[float]) -> dict[str, float]:
    """Mean share of each source over some instants."""
    sums = dict.fromkeys(mix, 0.0)
    for t in times:
        weights = {name: curve(t) for name, curve in mix.items()}
        total = sum(weights.values()) or 1.0
        for name, weight in weights.items():
            sums[name] += weight / total
    return {name: value / len(times) for name, value in sums.items()}
