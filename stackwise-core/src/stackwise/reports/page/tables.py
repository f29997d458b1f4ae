"""The tables of the page: what its pictures show, as rows that can be read, copied and heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from math import isfinite, isnan
from typing import Any

import numpy as np

from stackwise.reports import comparison
from stackwise.reports.drawing import marks_of
from stackwise.reports.record import RunRecord, Steps, read_steps

MOST_STEPS = 25
"""Rows of the table of steps."""
MOST_ROWS = 500
"""Rows of any other table; what is left out is counted below it."""


def view_of(record: RunRecord) -> dict[str, Any]:
    """Everything that the page says of one run in words and figures."""
    steps = read_steps(record.path)
    entered = list(record.of_kind("phase_entered"))
    started = list(record.of_kind("run_started"))
    versions = record.checkpoints[-1].get("versions", {}) if record.checkpoints else {}
    return {
        "record": record,
        "began": datetime.fromtimestamp(record.began).strftime("%Y-%m-%d %H:%M"),
        "steps": len(steps.step),
        "passed_over": record.passed_over + steps.passed_over,
        "tokens": int(np.nan_to_num(steps.columns["tokens"][-1])) if len(steps.step) else 0,
        "seconds": float(np.nansum(steps.columns["seconds"])),
        "flops": sum(phase.get("training_flops") or 0 for phase in record.phases),
        "headline": comparison.last_of(record),
        "phases": phase_rows(record.plan, record.evaluations),
        "cards": cards_of(record.plan, entered),
        "evaluations": _evaluation_rows(record),
        "sampled": _step_rows(steps),
        "marks": marks_of(record, steps),
        "started": started[-1] if started else None,
        "versions": versions,
        "remarks": record.plan.get("remarks", []),
    }


def phase_rows(plan: Mapping[str, Any], evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a phase: the plan's figures, and the headline metric at its entry and exit."""
    rows = [dict(phase) for phase in plan.get("phases", ())]
    first = None
    for event in evaluations:
        first = first or (event["name"], next((m for m in event["metrics"] if m != "loss"), "loss"))
        if event["name"] == first[0] and event["at"] in ("entry", "exit"):
            for row in rows:
                if row["name"] == event["phase"]:
                    row[event["at"]] = event["metrics"].get(first[1])
    return [{"entry": None, "exit": None, **row} for row in rows]


def cards_of(plan: Mapping[str, Any], entered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One card a boundary: what changes by the plan, and what happened by the log."""
    cards, phases = [], list(plan.get("phases", ()))
    for before, phase in pairwise(phases):
        crossing = phase.get("transition") or {}
        happened = next((event for event in entered if event["phase"] == phase["name"]), None)
        cards.append(
            {
                "before": before["name"],
                "after": phase["name"],
                "step": phase["start"],
                "changes": _merged_changes(crossing.get("changes", ())),
                "blocks": _moves(crossing.get("blocks", {})),
                "growth": crossing.get("growth"),
                "preserves": crossing.get("preserves_function", True),
                "notes": crossing.get("notes", ()),
                "planned": crossing,
                "happened": happened,
            }
        )
    return cards


def _merged_changes(changes: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Keys that come and go together below one node are one line: `lr: wsd(peak 0.003) → linear(to 0)`."""
    lines: dict[str, list[Mapping[str, str]]] = {}
    for change in changes:
        head = ".".join(change["path"].split(".")[:2])
        swapped = "–" in (change["before"], change["after"])
        lines.setdefault(head if swapped else change["path"], []).append(change)
    merged = []
    for path, parts in lines.items():
        if len(parts) == 1:
            merged.append(dict(parts[0]))
            continue
        sides = {
            side: ", ".join(f"{part['path'].removeprefix(path).strip('.')} {part[side]}" for part in parts if part[side] != "–") or "–"
            for side in ("before", "after")
        }
        merged.append({"path": path, **sides})
    return merged


def _moves(blocks: Mapping[str, str | None]) -> list[str]:
    """`base.2 ← base.0`, for the blocks that do not stay."""
    return [f"{new} ← {old or 'fresh'}" for new, old in blocks.items() if old != new]


def _evaluation_rows(record: RunRecord) -> dict[str, Any]:
    """Every evaluation as a row, its metrics as columns."""
    events = record.evaluations
    metrics = list(dict.fromkeys(metric for event in events for metric in event["metrics"]))
    rows = [{**event, "values": [event["metrics"].get(metric) for metric in metrics]} for event in events]
    return {"metrics": metrics, "rows": rows[-MOST_ROWS:], "left_out": max(0, len(rows) - MOST_ROWS)}


def _step_rows(steps: Steps) -> dict[str, Any]:
    """Some steps at even distances, the last one among them, as the log has them."""
    count = len(steps.step)
    if not count:
        return {"columns": [], "rows": [], "count": 0}
    chosen = sorted({round(i * (count - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)})
    names = [name for name in steps.columns if np.any(np.isfinite(steps.columns[name]))]
    rows = [[int(steps.step[i]), *(_said(name, float(steps.columns[name][i])) for name in names)] for i in chosen]
    heads = [name.removeprefix("metrics.").removeprefix("rates.") for name in names]
    return {"columns": heads, "rows": rows, "count": count}


def _said(column: str, value: float) -> float | None:
    """A value of the log; a metric or rate that a phase does not have is None."""
    return None if column.startswith(("metrics.", "rates.")) and isnan(value) else value


def comparison_tables(records: Sequence[RunRecord], groups: Sequence[int]) -> dict[str, Any]:
    """What several runs differ in, and what each has reached after the same number of steps."""
    reached = [{"row": row, "intervals": comparison.intervals(row, groups)} for row in comparison.compare(records)]
    return {
        "names": [record.name for record in records],
        "groups": list(groups),
        "keys": comparison.differing_keys(records),
        "reached": reached,
        "has_seeds": len(set(groups)) < len(groups),
    }


def si(value: float | None) -> str:
    """`1.72 M`."""
    if value is None or not isfinite(value):
        return "–"
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if abs(value) < 1e15 else f"{value:.2e}"
    return f"{value:.3g}"


def whole(value: float | None) -> str:
    """`1,720,320`."""
    return "–" if value is None or not isfinite(value) else f"{value:,.0f}"


def figure(value: Any) -> str:
    """Five significant digits; what JSON cannot hold is written as text."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.5g}"


def span_of(seconds: float | None) -> str:
    """`9m47s`."""
    if seconds is None or not isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest} s"


def size(count: float | None) -> str:
    """`14.7 MB`."""
    return "–" if count is None else f"{si(float(count))}B" if count >= 1000 else f"{count:.0f} B"
