"""How two threads wait for each other, on a quiet machine and beside a process that holds one core: a step of nanoGPT's recipe.

Each way of waiting is a process of its own that trains as `stackwise run` does. They take turns for some steps a round, while nothing else
runs and while one endless loop does, in a session of its own. Beside the loop two threads have a fair share of 1.5 cores, so a step should
take 4/3 of a quiet one. Means of wall time, since a step beside the loop waits long or not at all. `the command line` watches the load and
waits in the first way or hardly at all; the seconds in which it notices, ten at most, are not counted. The machine has to be quiet
otherwise: the load before is printed with the figures.

Run: python benchmarks/threads.py [--rounds 9] [--steps 20]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import sleep

from step import VOCAB, ask, start

OURS = "StackWise float32"
SPINNING, ONE = "torch's default (300,000 turns)", "one thread"
WAYS: Mapping[str, Mapping[str, str]] = {
    SPINNING: {"GOMP_SPINCOUNT": "300000"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "none (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    ONE: {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "1"},
}
COMMAND_LINE = "the command line"


@contextmanager
def busy() -> Iterator[None]:
    """One core is held meanwhile."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def serve(way: str, place: str) -> subprocess.Popen[str]:
    """A process that waits in a way, past its first steps."""
    process = start(OURS, 2, place, **WAYS.get(way, {}))
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    import numpy as np

    load = os.getloadavg()[0]
    processes: dict[str, subprocess.Popen[str]] = {}
    seconds: dict[tuple[str, bool], list[float]] = {}
    with TemporaryDirectory() as place:
        np.save(Path(place) / "tokens.npy", np.random.default_rng(0).integers(0, VOCAB, 1_000_000).astype(np.uint16))
        try:
            processes |= {way: serve(way, place) for way in (*WAYS, COMMAND_LINE)}
            for i in range(given.rounds):
                for way in list(processes)[:: 1 if i % 2 else -1]:
                    sleep(12 if way == COMMAND_LINE else 0)
                    seconds.setdefault((way, False), []).extend(wall for wall, _ in ask(processes[way], given.steps))
                    with busy():
                        sleep(2 if way == COMMAND_LINE else 0)
                        steps = max(given.steps // 10, 1) if way == SPINNING else given.steps
                        seconds.setdefault((way, True), []).extend(wall for wall, _ in ask(processes[way], steps))
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    import torch

    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {given.rounds} interleaved rounds, load before {load:.1f}"
    )
    print(f"{'':34} {'quiet ms':>9} {'of the default':>15} {'busy ms':>9} {'of a fair share':>16}")
    default = mean(seconds[SPINNING, False])
    for way in processes:
        quiet, beside = mean(seconds[way, False]), mean(seconds[way, True])
        print(f"{way:34} {quiet * 1e3:9.1f} {quiet / default:15.2f} {beside * 1e3:9.1f} {beside / (default * 4 / 3):16.2f}")


if __name__ == "__main__":
    main()
