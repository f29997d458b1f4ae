"""What each of several processes holds and sends in every phase, as text and JSON of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stackwise.assembly.pricing import PhasePrice
from stackwise.plan import Plan

BYTES = 4
"""Bytes of a float32, the largest dtype of a weight or gradient."""


def parallel_as_json(plan: Plan, prices: Sequence[PhasePrice]) -> dict[str, Any] | None:
    """The declared numbers of processes, and for each phase the bytes in each process; None for a run in one process."""
    copies, parts = plan.experiment.run.parallel.replicate or 1, plan.experiment.run.parallel.shard
    if copies * parts == 1:
        return None
    return {
        "replicate": copies,
        "shard": parts,
        "whole_bytes_at_the_start": max(BYTES * price.parameters for price in prices) if parts > 1 else 0,
        "phases": {
            price.name: {
                "bytes_a_process": (BYTES * (price.parameters + price.trainable) + (price.optimizer_bytes or 0)) // parts,
                "gradient_bytes_a_step": BYTES * price.trainable,
                "sent_bytes_a_step": round(_added(price, copies, parts)),
                "gathered_bytes_a_micro_batch": round(2 * BYTES * price.parameters * (parts - 1) / parts),
            }
            for price in prices
        },
    }


def _added(price: PhasePrice, copies: int, parts: int) -> float:
    """Bytes that each process sends to sum the gradients of a step.

    A reduce-scatter over the `parts` sends (parts - 1) / parts of the gradients; an all-reduce of what is left, 1 / parts of them, over
    the `copies` is a reduce-scatter and an all-gather, so (copies - 1) / copies of it twice.
    """
    gradients = BYTES * price.trainable
    return gradients * (parts - 1) / parts + gradients / parts * 2 * (copies - 1) / copies


def parallel_lines(plan: Plan, prices: Sequence[PhasePrice]) -> list[str]:
    """`processes  2, each with the whole model` and a line for each phase."""
    priced = parallel_as_json(plan, prices)
    if priced is None:
        return []
    copies, parts = priced["replicate"], priced["shard"]
    each = "each with the whole model" if parts == 1 else f"each with one of {parts} parts of the model and a block gathered"
    lines = [f"processes  {copies * parts}, {each}; at most, without what is kept for the backward pass:"]
    for name, cost in priced["phases"].items():
        held, added, sent = (f"{cost[key] / 1e6:,.1f} MB" for key in ("bytes_a_process", "gradient_bytes_a_step", "sent_bytes_a_step"))
        lines.append(
            f"  {name}: {held} of weights, gradients and optimizer state; a step adds {added} of gradients, of which each sends {sent}"
            + (f", and each micro-batch gathers {cost['gathered_bytes_a_micro_batch'] / 1e6:,.1f} MB of weights" if parts > 1 else "")
        )
    if parts > 1:
        whole = priced["whole_bytes_at_the_start"] / 1e6
        lines.append(f"  before that each draws every part of the model whole, up to {whole:,.1f} MB in the memory of its processor")
    lines.append("  not in this version: divided matrix multiplications (run.parallel.tensor), offloading (run.parallel.offload)")
    return ["", *lines]
