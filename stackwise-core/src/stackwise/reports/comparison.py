"""Compares runs: the config keys in which they differ, which of them repeat one experiment with other seeds, and the metrics of all at
equal numbers of steps, tokens or FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from attrs import asdict, frozen

from stackwise.errors import UserError
from stackwise.reports.record import RunRecord, flops_at, read_steps

ABSENT = "–"
SEED_KEYS = frozenset({"run.seed", "run.name"})
"""Keys that may differ between the runs of one experiment."""
Axis = Literal["steps", "tokens", "flops", "end"]
"""Where runs are compared: at equal steps, tokens or FLOPs, or each run at its own end."""
FEW_SEEDS = 4
"""With fewer seeds than this, the variation between seeds is easily mistaken for a result."""

# the 97.5% quantile of Student's t for 1, 2, ... degrees of freedom (any statistics textbook's table); 1.96 in the limit
# fmt: off
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


def differing_keys(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Dotted key → its value in each run, for the keys whose value is not the same in all runs."""
    keys = dict.fromkeys(key for record in records for key in record.config)
    rows = {key: [record.config.get(key, ABSENT) for record in records] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def seed_groups(records: Sequence[RunRecord]) -> list[int]:
    """For each run the number of its group, from 0. The runs of a group repeat one experiment: only seed and name differ."""
    groups: dict[tuple[tuple[str, str], ...], int] = {}
    keys = [tuple(sorted((k, v) for k, v in record.config.items() if not _may_differ(k))) for record in records]
    return [groups.setdefault(key, len(groups)) for key in keys]


def _may_differ(key: str) -> bool:
    """Whether a key may differ between runs of one experiment: the seed, the name, and which checkpoints are kept."""
    return key in SEED_KEYS or key.startswith("run.checkpoint.")


@frozen(kw_only=True)
class Interval:
    """Mean over seeds and its 95% confidence interval by Student's t: mean ± half_width, which is None for a single run."""

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of some values.

        Args:
            values: one for each seed; at least one.
        """
        if len(values) < 2:
            return cls(mean=values[0], half_width=None, count=1)
        quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
        return cls(mean=fmean(values), half_width=quantile * stdev(values) / sqrt(len(values)), count=len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.half_width is None else f"{self.mean:.4f} ± {self.half_width:.2g}"


@frozen(kw_only=True)
class Figure:
    """One value of one metric."""

    evaluation: str
    metric: str
    value: float
    step: int

    def __str__(self) -> str:
        return f"{self.evaluation} {self.metric.replace('_', ' ')} {self.value:.4g}"

    def as_json(self) -> dict[str, Any]:
        """By field."""
        return asdict(self)


def last_of(record: RunRecord) -> Figure | None:
    """The latest result of the first evaluation: the first metric that its task reports besides the loss, or else the loss."""
    evaluations = record.evaluations
    if not evaluations:
        return None
    name = evaluations[0]["name"]
    last = next(event for event in reversed(evaluations) if event["name"] == name)
    metric = next((metric for metric in last["metrics"] if metric != "loss"), "loss")
    return Figure(evaluation=name, metric=metric, value=float(last["metrics"].get(metric, "nan")), step=last["step"])


def best_of(record: RunRecord) -> Figure | None:
    """The best result of the metric in `run.checkpoint.best`, or else the lowest loss of the first evaluation."""
    evaluations = record.evaluations
    if not evaluations:
        return None
    name, most = record.best or (f"{evaluations[0]['name']}.loss", False)
    evaluation, _, metric = name.partition(".")
    figures = [
        Figure(evaluation=evaluation, metric=metric, value=float(event["metrics"][metric]), step=event["step"])
        for event in evaluations
        if event["name"] == evaluation and isfinite(float(event["metrics"].get(metric, "nan")))
    ]
    return (max if most else min)(figures, key=lambda figure: figure.value, default=None)


@frozen(kw_only=True)
class Reached:
    """One metric of one evaluation in every run, at a point that all runs have reached."""

    evaluation: str
    metric: str
    at: float
    """That point, in steps, tokens or training FLOPs; for runs compared at their ends, the steps of the longest."""
    values: tuple[float | None, ...]
    steps: tuple[int | None, ...]
    """Step of each run's last evaluation up to that point."""


def compare(records: Sequence[RunRecord], axis: Axis = "steps") -> list[Reached]:
    """Every metric at the farthest point that all runs have reached, or at the end of each.

    Where that point is a phase boundary, the value before it counts.
    """
    histories = [_history(record, axis) for record in records]
    names = dict.fromkeys(name for history in histories for name in history)
    rows = []
    for evaluation, metric in names:
        ends = [max(history[evaluation, metric]) for history in histories if (evaluation, metric) in history]
        at = max(ends) if axis == "end" else min(ends)
        results = [_last_until(history.get((evaluation, metric), {}), at) for history in histories]
        rows.append(
            Reached(
                evaluation=evaluation,
                metric=metric,
                at=at,
                values=tuple(None if each is None else each[1] for each in results),
                steps=tuple(None if each is None else each[0] for each in results),
            )
        )
    return rows


def intervals(row: Reached, groups: Sequence[int]) -> dict[int, Interval]:
    """Group → mean and interval over its runs, for the groups with at least one value."""
    values: dict[int, list[float]] = {}
    for group, value in zip(groups, row.values, strict=True):
        if value is not None:
            values.setdefault(group, []).append(value)
    return {group: Interval.of(members) for group, members in sorted(values.items())}


def paired_differences(records: Sequence[RunRecord], row: Reached, groups: Sequence[int]) -> dict[int, Interval]:
    """Group → mean and interval of the differences between its runs and the first group's runs with the same seed.

    Pairing by seed removes the variation that both groups share. A group without a seed in common with the first is left out.
    """
    by_seed: dict[int, dict[str, float]] = {}
    for record, group, value in zip(records, groups, row.values, strict=True):
        if value is not None:
            by_seed.setdefault(group, {})[record.config.get("run.seed", ABSENT)] = value
    first = by_seed.get(min(groups), {})
    differences = {group: [value - first[seed] for seed, value in own.items() if seed in first] for group, own in by_seed.items()}
    return {group: Interval.of(values) for group, values in sorted(differences.items()) if group != min(groups) and values}


@frozen(kw_only=True)
class Crossing:
    """Where a metric first reached a value, on each axis; None on an axis that the run does not count."""

    steps: float
    tokens: float | None
    seconds: float | None
    """Training time, without evaluations."""
    flops: float | None


def crossing(record: RunRecord, evaluation: str, metric: str, value: float, *, most: bool = False) -> Crossing | None:
    """Where a run first reached a value, interpolated linearly between its evaluations; None where it never did.

    Args:
        record: the run.
        evaluation: name of the evaluation.
        metric: one of its metrics.
        value: to be reached.
        most: whether higher is better.
    """
    points: list[tuple[int, float]] = [
        (int(event["step"]), float(event["metrics"][metric]))
        for event in record.evaluations
        if event["name"] == evaluation and isfinite(float(event["metrics"].get(metric, "nan")))
    ]
    reached = next((i for i, (_, found) in enumerate(points) if (found >= value if most else found <= value)), None)
    if reached is None:
        return None
    step = float(points[reached][0])
    if reached:
        (before, high), (after, low) = points[reached - 1], points[reached]
        step = before + (after - before) * ((high - value) / (high - low) if high != low else 1.0)
    positions = read_steps(record.path).positions
    at = {name: float(np.interp(step, positions["steps"], column)) if len(column) else None for name, column in positions.items()}
    tokens = at["tokens"] or None
    flops = flops_at(record.plan, [step], [tokens or 0.0])
    return Crossing(steps=step, tokens=tokens, seconds=at["seconds"], flops=None if flops is None else flops[0])


def _history(record: RunRecord, axis: Axis) -> dict[tuple[str, str], dict[float, tuple[int, float]]]:
    """(evaluation, metric) → position on the axis → step and value. At a phase boundary the value before it counts."""
    history: dict[tuple[str, str], dict[float, tuple[int, float]]] = {}
    by_step = axis in ("steps", "end")
    tokens = {} if by_step else read_steps(record.path).tokens_before
    if axis == "tokens" and record.last_step and not any(tokens.values()):
        raise UserError(f"the rows of {record.path} have no tokens: compare at steps or flops")
    for event in record.evaluations:
        step = int(event["step"])
        position: float = step if by_step else tokens.get(step, 0)
        if axis == "flops":
            flops = flops_at(record.plan, [step], [position])
            if flops is None:
                raise UserError(f"the plan of {record.path} does not count its FLOPs: compare at steps or tokens")
            position = flops[0]
        for metric, value in event["metrics"].items():
            history.setdefault((event["name"], metric), {}).setdefault(position, (step, float(value)))
    return history


def _last_until(history: Mapping[float, tuple[int, float]], at: float) -> tuple[int, float] | None:
    reached = [position for position in history if position <= at]
    return history[max(reached)] if reached else None
