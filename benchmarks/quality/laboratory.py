"""The laboratory: timelines against static models at equal training FLOPs, every side tuned alike, finalists on seeds of their own.

Trains the sweeps of `laboratory/`, which go on where they were stopped, and prints the tables of docs/explanation/results.md.
Run: python benchmarks/quality/laboratory.py --runs DIR [--jobs N]; some four hours of one core. `--table` prints what is there already.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stackwise.reports.comparison import Interval
from stackwise.reports.record import RunRecord, read_run

FILES = Path(__file__).parent / "laboratory"
RATES = ("given-static-rates", "given-grown-rates", "small-static-rates")
FINALISTS = {
    "static, 6 blocks of width 128": "given-static-seeds",
    "timeline 1 → 3 → 6 blocks of width 128, half the FLOPs": "given-grown-half",
    "the same, a quarter of the FLOPs": "given-grown-quarter",
    "static, 2 blocks of width 64": "small-static-seeds",
}
METRIC = "bits_per_byte"


class Figures(NamedTuple):
    """What one finished run says."""

    name: str
    seed: int
    rate: str
    bits: float
    flops: float
    seconds: float


def train(name: str, runs: Path, jobs: int) -> None:
    """Train what is left of a sweep; it says itself what it does."""
    call = "from stackwise.cli import main; main(prog_name='stackwise')"
    command = [sys.executable, "-c", call, "sweep", str(FILES / f"{name}.yaml"), "--output", str(runs / name), "--jobs", str(jobs)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def finished(folder: Path) -> Iterator[Figures]:
    """The figures of the finished runs of a sweep."""
    for config in sorted(folder.glob("*/config.yaml")):
        record = read_run(config.parent)
        if record.status == "finished":
            yield figures(record)


def figures(record: RunRecord) -> Figures:
    """What a run says."""
    done = next(record.of_kind("run_finished"))
    return Figures(
        record.name,
        int(record.config["run.seed"]),
        record.config["optimizer.lr.wsd.peak"],
        float(record.evaluations[-1]["metrics"][METRIC]),
        sum(float(phase["training_flops"]) for phase in record.phases),
        float(done["seconds"]),
    )


def print_rates(runs: Path) -> None:
    """One line a trial."""
    print(f"\n{'trial of a learning rate, seed 1':40} {'lr':>8} {'bits/byte':>10} {'FLOPs':>9} {'seconds':>8}")
    for name in RATES:
        for each in sorted(finished(runs / name), key=lambda found: float(found.rate)):
            print(f"{name:40} {float(each.rate):8.2g} {each.bits:10.4f} {each.flops:9.2e} {each.seconds:8.0f}")


def print_finalists(runs: Path) -> None:
    """One line a side, and the differences from the first by seed."""
    sides = {title: list(finished(runs / name)) for title, name in FINALISTS.items()}
    print(f"\n{'finalist':56} {'seeds':>9} {'bits/byte':>18} {'FLOPs':>9} {'seconds':>8}  − the first, by seed")
    first = {each.seed: each.bits for each in next(iter(sides.values()))}
    for title, found in sides.items():
        if found:
            pairs = [each.bits - first[each.seed] for each in found if each.seed in first]
            less = str(Interval.of(pairs)) if pairs and found != next(iter(sides.values())) else "–"
            print(f"{title:56} {seeds_of(found):>9} {Interval.of([f.bits for f in found])!s:>18} {mean_of(found)}  {less}")
            print("    " + " ".join(f"{each.bits:.4f}" for each in found))


def print_factor(runs: Path) -> None:
    """How many times fewer FLOPs the timeline needs to the loss of the static run of its seed, on the line between its two budgets."""
    static, half, quarter = (
        {each.seed: each for each in finished(runs / name)} for name in ("given-static-seeds", "given-grown-half", "given-grown-quarter")
    )
    factors = []
    for seed in sorted(static.keys() & half.keys() & quarter.keys()):
        high, low = quarter[seed], half[seed]
        share = (high.bits - static[seed].bits) / (high.bits - low.bits)  # in log FLOPs
        factors.append(static[seed].flops / (high.flops * (low.flops / high.flops) ** share))
    if factors:
        print(f"\nFLOPs of the static run over those of the timeline at its loss, by seed: {Interval.of(factors)}")


def seeds_of(found: Sequence[Figures]) -> str:
    """`2–5`."""
    seeds = sorted(each.seed for each in found)
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"


def mean_of(found: Sequence[Figures]) -> str:
    """FLOPs, which are equal, and seconds, which are not."""
    return f"{found[0].flops:9.2e} {sum(each.seconds for each in found) / len(found):8.0f}"


def main() -> None:
    """Train what is left, and print the tables."""
    parser = argparse.ArgumentParser(description=re.sub(r"\n(?!\n)", " ", __doc__ or ""))
    parser.add_argument("--runs", type=Path, default=Path("laboratory"), help="where the sweeps are")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for name in () if arguments.table else (*RATES, *FINALISTS.values()):
        train(name, arguments.runs, arguments.jobs)
    print_rates(arguments.runs)
    print_finalists(arguments.runs)
    print_factor(arguments.runs)


if __name__ == "__main__":
    main()
