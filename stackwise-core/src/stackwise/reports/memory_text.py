"""The memory of each phase, as text and JSON of a plan and at the beginning of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stackwise.reports.terminal import table

if TYPE_CHECKING:
    from stackwise.assembly.pricing import PhasePrice


BESIDE = "  of tensors in one process; libraries and data come on top, on a processor gaps between tensors too: 1.3 to 1.9 times the peak"
"""What the figures leave out; docs/how-to/reports.md says how it was measured."""


def memory_as_json(cost: PhasePrice) -> dict[str, Any] | None:
    """Bytes in one process, or why they are unknown; None where memory was not estimated."""
    memory = cost.memory
    if memory is None or isinstance(memory, str):
        return None if memory is None else {"unknown": memory}
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "copies": memory.copies,
        "reference": memory.reference,
        "activations": memory.activations,
        "peak": memory.peak,
    }


def memory_lines(prices: Sequence[PhasePrice], columns: int | None = None) -> list[str]:
    """A table with a row for each phase whose memory is known, and a line for every other."""
    rows = [["memory", "weights", "gradients", "moments", "copies", "activations", "peak"]]
    unknown = []
    for cost in prices:
        memory = cost.memory
        if isinstance(memory, str):
            unknown.append(f"memory  unknown in {cost.name}: {memory}")
        elif memory is not None:
            parts = (memory.weights, memory.gradients, memory.moments, memory.copies + memory.reference, memory.activations, memory.peak)
            rows.append([cost.name, *(f"{part / 1e6:,.1f} MB" for part in parts)])
    return [*(["", *table(rows, columns), BESIDE] if len(rows) > 1 else []), *(["", *unknown] if unknown else [])]


def memory_sentence(plan: Mapping[str, Any]) -> str | None:
    """The peak over all phases of a stored plan, as a sentence; None where the plan has no figures."""
    peaks = {phase["name"]: memory["peak"] for phase in plan["phases"] if "peak" in (memory := phase.get("memory") or {})}
    if not peaks:
        return None
    most = max(peaks, key=lambda name: peaks[name])
    where = f" in {most}" if len(plan["phases"]) > 1 else ""
    return f"memory  at most about {peaks[most] / 1e6:,.0f} MB of tensors{where}, beside what the process holds before it trains"
