"""What the cold half of `stackwise validate` costs: whole processes, from the start of Python to the verdict.

Valid examples and files that are refused, in turn. Prints the median and the slowest of each; the goal is 0.5 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

ROUNDS = 5
GOAL_S = 0.5
EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = [sys.executable, "-c", "from stackwise.cli import main; main()", "validate", "--cold"]
REFUSED = {
    "ten megabytes": "a: 1\n" * 2_000_000,
    "an alias bomb": "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)),
    "deep nesting": "[" * 200_000,
    "a tag": "run: !!python/object/apply:os.abort []\n",
}


def seconds(path: Path, code: int) -> tuple[float, float]:
    """Wall and CPU seconds of one process, which must end with `code`."""
    start, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    done = subprocess.run([*COMMAND, str(path)], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    taken, after = time.perf_counter() - start, getrusage(RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: (EXAMPLES / f"{name}.yaml", 0) for name in ("one-phase", "grow-bytes", "masked-to-causal")}
        for name, text in REFUSED.items():
            path = Path(folder) / f"{name.replace(' ', '-')}.yaml"
            path.write_text(text)
            files[name] = (path, 2)
        for path, code in files.values():
            seconds(path, code)  # compiles bytecode
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
        for _ in range(ROUNDS):
            for name, (path, code) in files.items():
                times[name].append(seconds(path, code))
    print(f"validate --cold, {ROUNDS} interleaved rounds of whole processes; goal: below {GOAL_S} s\n")
    print(f"{'':<20}{'median s':>10}{'slowest s':>11}{'CPU median s':>14}")
    for name, taken in times.items():
        wall, cpu = zip(*taken, strict=True)
        print(f"{name:<20}{median(wall):>10.3f}{max(wall):>11.3f}{median(cpu):>14.3f}")


if __name__ == "__main__":
    main()
