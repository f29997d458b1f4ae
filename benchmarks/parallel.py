"""What several processes gain: tokens a second of N processes over one, with one thread each, for a decoder on random bytes.

Beside it stands what the machine gives N processes that know nothing of each other, which is the most that can be had, and the share of a
step that goes into adding gradients. Each figure is the median over steps of one run; rounds of the three kinds are interleaved.
Run: python benchmarks/parallel.py
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

WIDTH, BLOCKS, LENGTH, ROWS, MICRO_BATCHES, STEPS = 192, 4, 64, 8, 4, 12


def train(target: Path, micro_batches: int) -> None:
    """One process of a run: write the seconds of each step, and of the exchanges in it."""
    import torch

    import stackwise
    from stackwise.assembly.machine import assemble
    from stackwise.processes.ranks import Ranks, joined

    exchanging, seconds = [0.0], []
    own_sum = Ranks.sum

    def timed_sum(ranks: Ranks, tensor: torch.Tensor) -> None:
        start = perf_counter()
        own_sum(ranks, tensor)
        exchanging[-1] += perf_counter() - start

    Ranks.sum = timed_sum  # type: ignore[method-assign]  # to time them
    tokens = torch.randint(256, (200_000,), generator=torch.Generator().manual_seed(0))
    config = {
        "run": {"name": "parallel", "horizon": f"{STEPS} steps", "device": "cpu", "probe": False},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}}},
            "batch_size": ROWS,
            "accumulate": micro_batches,
            "seq_len": LENGTH,
        },
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 256},
            "rack": {"use": "transformer.decoder", "width": WIDTH, "heads": 4, "stacks": [{"base": BLOCKS}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }
    with joined() as ranks:
        machine = assemble(stackwise.make_plan(stackwise.experiment(config), stackwise.discover()), ranks=ranks)
        start = perf_counter()
        for event in machine.train():
            if isinstance(event, stackwise.StepDone):
                seconds.append(perf_counter() - start)
                start = perf_counter()
                exchanging.append(0.0)
    target.write_text(f"{statistics.median(seconds[2:])} {statistics.median(exchanging[2:-1])}")


def measure(processes: int, micro_batches: int, *, together: bool) -> tuple[float, float]:
    """Seconds of a step and of its exchanges, of the slowest process.

    Args:
        processes: at the same time.
        micro_batches: of a step.
        together: whether they train one model, or one each.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running, places = [], []
        for rank in range(processes):
            group = {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            place = Path(folder) / str(rank)
            places.append(place)
            command = [sys.executable, __file__, "--train", str(place), "--micro-batches", str(micro_batches)]
            running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **(group if together else {})}))
        if any(process.wait() for process in running):
            sys.exit("a process of the benchmark failed")
        figures = [tuple(map(float, place.read_text().split())) for place in places]
    return max(step for step, _ in figures), max(exchange for _, exchange in figures)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--micro-batches", type=int, default=MICRO_BATCHES)
    chosen = parser.parse_args()
    if chosen.train is not None:
        train(chosen.train, chosen.micro_batches)
        return
    ranks = chosen.ranks
    one, together, apart = [], [], []
    for _ in range(chosen.rounds):
        one.append(measure(1, MICRO_BATCHES, together=False)[0])
        together.append(measure(ranks, MICRO_BATCHES, together=True))
        apart.append(measure(ranks, MICRO_BATCHES // ranks, together=False)[0])
    tokens = MICRO_BATCHES * ROWS * LENGTH
    base, step = statistics.median(one), statistics.median(seconds for seconds, _ in together)
    exchange, alone = statistics.median(seconds for _, seconds in together), statistics.median(apart)
    print(
        f"{os.cpu_count()} processors, one thread a process, {tokens:,} tokens a step in {MICRO_BATCHES} micro-batches, medians of medians"
    )
    print(f"{'':34} {'tokens/s':>10} {'× one':>7}")
    print(f"{'one process':34} {tokens / base:10,.0f} {1:7.2f}")
    print(f"{f'{ranks} processes, one model':34} {tokens / step:10,.0f} {base / step:7.2f}")
    print(f"{f'{ranks} processes, a model each':34} {tokens / alone:10,.0f} {base / alone:7.2f}   the machine's own ratio")
    print(f"adding gradients takes {1000 * exchange:.1f} ms, {100 * exchange / step:.0f} % of a step")


if __name__ == "__main__":
    main()
