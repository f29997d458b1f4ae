"""What a transition costs: its time against one copy in memory of model and optimizer state, and the memory it needs at its peak.

About 100 MB of weights and moments; the probe is left out. Each case runs in a process of its own; time is the median of rounds in
which transition and copy take turns, memory the growth of the process's peak. Run: python benchmarks/transition.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import stackwise
from stackwise.machine.machine import TrainingMachine

WIDTH, BLOCKS = 384, 5
MB = 2**20

CASES: dict[str, dict[str, Any]] = {
    "freeze all but the head": {"model": {"freeze": ["embedding", "rack"]}},
    "append a stack by copies (stack)": {
        "model": {"rack": {"stacks": [{"base": BLOCKS}, {"top": 1}]}},
        "enter": {"growth": {"use": "transformer.stack", "source": "base"}},
    },
    "prepend an identity stack": {
        "model": {"rack": {"stacks": [{"front": 1}, {"base": BLOCKS}]}},
        "enter": {"growth": {"use": "transformer.identity"}},
    },
    "double the depth (stack)": {
        "model": {"rack": {"stacks": [{"base": 2 * BLOCKS}]}},
        "enter": {"growth": {"use": "transformer.stack"}},
    },
    "LoRA beside every matrix": {"model": {"weight_adapters": {"a": {"use": "transformer.lora", "select": ["rack"], "rank": 8}}}},
    "another optimizer (Muon)": {"optimizer": {"use": "optim.muon", "lr": 0.01}},
}


def machine_of(change: dict[str, Any]) -> TrainingMachine:
    """Two phases of two steps, the second with a change."""
    return stackwise.assemble(
        stackwise.experiment(
            run={"name": "transition", "horizon": "4 steps", "device": "cpu", "probe": False},
            task={"use": "transformer.causal-lm"},
            data={
                "sources": {"noise": {"use": "data.memory", "arrays": {"tokens": torch.randint(256, (20_000,))}, "vocab": 256}},
                "batch_size": 1,
                "seq_len": 8,
            },
            model={
                "embedding": {"use": "transformer.token"},
                "rack": {"use": "transformer.decoder", "width": WIDTH, "heads": 6, "stacks": [{"base": BLOCKS}]},
                "head": {"use": "transformer.lm", "tied": False},
            },
            optimizer={"use": "optim.adamw", "lr": 1e-3},
            phases={"before": {"until": "2 steps"}, "after": change},
        )
    )


def tensors_of(machine: TrainingMachine) -> Iterator[torch.Tensor]:
    """Weights and moments."""
    yield from (p.detach() for p in machine.model.model.parameters())
    for state in machine.optimizer.state_by_name().values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def memory(figure: str) -> int:
    """What the process holds (`VmRSS`) or held at most since the peak was reset (`VmHWM`), in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(figure))


def reset_peak() -> None:
    """Let `VmHWM` begin again (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(case: str, rounds: int) -> dict[str, float]:
    """One case: medians of transition and copy, their ratio, and the peak above what stood before."""
    torch.set_num_threads(1)
    ratios, seconds, copies = [], [], []
    extra = fresh = state_bytes = 0
    for i in range(rounds + 1):
        machine = machine_of(CASES[case])
        events = machine.train()
        for event in events:
            if isinstance(event, stackwise.StepDone) and event.step == 1:
                break
        old = {tensor.data_ptr() for tensor in tensors_of(machine)}
        state_bytes = sum(tensor.nbytes for tensor in tensors_of(machine))
        reset_peak()
        before = memory("VmRSS")
        entered = next(event for event in events if isinstance(event, stackwise.PhaseEntered))
        if i == 0:
            extra = memory("VmHWM") - before
            fresh = sum(tensor.nbytes for tensor in tensors_of(machine) if tensor.data_ptr() not in old)
            continue  # the first round is the one for memory: afterwards the allocator has what it needs
        start = perf_counter()
        copies_made = [tensor.clone() for tensor in tensors_of(machine)]
        copy = perf_counter() - start
        del copies_made
        seconds.append(entered.seconds)
        copies.append(copy)
        ratios.append(entered.seconds / copy)
    return {
        "state_mb": state_bytes / MB,
        "transition_ms": 1e3 * statistics.median(seconds),
        "copy_ms": 1e3 * statistics.median(copies),
        "ratio": statistics.median(ratios),
        "fresh_mb": fresh / MB,
        "peak_mb": extra / MB,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", choices=CASES, help="measure one case and print JSON")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.rounds)))
        return
    print(f"torch {torch.__version__}, 1 thread, {given.rounds} rounds a case, medians")
    print(f"{'transition':34} {'state MB':>9} {'ms':>8} {'copy ms':>8} {'ratio':>6} {'new MB':>7} {'peak MB':>8}")
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case, "--rounds", str(given.rounds)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        m = json.loads(done.stdout)
        print(
            f"{case:34} {m['state_mb']:9.0f} {m['transition_ms']:8.1f} {m['copy_ms']:8.1f} {m['ratio']:6.2f} "
            f"{m['fresh_mb']:7.1f} {m['peak_mb']:8.1f}"
        )


if __name__ == "__main__":
    main()
