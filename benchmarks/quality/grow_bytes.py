"""The main job in honest company: growth, the static shallow and deep models at equal processor time, and simple compressors.

Every model reads the same data with the same lengths, batches and learning-rate regime; only the depth is static. How many
steps fit into the processor seconds that growth took to train is measured first. Nothing is tuned: see laboratory.py for equal care.
Run: python benchmarks/quality/grow_bytes.py
"""

from __future__ import annotations

import argparse
import io
import lzma
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

import torch

from stackwise import StepDone, assemble, discover, load, make_plan
from stackwise.runs.run import run

CONFIG = Path(__file__).parents[2] / "examples" / "grow-bytes.yaml"
STATIC = ("phases.grown=null", "phases.shallow.until=80%")
CALIBRATION_STEPS = 40


def static(blocks: int) -> tuple[str, ...]:
    """Overrides that keep everything of the curriculum but its growth."""
    return (*STATIC, f"model.rack.stacks=[{{base: {blocks}}}]")


def train(overrides: Sequence[str]) -> tuple[float, float, int, int]:
    """Held-out bits per byte at the end, processor seconds of training, steps and tokens of one run."""
    with TemporaryDirectory() as folder:
        result = run(CONFIG, overrides, Path(folder) / "run", io.StringIO())
    done = result.summary.finished
    assert done is not None
    return result.summary.phases[-1].exit["heldout"]["bits_per_byte"], done.cpu_seconds, done.steps, done.tokens


def seconds_per_step(overrides: Sequence[str]) -> float:
    """Mean of a short run's median step by phase, weighted by the phases' shares, in seconds of the processor."""
    machine = assemble(make_plan(load(CONFIG, [*overrides, f"run.horizon={CALIBRATION_STEPS} steps", "evaluate=null"]), discover()))
    steps: dict[str, list[float]] = {}
    start = process_time()
    for event in machine.train():
        if isinstance(event, StepDone):
            steps.setdefault(event.phase, []).append(process_time() - start)
        start = process_time()
    return sum(median(times) * len(times) for times in steps.values()) / CALIBRATION_STEPS


def heldout_rows() -> torch.Tensor:
    """The very rows that every evaluation reads, [rows, length]."""
    machine = assemble(make_plan(load(CONFIG), discover()))
    evaluation, moment = machine.evaluations["heldout"], machine.schedule.at(step=0)
    return torch.cat([batch["tokens"] for _ in range(evaluation.batches) for batch in evaluation.data.batches(moment)])


def training_bytes(count: int) -> torch.Tensor:
    """The first bytes of the training stream."""
    machine = assemble(make_plan(load(CONFIG, ["evaluate=null"]), discover()))
    next(event for event in machine.train() if isinstance(event, StepDone))
    rows, moment = [], machine.schedule.at(step=0)
    while sum(row.numel() for row in rows) < count:
        rows += [batch["tokens"] for batch in machine.data.batches(moment)]
    return torch.cat([row.flatten() for row in rows])


def bigram(rows: torch.Tensor, corpus: torch.Tensor) -> float:
    """Bits per byte of a byte bigram model with add-0.1 smoothing, on every byte of a row but its first."""
    counts = torch.bincount(corpus[:-1] * 256 + corpus[1:], minlength=65536).reshape(256, 256).double() + 0.1
    logs = (counts / counts.sum(1, keepdim=True)).log2()
    return float(-logs[rows[:, :-1], rows[:, 1:]].mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model, seeds 7, 8, …")
    seeds = [f"run.seed={7 + i}" for i in range(parser.parse_args().seeds)]
    rows = heldout_rows()
    content = bytes(rows.to(torch.uint8).flatten().tolist())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; held-out: {len(content):,} bytes of unseen files")
    print(f"{'model':34} {'bits/byte':>10} {'CPU s':>8} {'steps':>7} {'tokens':>11}")
    for name, size in (("zlib -9", len(zlib.compress(content, 9))), ("lzma", len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)))):
        print(f"{name:34} {8 * size / len(content):10.3f}", flush=True)
    print(f"{'byte bigram, 4.5 M training bytes':34} {bigram(rows, training_bytes(4_500_000)):10.3f}", flush=True)
    for seed in seeds:
        score, seconds, steps, tokens = train([seed])
        print(f"{'grown, 2 → 6 blocks':34} {score:10.3f} {seconds:8.1f} {steps:7,} {tokens:11,}  ({seed})", flush=True)
        for blocks in (2, 6):
            costs = [seconds_per_step([*static(blocks), seed]) for _ in range(3)]
            fitting = math.floor(seconds / median(costs))
            score, took, steps, tokens = train([*static(blocks), seed, f"run.horizon={fitting} steps"])
            print(f"{f'static, {blocks} blocks':34} {score:10.3f} {took:8.1f} {steps:7,} {tokens:11,}  ({seed})", flush=True)


if __name__ == "__main__":
    main()
