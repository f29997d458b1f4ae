"""What a process holds of a model that is divided among N of them: parameters, gradients and moments, against 1/N of the whole.

For each N the bytes that a process holds when the optimizer steps, and the most memory of a step (resident, above what the process had
before the model was made), with as many micro-batches as processes and with twice as many. The last column is 1/N of parameters, gradients
and moments, and what is gathered beside them: the largest block and what stands outside the blocks.
Run: python benchmarks/divided_memory.py
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTH, BLOCKS, LENGTH, STEPS = 256, 12, 8, 4


def resident(peak: bool = False) -> int:
    """Bytes of memory of this process, now or at most since `forget_peak`."""
    name = "VmHWM" if peak else "VmRSS"
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def forget_peak() -> None:
    """Let the peak begin at what the process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def train(target: Path, shard: int, micro_batches: int) -> None:
    """One process: write what it held and its peak."""
    import torch

    import stackwise
    from stackwise.planes.optimizer.plane import OptimizerPlane
    from stackwise.planes.shards import own
    from stackwise.processes.ranks import joined

    held: dict[str, int] = {}
    step = OptimizerPlane.step

    def noted(plane: OptimizerPlane, t: float) -> None:
        step(plane, t)
        state = [entry for entries in plane.state_by_name().values() for entry in entries.values() if isinstance(entry, torch.Tensor)]
        gradients = [p.grad for p in plane.parameters if p.grad is not None]
        kinds = {"parameters": plane.parameters, "gradients": gradients, "moments": state}
        held.update({kind: sum(own(tensor.detach()).nbytes for tensor in tensors) for kind, tensors in kinds.items()})

    OptimizerPlane.step = noted  # type: ignore[method-assign]  # to look at them
    tokens = torch.randint(256, (20_000,), generator=torch.Generator().manual_seed(0))
    config: dict[str, Any] = {
        "run": {"name": "memory", "horizon": f"{STEPS} steps", "device": "cpu", "probe": False, "parallel": {"shard": shard}},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}}},
            "batch_size": 1,
            "accumulate": micro_batches,
            "seq_len": LENGTH,
        },
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 256},
            "rack": {"use": "transformer.decoder", "width": WIDTH, "heads": 8, "stacks": [{"base": BLOCKS}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }
    with joined() as ranks:
        plan = stackwise.make_plan(stackwise.experiment(config), stackwise.discover())
        import torch._dynamo  # which the first optimizer imports, and is not of the model

        before = resident()
        machine = stackwise.assemble(plan, ranks=ranks)
        done = 0
        for event in machine.train():
            if isinstance(event, stackwise.StepDone):
                done += 1
                if done == 2:
                    forget_peak()
        blocks = [sum(p.numel() * 4 for p in block.parameters()) for block in machine.model.model.rack.stacks["base"]]  # type: ignore[index]
        whole = sum(p.numel() * 4 for p in machine.model.model.parameters())
        target.write_text(json.dumps({**held, "peak": resident(peak=True) - before, "gathered": max(blocks) + whole - sum(blocks)}))


def measure(ranks: int, times: int) -> dict[str, int]:
    """The largest figures of any process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(rank) for rank in range(ranks)]
        running = []
        for rank, place in enumerate(places):
            group = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
            command = [sys.executable, __file__, "--train", str(place), "--shard", str(ranks), "--micro-batches", str(ranks * times)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", **(group if ranks > 1 else {})}
            running.append(subprocess.Popen(command, env=environment))
        if any(process.wait() for process in running):
            sys.exit("a process of the benchmark failed")
        figures = [json.loads(place.read_text()) for place in places]
    return {name: max(each[name] for each in figures) for name in figures[0]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--train", type=Path)
    parser.add_argument("--shard", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.train is not None:
        train(chosen.train, chosen.shard, chosen.micro_batches)
        return
    titles = ("parameters", "gradients", "moments", "together", "× whole", "peak", "peak, 2", "1/N + gathered")
    print(f"{'MB a process':14} " + " ".join(f"{title:>14}" for title in titles))
    whole = 0
    for ranks in chosen.ranks:
        one, two = measure(ranks, 1), measure(ranks, 2)
        together = one["parameters"] + one["gradients"] + one["moments"]
        whole = whole or together * ranks
        expected = whole / ranks + (one["gathered"] if ranks > 1 else 0)
        figures = [one["parameters"], one["gradients"], one["moments"], together]
        shown = [*(f"{figure / 1e6:.1f}" for figure in figures), f"{together / whole:.3f}"]
        shown += [f"{figure / 1e6:.0f}" for figure in (one["peak"], two["peak"], expected)]
        print(f"{f'{ranks} process' + ('es' if ranks > 1 else ''):14} " + " ".join(f"{each:>14}" for each in shown), flush=True)


if __name__ == "__main__":
    main()
