"""A process that ends at any file-system call of a save leaves a complete checkpoint behind, if there ever was one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "crash_points.py"


@pytest.mark.parametrize(
    ("scenario", "before", "after"),
    [
        ("first", None, [10, 1]),
        pytest.param("second", [10, 1], [20, 2], marks=pytest.mark.slow),
        ("replacing", [20, 2], [20, 3]),
        ("pruning", [20, 2], [30, 3]),
        pytest.param("replacing the only one", [10, 1], [10, 2], marks=pytest.mark.slow),
    ],
)
def test_a_complete_checkpoint_is_found_wherever_the_process_ended(
    tmp_path: Path, scenario: str, before: list[int] | None, after: list[int]
) -> None:
    done = subprocess.run([sys.executable, SCRIPT, scenario, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    found = [point["found"] for point in points]
    switch = found.index(after)
    assert found == [before] * switch + [after] * (len(found) - switch)  # the old one until the new one has its name, then the new one
    assert len(points) > 30 and sum(point["torn"] for point in points) == 3  # tensors, state, manifest
    assert all(point["recovers"] for point in points), done.stderr
    assert [point["crashed"] for point in points] == [True] * (len(points) - 1) + [False]
