"""What a timeline reads of each source, and whether a source that does not start over holds that much."""

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
"""At which moving weights are looked at in one stretch of equal steps: every step of it, or the middles of so many equal parts."""


@frozen
class Reads:
    """What a phase reads of one source: the declared share of every step, summed; what is delivered lies within two rows of
    it, where every step is looked at."""

    rows: float
    epochs: float | None
    """None where the source does not say its size."""


def reads_of(phase: CompiledPhase, joined: Joined, clock: Clock, sizes: Sizes) -> dict[str, Reads]:
    """Source → what a phase reads of it; empty where rows are not declared."""
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
    """Source → what one epoch of it holds, as far as it says so before it is read."""
    return {name: draft.epoch_size for name, draft in joined.drafts.sources.items()}


def shortages(
    clock: Clock, phases: Sequence[CompiledPhase], joined: Sequence[Joined], declared: Sequence[PhaseConfig], sizes: Sequence[Sizes]
) -> list[Problem]:
    """One problem for every source that does not start over and of which more than one epoch would be read.

    Args:
        clock: the compiled time.
        phases: the compiled phases.
        joined: one a phase.
        declared: one a phase; says where its sources are written.
        sizes: one a phase: source → what one epoch holds, where it is known.
    """
    read: dict[str, _Reading] = {}
    for phase, each, config, known in zip(phases, joined, declared, sizes, strict=True):
        for name, reading in _readings(phase, each, clock, known, config):
            before = read.get(name)
            read[name] = reading if before is None or before.structure != reading.structure else before.and_then(reading)
    return [problem for name, reading in read.items() if (problem := reading.shortage(name)) is not None]


@frozen
class _Reading:
    """What is read of one source, in all phases up to now that declare it alike."""

    structure: object
    size: EpochSize
    rows: float
    epochs: float
    config: PhaseConfig

    def and_then(self, later: _Reading) -> _Reading:
        return attrs.evolve(self, rows=self.rows + later.rows, epochs=self.epochs + later.epochs)

    def shortage(self, name: str) -> Problem | None:
        most = ceil(self.rows - 1e-6)  # a mixture delivers less than one row more than its share
        if self.rows <= 0 or (most - 1e-6) * self.epochs <= self.rows:
            return None
        holds = f"{self.size.rows:,} rows" if self.size.rows is not None else f"{self.size.entries:,} entries"
        path = f"data.sources.{name}"
        return self.config.problem(
            path,
            f"one epoch of {holds} is all that it gives, as it does not repeat, and the run reads {most:,} rows, "
            f"{self.epochs:.2f} epochs; it suffices for {int(self.rows / self.epochs + 1e-9):,}: "
            "let it repeat, give it more data, or shorten the run",
        )


def _readings(phase: CompiledPhase, joined: Joined, clock: Clock, sizes: Sizes, config: PhaseConfig) -> Iterator[tuple[str, _Reading]]:
    finite = {name: size for name, size in sizes.items() if size is not None and not size.repeats}
    if not finite or phase.state is None:
        return
    reads = reads_of(phase, joined, clock, finite)
    for name, size in finite.items():
        read = reads.get(name)
        if read is not None and read.epochs is not None:
            yield name, _Reading(phase.state.data.sources[name].structure, size, read.rows, read.epochs, config)


def _instants(clock: Clock, start: int, stop: int) -> list[float]:
    """When the steps of a stretch run; evenly spaced ones of a stretch of very many."""
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
