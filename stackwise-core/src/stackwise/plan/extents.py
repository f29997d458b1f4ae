"""Phases as extents on the timeline: what a step of each consumes, and where its batch changes shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from attrs import evolve, frozen

from stackwise.config import PhaseConfig
from stackwise.contracts.specs import EpochSize, TaskSpec
from stackwise.curriculum.states import BatchShape
from stackwise.errors import ConfigError, Problem, ScheduleError, UserError
from stackwise.plan.junctions.join import Joined
from stackwise.plan.parts import Draft
from stackwise.timeline.clock import Clock, Rate
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import RUN, Extent, Switch, lay_out
from stackwise.timeline.schedules import Constant, Piecewise, Window

DRAFT_STEPS = 1000
"""Of a phase, by a clock that only prices it."""

_WORDS = {"epochs": ("epoch",), "flops": ("flop",), "seconds": ("second", "minute", "hour")}
"""Unit → what the text of a duration in it has."""

SHAPE_KEYS = ("batch_size", "seq_len", "accumulate", "step_tokens")


FlopsOf = Callable[[int, BatchShape], int | None]
"""Index of a phase, shape of a step → training FLOPs of that step; None where they cannot be counted."""


def extent_of(
    phase: PhaseConfig, joined: Joined | None, flops_of: FlopsOf | None = None, step_seconds: Mapping[str, float] | None = None
) -> Extent:
    """One phase as the clock lays it out; epochs count only where its sources are known, FLOPs and seconds only where they are asked for.

    Where the batch changes its shape inside the phase, a step takes as much longer as it has more positions, or rows.

    Raises:
        ConfigError: the epochs of a source are to be counted, and its data cannot be read.
    """
    values: dict[str, int | None] = {}
    switches: list[Switch] = []
    for key in SHAPE_KEYS:
        declared = getattr(phase.data, key)
        if isinstance(declared, Piecewise):
            window = RUN if declared.over == "run" else max(phase.declared_in(f"data.{key}"), 0)
            steps = [(Duration.parse(at), int(value)) for at, value in declared.values.items()]
            values[key] = steps[0][1]
            switches += [Switch(at=at, window=window, key=key, value=value) for at, value in steps[1:]]
        else:
            values[key] = declared
    reading, first_values = _Reading.of(phase, joined), dict(values)

    def rate(values: Mapping[str, int | None]) -> Rate:
        known, flops = dict(reading.rate(values)), None if flops_of is None else flops_of(phase.index, shape_of(values))
        if flops is not None:
            known["flops"] = Fraction(flops)
        if step_seconds is not None and phase.name in step_seconds:
            first, size = reading.rate(first_values), next((name for name in ("tokens", "samples") if name in known), None)
            known["seconds"] = Fraction(str(step_seconds[phase.name])) * (known[size] / first[size] if size is not None else 1)
        return known

    return Extent(name=phase.name, end=phase.until, values=values, switches=tuple(switches), rate=rate)


def late_switches(phases: Sequence[PhaseConfig], extents: Sequence[Extent], clock: Clock) -> list[Problem]:
    """Problems of batch shapes that would change only after the end of the run, or of the phase that declares it.

    Args:
        phases: as declared.
        extents: one a phase.
        clock: as it was laid out by them.
    """
    problems = []
    for phase, extent in zip(phases, extents, strict=True):
        for switch in extent.switches:
            start, stop = (0, clock.steps) if switch.window == RUN else clock.starts[switch.window : switch.window + 2]
            try:
                Window(clock, start, stop).after_start(switch.at)
            except ScheduleError as error:
                path = f"data.{switch.key}"
                problems.append(Problem(str(error), path, phase.locate(path)))
    return problems


def short_last_step(extents: Sequence[Extent], joined: Sequence[Joined | None], steps: int) -> Sequence[Extent]:
    """The phases with fewer rows in the last step, where that is all that their one source has left, as it does not repeat.

    Args:
        extents: the phases as declared.
        joined: one a phase.
        steps: of the run as declared, whose last step would read over the end of the source.

    Returns:
        The phases as they are where the rows of the source fill whole steps, are more or fewer, or make up a step of several micro-batches.
    """
    drafts = {id(draft): draft for each in joined if each is not None for draft in each.drafts.sources.values()}
    size = next(iter(drafts.values())).epoch_size if len(drafts) == 1 and None not in joined else None
    batches = {each.values["batch_size"] for each in extents}
    steady = len(batches) == 1 and not any(each.switches or (each.values["accumulate"] or 1) > 1 for each in extents)
    if size is None or size.repeats or size.rows is None or not steady or any(each.values["step_tokens"] for each in extents):
        return extents
    whole, left = divmod(size.rows, next(iter(batches)) or size.rows)
    if not left or not whole or steps != whole + 1:
        return extents
    switch = Switch(at=Duration(Fraction(whole), "steps"), window=RUN, key="batch_size", value=left)
    return [evolve(each, switches=(switch,)) for each in extents]


def counts(declared: Any, unit: Literal["epochs", "flops", "seconds"]) -> bool:
    """Whether any duration in a config is in a unit, or a share of a horizon in it; the config as plain values."""
    if isinstance(declared, Mapping):
        return any(counts(each, unit) for pair in declared.items() for each in pair)
    if isinstance(declared, list | tuple):
        return any(counts(each, unit) for each in declared)
    try:
        written = isinstance(declared, str) and any(word in declared.lower() for word in _WORDS[unit])
        return written and unit in ((duration := Duration.parse(declared)).unit, duration.source)
    except ScheduleError:
        return False


def draft_clock(phases: Sequence[PhaseConfig], steps: int = DRAFT_STEPS) -> Clock:
    """A clock by which every phase can be made, priced and tried before anyone knows how long it is.

    Args:
        phases: each with a stretch for every batch shape that it may come to.
        steps: of a phase, before the first of its switches.
    """
    extents, stop = [], 0
    for phase in phases:
        extent, start = extent_of(phase, None), stop
        stop += steps + len(extent.switches)
        switches = [
            Switch(at=Duration(Fraction(start + steps + i), "steps"), window=RUN, key=switch.key, value=switch.value)
            for i, switch in enumerate(extent.switches)
        ]
        extents.append(evolve(extent, end=Duration(Fraction(stop), "steps"), switches=tuple(switches)))
    return lay_out(Duration(Fraction(stop), "steps"), extents)


def shape_of(values: Mapping[str, int | None]) -> BatchShape:
    """The batch shape that declared counts amount to.

    Raises:
        ScheduleError: a token budget that does not hold one row.
    """
    return BatchShape.of(
        batch_size=values["batch_size"],
        seq_len=values["seq_len"],
        accumulate=values["accumulate"] or 1,
        step_tokens=values["step_tokens"],
    )


def shapes_in(clock: Clock, index: int) -> tuple[tuple[int, BatchShape], ...]:
    """First step → shape, for every stretch of a phase."""
    start, stop = clock.starts[index], clock.starts[index + 1]
    return tuple((piece.start, shape_of(piece.values)) for piece in clock.pieces if start <= piece.start < stop)


@frozen
class _Reading:
    """How fast a phase reads its sources."""

    shares: Mapping[str, Fraction]
    """Source → share of the rows; empty where shares follow time inside the phase."""
    sizes: Mapping[str, EpochSize]
    lookahead: int
    phase: PhaseConfig

    @classmethod
    def of(cls, phase: PhaseConfig, joined: Joined | None) -> _Reading:
        if joined is None:
            return cls({}, {}, 0, phase)
        weights = {name: phase.data.mix[name] for name in joined.drafts.sources if name in phase.data.mix}
        constant = {name: Fraction(weight.value) for name, weight in weights.items() if isinstance(weight, Constant)}
        total = sum(constant.values())
        shares = {name: weight / total for name, weight in constant.items()} if total and len(constant) == len(weights) else {}
        sizes = {name: size for name, draft in joined.drafts.sources.items() if (size := _size(name, draft, phase)) is not None}
        task = joined.drafts.task.spec
        return cls(shares, sizes, task.lookahead if isinstance(task, TaskSpec) else 0, phase)

    def rate(self, values: Mapping[str, int | None]) -> Rate:
        """What a step consumes, as far as it can be counted.

        Raises:
            ConfigError: the counts make no step.
        """
        try:
            shape = shape_of(values)
        except ScheduleError as error:
            key = "accumulate" if values["step_tokens"] is None else "step_tokens"
            raise ConfigError([self.phase.problem(f"data.{key}", str(error))]) from error
        rate: dict[str, Fraction] = {}
        if shape.rows is not None:
            rate["samples"] = Fraction(shape.rows)
        if shape.tokens is not None:
            rate["tokens"] = Fraction(shape.tokens)
        for name, share in self.shares.items():
            epochs = epochs_of(share * (shape.rows or 0), shape, self.sizes.get(name), self.lookahead)
            if epochs:
                rate[f"epochs of {name}"] = epochs
                if len(self.shares) == 1:
                    rate["epochs"] = epochs
        return rate


def _size(name: str, draft: Draft, phase: PhaseConfig) -> EpochSize | None:
    try:
        return draft.epoch_size
    except UserError as error:
        raise ConfigError([phase.problem(f"data.sources.{name}", str(error))]) from error


def epochs_of(rows: Fraction, shape: BatchShape, size: EpochSize | None, lookahead: int) -> Fraction | None:
    """Rows of a source as epochs of it; None if its size is unknown, or zero, which the run will report."""
    if size is None:
        return None
    if size.batches is not None:
        return Fraction(len(shape.micro_batches), size.batches) if size.batches else None
    if size.rows is not None:
        return rows / size.rows if size.rows else None
    if not size.entries or shape.seq_len is None:
        return None
    return rows * (shape.seq_len + lookahead) / size.entries
