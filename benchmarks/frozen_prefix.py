"""A step that trains the top two blocks of a decoder over 2 and over 16 frozen ones, with and without `model.cache: frozen`.

Width 128, batch 16 × 64 of 256 rows in an array, AdamW; CPU seconds of steps after the first epoch, interleaved round by round; medians.
`python benchmarks/frozen_prefix.py [ROUNDS]`; 9 when left out.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Generator
from time import process_time

import torch

import stackwise

ROWS, BATCH, TIME, WARM, STEPS = 256, 16, 64, 20, 5


def config(frozen: int, cache: str | None, steps: int) -> dict:
    """Two trained blocks over some frozen ones."""
    tokens = torch.randint(256, (ROWS, TIME + 1), generator=torch.Generator().manual_seed(0))
    return {
        "run": {"name": "frozen", "seed": 0, "horizon": f"{steps} steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"rows": {"use": "data.memory", "arrays": {"tokens": tokens}}}, "batch_size": BATCH, "seq_len": TIME},
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 256},
            "rack": {"use": "transformer.decoder", "width": 128, "heads": 4, "stacks": [{"base": frozen}, {"top": 2}]},
            "head": {"use": "transformer.lm", "tied": False},
            "freeze": ["embedding", "rack.stacks.base"],
            "cache": cache,
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }


def seconds_a_step(walk: Generator) -> float:
    """CPU seconds of a few steps."""
    start, left = process_time(), STEPS
    while left:
        left -= isinstance(next(walk), stackwise.StepDone)
    return (process_time() - start) / STEPS


def main() -> None:
    """Print one line a depth."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    registry = stackwise.discover()
    walks, found = {}, {}
    for frozen in (2, 16):
        for cache in ("frozen", None):
            plan = stackwise.make_plan(stackwise.experiment(config(frozen, cache, WARM + rounds * STEPS + 1)), registry)
            walks[frozen, cache], found[frozen, cache] = stackwise.assemble(plan).train(), []
    for walk in walks.values():
        done = 0
        while done < WARM:  # the first epoch, in which every row is computed
            done += isinstance(next(walk), stackwise.StepDone)
    for _ in range(rounds):
        for key, walk in walks.items():
            found[key].append(seconds_a_step(walk))
    print(
        f"2 trained blocks of width 128 over frozen ones, batch {BATCH} × {TIME}; one thread, CPU ms a step, medians of {rounds} rounds\n"
    )
    print(f"{'frozen blocks':>13}{'kept':>10}{'computed':>10}")
    for frozen in (2, 16):
        kept, computed = (1000 * statistics.median(found[frozen, cache]) for cache in ("frozen", None))
        print(f"{frozen:>13}{kept:>10.1f}{computed:>10.1f}")


if __name__ == "__main__":
    main()
