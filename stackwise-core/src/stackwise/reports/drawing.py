"""What the page of a run draws: positions, curves, evaluations and marks as plain data, short enough to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stackwise.reports.record import RunRecord, Steps, flops_at, read_steps
from stackwise.reports.sampling import extremes, smoothed

BUCKETS, FEWEST_BUCKETS = 900, 120
"""Number of stretches that a curve is divided into, for one run and for each of several."""
SMOOTH_SHARE = 0.01
"""Half-life of the smoothed curves, as a share of the run."""


def drawing_of_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The drawing of a plan before anything ran."""
    return {"runs": [{**_timeline(plan), "name": plan.get("name", ""), "x": _planned_positions(plan), "curves": {}, "evaluations": []}]}


def drawing_of(records: Sequence[RunRecord], groups: Sequence[int]) -> dict[str, Any]:
    """The drawing of some runs on one axis.

    Args:
        records: the runs.
        groups: for each, the number of its group: runs that differ in nothing but their seed share one, and a colour.
    """
    buckets = max(FEWEST_BUCKETS, BUCKETS // max(len(records), 1))
    runs = [{**_drawn_run(record, read_steps(record.path), buckets), "group": group} for record, group in zip(records, groups, strict=True)]
    return {"runs": runs, "buckets": buckets}


def _drawn_run(record: RunRecord, steps: Steps, buckets: int) -> dict[str, Any]:
    curves, half_life = {}, max(2.0, SMOOTH_SHARE * len(steps.step))
    starts = np.searchsorted(steps.step, [int(phase["start"]) for phase in record.phases])
    for name, column in _columns(record, steps).items():
        kept = extremes(column, buckets)
        if not len(kept):
            continue
        if name.startswith("rates."):
            kept = np.union1d(kept, _ends(column))
        curves[name] = {"at": kept, "v": column[kept].tolist()}
        if name in ("loss", "throughput", "grad_norm") or name.startswith("metrics."):
            mean = smoothed(column, half_life, starts)
            ends = extremes(mean, buckets // 2)
            curves[f"{name}.smooth"] = {"at": ends, "v": [float(f"{value:.6g}") for value in mean[ends].tolist()]}
    return {
        **_timeline(record.plan),
        "name": record.name,
        "done": len(steps.step),
        "half_life": round(half_life, 1),
        "x": _positions(record, steps, curves),
        "curves": curves,
        "evaluations": [{key: event[key] for key in ("step", "name", "at", "metrics")} for event in record.evaluations if event["metrics"]],
        "marks": marks_of(record, steps),
    }


def _timeline(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Phases and lanes, without what only tables show."""
    keys = ("name", "start", "stop", "parameters", "trainable", "transition")
    phases = [{key: phase[key] for key in keys if key in phase} for phase in plan.get("phases", ())]
    return {"phases": phases, "steps": plan.get("steps", 0), "lanes": plan.get("lanes", [])}


def _ends(column: np.ndarray) -> np.ndarray:
    """Indices at which a column has its last value, so that its curve ends there."""
    known = np.isfinite(column)
    return np.flatnonzero(known[:-1] & ~known[1:]) + 1


def _columns(record: RunRecord, steps: Steps) -> dict[str, np.ndarray]:
    """The curves of a run, by name: what the log says, and tokens a second."""
    columns = {name: column for name, column in steps.columns.items() if name not in ("tokens", "seconds")}
    if any(name.startswith("rates.") for name in columns):
        columns |= _rates(record, steps.step, columns)
        del columns["lr"]  # one of the rates, which have names
    tokens = np.diff(steps.columns["tokens"], prepend=0.0)
    if len(tokens) and np.any(tokens > 0):
        with np.errstate(divide="ignore", invalid="ignore"):
            speed = tokens / steps.columns["seconds"]
        columns["throughput"] = np.array([float(f"{value:.6g}") for value in speed.tolist()])
    return columns


def _rates(record: RunRecord, steps: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every learning rate over the whole run. Where a phase has only one, the log calls it `lr`, and its name is in the plan."""
    rates = {name: column.copy() for name, column in columns.items() if name.startswith("rates.")}
    alone = ~np.any([np.isfinite(column) for column in rates.values()], axis=0)
    groups = [next(iter(lane["optimizer"]["groups"]), "default") for lane in record.plan.get("lanes", ())] or ["default"] * len(
        record.phases
    )
    for phase, group in zip(record.phases, groups, strict=True):
        here = alone & (steps >= phase["start"]) & (steps < phase["stop"])
        rates.setdefault(f"rates.{group}.lr", np.full(len(steps), np.nan))[here] = columns["lr"][here]
    return rates


def _positions(record: RunRecord, steps: Steps, curves: Mapping[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Where each drawn step lies on each axis: what had been consumed before it. Curves then count in these rows."""
    before, last = steps.positions, len(steps.step)
    boundaries = [int(edge) for phase in record.phases for edge in (phase["start"], phase["stop"])]
    marked = [*boundaries, *(int(event["step"]) for event in record.evaluations)]
    rows = {row for row in np.searchsorted(before["steps"], marked).tolist() if row <= last} | {last}
    kept = np.array(sorted(rows.union(*(curve["at"].tolist() for curve in curves.values()))), dtype=np.int64)
    for curve in curves.values():
        curve["at"] = np.searchsorted(kept, curve["at"]).tolist()
    done, tokens, seconds = ((before[name][kept] if last else np.zeros(1)) for name in ("steps", "tokens", "seconds"))
    ahead = [edge for edge in sorted(set(boundaries)) if edge > done[-1]]
    planned = _planned_positions(record.plan)
    token_of = dict(zip(planned["steps"], planned["tokens"], strict=True))
    all_steps = [*done.tolist(), *ahead]
    all_tokens = [*tokens.tolist(), *(token_of[edge] for edge in ahead)]
    return {
        "steps": [int(step) for step in all_steps],
        "tokens": [int(count) for count in all_tokens],
        "seconds": [*(round(value, 3) for value in seconds.tolist()), *(None for _ in ahead)],
        **({} if (flops := flops_at(record.plan, all_steps, all_tokens)) is None else {"flops": flops}),
    }


def _planned_positions(plan: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The boundaries of the phases on the axes that a plan knows."""
    steps, tokens = [0], [0]
    for phase in plan.get("phases", ()):
        steps.append(int(phase["stop"]))
        tokens.append(tokens[-1] + int(phase["tokens"]))
    flops = flops_at(plan, steps, tokens)
    return {"steps": steps, "tokens": tokens, **({} if flops is None else {"flops": flops})}


def marks_of(record: RunRecord, steps: Steps) -> dict[str, list[dict[str, Any]]]:
    """What happened beside steps and evaluations, each at its step."""
    begun_anew = {event["step"] for event in record.of_kind("rewound")}
    begun_anew |= {e["step"] for e in record.of_kind("config_changed") if str(e["key"]).endswith(".until.ended")}  # a phase that stalled
    return {
        "skipped": [{"step": step, "why": why} for step, why in steps.skipped.items()],
        "rewinds": [{"step": event["step"], "from": event["halted_at"], "why": event["why"]} for event in record.of_kind("rewound")],
        "resumes": [{"step": e["step"]} for e in record.of_kind("run_started") if e["step"] and e["step"] not in begun_anew],
        "changes": [{k: e[k] for k in ("step", "key", "before", "after")} for e in record.of_kind("config_changed")],
        "reactions": [{k: e[k] for k in ("step", "factor_before", "factor", "why")} for e in record.of_kind("reacted")],
        "stops": [{k: e[k] for k in ("step", "why")} for e in record.of_kind("stopped")],
        "checkpoints": [
            {"step": each["step"], "best": each["step"] == record.best_step, "pin": each.get("pin"), "bytes": each["bytes"]}
            for each in record.checkpoints
        ],
    }
