"""What a run takes of the process's memory, against the plan's figure, and what that costs in time, by how glibc keeps freed memory.

The plan counts tensors; glibc leaves gaps between those below its threshold, above which it gives freed memory back at once. So a low
threshold makes the process take the figure and touch new pages in every step, a high one the opposite. `the command line` is what
`stackwise run` sets for itself. Each row is a process of its own, one thread, in turn with the others; of a step the fastest tenth of its
CPU time over all rounds.

Run: python benchmarks/memory.py [--rounds 3] [--steps 12]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

KEPT = {"MALLOC_TRIM_THRESHOLD_": "2147483647"}
SETTINGS = {
    "glibc's own": {},
    "the command line": {**KEPT, "MALLOC_MMAP_THRESHOLD_": str(32 << 20)},
    "from 8 MB back": {**KEPT, "MALLOC_MMAP_THRESHOLD_": str(8 << 20)},
    "from 2 MB back": {**KEPT, "MALLOC_MMAP_THRESHOLD_": str(2 << 20)},
    "from 64 kB back": {"MALLOC_MMAP_THRESHOLD_": "65536"},
}
SHAPES = {"wide": (256, 4, 4, 128, 4096), "many tokens": (64, 2, 32, 128, 256)}
"""Width, blocks, rows, length, vocabulary."""


def declared(shape: str, steps: int) -> dict[str, Any]:
    """The config of a run."""
    width, blocks, rows, length, vocab = SHAPES[shape]
    return {
        "run": {"horizon": f"{steps} steps", "device": "cpu", "probe": False},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"random": {"use": "data.array-files", "files": {"tokens": f"{vocab}.npy"}, "vocab": vocab}},
            "batch_size": rows,
            "seq_len": length,
        },
        "model": {
            "embedding": {"use": "transformer.token"},
            "rack": {"use": "transformer.decoder", "width": width, "heads": 4, "stacks": [{"base": blocks}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }


def resident(key: str) -> int:
    """Bytes that the process holds now (`VmRSS`), or held at most since it was last asked to forget (`VmHWM`)."""
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def train(shape: str, steps: int) -> None:
    """Train twice, first to have everything loaded; print the plan's bytes, the process's, and seconds and page faults of each step."""
    import torch

    from stackwise import StepDone, config
    from stackwise.assembly.machine import assemble
    from stackwise.assembly.memory import PhaseMemory
    from stackwise.assembly.pricing import price
    from stackwise.host.discovery import discover
    from stackwise.plan import make_plan

    torch.set_num_threads(1)
    allocator = ctypes.CDLL(None)
    path = Path(f"{shape}.json")
    path.write_text(json.dumps(declared(shape, steps)))
    plan = make_plan(config.load(path), discover())
    (cost,) = price(plan, memory_from=0.0)
    assert isinstance(cost.memory, PhaseMemory)
    for attempt in range(2):
        allocator.malloc_trim(0)
        machine = assemble(plan)
        start, seconds, faults = resident("VmRSS"), list[float](), list[int]()
        if attempt:
            Path("/proc/self/clear_refs").write_text("5")
        busy, touched = process_time(), getrusage(RUSAGE_SELF).ru_minflt
        for event in machine.train():
            if isinstance(event, StepDone):
                seconds.append(process_time() - busy)
                faults.append(getrusage(RUSAGE_SELF).ru_minflt - touched)
                busy, touched = process_time(), getrusage(RUSAGE_SELF).ru_minflt
        peak = resident("VmHWM") - start
        del machine, event
    print(json.dumps({"plan": cost.memory.peak, "process": peak, "seconds": seconds[2:], "faults": median(faults[2:])}))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, choices=range(3, 10_001), metavar="N", help="of each run; two warm up")
    parser.add_argument("--train", choices=SHAPES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train, given.steps)
        return
    import numpy as np

    for shape, (width, blocks, rows, length, vocab) in SHAPES.items():
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
        with TemporaryDirectory() as folder:
            np.save(Path(folder) / f"{vocab}.npy", np.random.default_rng(0).integers(0, vocab, 500_000).astype(np.uint16))
            for _ in range(given.rounds):
                for name, setting in SETTINGS.items():
                    command = [sys.executable, str(Path(__file__).resolve()), "--train", shape, "--steps", str(given.steps)]
                    done = subprocess.run(
                        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **setting}, capture_output=True, text=True
                    )
                    assert done.returncode == 0, done.stderr
                    told[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"\n{shape}: width {width}, {blocks} blocks, {rows} × {length} tokens, vocabulary {vocab}; {given.rounds} rounds")
        print(f"{'':20}{'plan MB':>10}{'process MB':>12}{'of the plan':>13}{'CPU ms a step':>15}{'faults a step':>15}")
        for name, each in told.items():
            plan, process = each[0]["plan"], median(one["process"] for one in each)
            fastest = quantiles([second for one in each for second in one["seconds"]], n=10)[0]
            faults = median(one["faults"] for one in each)
            print(f"{name:20}{plan / 1e6:>10.1f}{process / 1e6:>12.1f}{process / plan:>11.2f} ×{fastest * 1e3:>15.1f}{faults:>15,.0f}")


if __name__ == "__main__":
    main()
