"""What finding the providers among 300 installed distributions costs over a bare scan of their entry points.

The scan is the standard library's `importlib.metadata.entry_points(group=…)`; discovery makes a registry of what it finds, and imports
nothing. Processor time in one process, in turn, so that a busy machine slows both alike. Prints medians and their ratio, and exits 0.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from time import process_time

from stackwise.host.discovery import discover
from stackwise.host.offers import GROUP

DISTRIBUTIONS, ROUNDS = 300, 41


def install(folder: Path, providers: int) -> None:
    """Distributions of which some are providers, and the others offer a command."""
    for i in range(DISTRIBUTIONS):
        info = folder / f"distribution_{i}-1.0.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: distribution-{i}\nVersion: 1.0\nRequires-Dist: stackwise-core~=0.2.0\n\n"
        (info / "METADATA").write_text(about + "What it is for.\n" * 100)
        group = GROUP if i < providers else "console_scripts"
        (info / "entry_points.txt").write_text(f"[{group}]\nname-{i} = package_{i}.module:function\n")


def cost(of: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    start = process_time()
    of()
    return 1000 * (process_time() - start)


def main() -> None:
    """Measure and print."""
    measured: dict[str, Callable[[], object]] = {
        "entry_points(group=…)": lambda: list(metadata.entry_points(group=GROUP)),
        "stackwise.discover()": discover,
    }
    print(f"{DISTRIBUTIONS} distributions beside those of this environment, {ROUNDS} interleaved rounds, medians of CPU ms\n")
    print(f"{'providers among them':<24}" + "".join(f"{name:>24}" for name in measured) + f"{'ratio (goal: 1.2)':>20}")
    for providers in (5, DISTRIBUTIONS):
        with tempfile.TemporaryDirectory() as folder:
            install(Path(folder), providers)
            sys.path.insert(0, folder)
            for of in measured.values():
                of()  # warms the file system's cache and the finders'
            costs: dict[str, list[float]] = {name: [] for name in measured}
            for _ in range(ROUNDS):
                for name, of in measured.items():
                    costs[name].append(cost(of))
            sys.path.remove(folder)
        scan, own = (median(found) for found in costs.values())
        print(f"{providers:<24}{scan:>24.1f}{own:>24.1f}{own / scan:>20.2f}")


if __name__ == "__main__":
    main()
