"""What several processes hold and exchange, phase by phase, as a plan says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stackwise.assembly.pricing import PhasePrice
from stackwise.plan import Plan

BYTES = 4
"""Of a float32: what a weight and a gradient take at most."""


def parallel_as_json(plan: Plan, prices: Sequence[PhasePrice]) -> dict[str, Any] | None:
    """The declared number of processes, and a phase's bytes in each; None where no number above 1 is declared."""
    count = plan.experiment.run.parallel.replicate
    if count is None or count == 1:
        return None
    return {
        "replicate": count,
        "phases": {
            price.name: {
                "bytes_a_process": BYTES * (price.parameters + price.trainable) + (price.optimizer_bytes or 0),
                "gradient_bytes_a_step": BYTES * price.trainable,
                "sent_bytes_a_step": round(BYTES * price.trainable * 2 * (count - 1) / count),
            }
            for price in prices
        },
    }


def parallel_lines(plan: Plan, prices: Sequence[PhasePrice]) -> list[str]:
    """`processes  2, each with the whole model` and a line for each phase."""
    priced = parallel_as_json(plan, prices)
    if priced is None:
        return []
    lines = [f"processes  {priced['replicate']}, each with the whole model; at most, without what is kept for the backward pass:"]
    for name, cost in priced["phases"].items():
        held, added, sent = (f"{cost[key] / 1e6:,.1f} MB" for key in ("bytes_a_process", "gradient_bytes_a_step", "sent_bytes_a_step"))
        lines.append(
            f"  {name}: {held} of weights, gradients and optimizer state; a step adds {added} of gradients, of which each sends {sent}"
        )
    return ["", *lines]
