"""A long run of a tiny model: resident memory, file descriptors and threads every tenth of the way, checkpoints and logs included.

`python benchmarks/steady.py [STEPS]`; 100,000 steps when left out.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from stackwise import PhaseSchedule, StepDone, TaskSpec, TrainingMachine
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import RunDirectory


class Regression:
    """Squared error of a linear map."""

    def get_spec(self) -> TaskSpec:
        """Features in, a prediction out."""
        return TaskSpec(batch={}, inputs={}, outputs={})

    def prepare(self, batch, moment, generator):
        """Nothing to prepare."""
        return batch

    def loss(self, outputs, batch):
        """Sum of squares and their number."""
        return ((outputs["y"] - batch["y"]) ** 2).sum(), float(batch["y"].numel()), {}


class Linear(nn.Module):
    """Eight features to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 1)

    def forward(self, batch):
        """Batch to outputs."""
        return {"y": self.map(batch["x"])}


def held() -> tuple[float, int, int]:
    """Resident megabytes, open file descriptors, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208  # counts, reads no path


def main() -> None:
    """Train and print one line a tenth."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    draw = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(4, 8, generator=draw), "y": torch.randn(4, 1, generator=draw)} for _ in range(16)]
    model = Linear()
    machine = TrainingMachine(
        model=model,
        data=batches,
        task=Regression(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        schedule=PhaseSchedule.single(steps=steps),
    )
    print(f"{'step':>8}  {'resident MB':>11}  {'descriptors':>11}  {'threads':>7}")
    with TemporaryDirectory() as folder:
        directory, store = RunDirectory(Path(folder)), CheckpointStore(Path(folder) / "checkpoints", keep_last=2)
        for event in machine.train():
            directory(event)
            if isinstance(event, StepDone) and machine.step % (steps // 100) == 0:
                store.save(machine.step, machine.state(), {}, asynchronous=True)
                if machine.step % (steps // 10) == 0:
                    store.wait()
                    resident, descriptors, threads = held()
                    print(f"{machine.step:>8}  {resident:>11.1f}  {descriptors:>11}  {threads:>7}", flush=True)
        store.close()
        directory.close()


if __name__ == "__main__":
    main()
