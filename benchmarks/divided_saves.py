"""How long an asynchronous save of a divided model holds training up: the call of `save`, against a copy of what each process writes.

Two processes with a half each, of a decoder with AdamW. Every figure is the median of the rounds, of the slower process: by the clock,
and the processor time of the thread that trains, which other work of the machine hardly touches. Rounds of both kinds are interleaved.
Run: python benchmarks/divided_saves.py
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time

WIDTH, BLOCKS, ROUNDS = 512, 12, 6
TITLES = {
    "copy": "a copy of what it writes",
    "copy, own": "  processor time of that",
    "save": "the call of an asynchronous save",
    "save, own": "  processor time of that",
}


def measure(folder: Path) -> None:
    """One process: write its figures."""
    import torch

    import stackwise
    from stackwise.processes.ranks import joined
    from stackwise.storage.checkpoints.background import Snapshot
    from stackwise.storage.checkpoints.beside import StoreBeside
    from stackwise.storage.checkpoints.store import CheckpointStore
    from stackwise.storage.nested_state import split_state
    from stackwise.storage.shared_file import Held

    tokens = torch.randint(256, (20_000,), generator=torch.Generator().manual_seed(0))
    run = {"name": "saves", "horizon": "2 steps", "device": "cpu", "probe": False, "parallel": {"shard": 2}}
    config = {
        "run": {**run, "checkpoint": {"asynchronous": True}},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": tokens}}}, "batch_size": 1, "accumulate": 2, "seq_len": 8},
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 256},
            "rack": {"use": "transformer.decoder", "width": WIDTH, "heads": 8, "stacks": [{"base": BLOCKS}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-3},
    }
    with joined() as ranks:
        assert ranks is not None
        machine = stackwise.assemble(stackwise.make_plan(stackwise.experiment(config), stackwise.discover()), ranks=ranks)
        list(machine.train())
        sharding, state = machine.settings.sharding, machine.state()
        assert sharding is not None
        place, snapshot = folder / "checkpoints", Snapshot()
        store = CheckpointStore(place, others=sharding.writers, keep_last=1) if ranks.is_first else StoreBeside(sharding.writers)
        held = Held.of(split_state(state)[0], sharding)
        figures: dict[str, list[float]] = {name: [] for name in TITLES}

        def timed(name: str, act: Callable[[], object]) -> None:
            ranks.gather(None)
            start, spent = perf_counter(), thread_time()
            act()
            figures[name].append(perf_counter() - start)
            figures[f"{name}, own"].append(thread_time() - spent)

        for step in range(1, ROUNDS + 1):
            timed("copy", lambda: snapshot.take(held.rows))
            timed("save", lambda step=step: store.save(step, state, {}, asynchronous=True))  # type: ignore[misc]
            store.wait()
        store.close()
    megabytes = sum(rows.nbytes for rows in held.rows.values()) / 1e6
    (folder / str(ranks.place.rank)).write_text(json.dumps({"megabytes": megabytes, **{name: each[1:] for name, each in figures.items()}}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path)
    if (chosen := parser.parse_args()).measure is not None:
        measure(chosen.measure)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", folder]
        running = [subprocess.Popen(command, env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        if sum(process.wait() != 0 for process in running):
            sys.exit("a process of the benchmark failed")
        found = [json.loads((Path(folder) / rank).read_text()) for rank in "01"]
    median = {name: 1000 * max(statistics.median(each[name]) for each in found) for name in TITLES}
    print(f"{os.cpu_count()} processors, one thread a process; each of two processes writes {found[0]['megabytes']:.0f} MB")
    for name, title in TITLES.items():
        print(f"{title:60} {median[name]:8.1f} ms")
    ratios = [median[f"save{kind}"] / median[f"copy{kind}"] for kind in ("", ", own")]
    print(f"a save holds training up for {ratios[0]:.2f} × a copy by the clock, {ratios[1]:.2f} × by processor time")


if __name__ == "__main__":
    main()
