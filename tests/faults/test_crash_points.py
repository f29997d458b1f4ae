"""A process that ends at any file-system call of a save leaves a complete checkpoint behind, if there ever was one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "crash_points.py"
Points = list[dict[str, Any]]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Points]:
    """Scenario → its crash points in order; one process makes those of all scenarios that are tested now."""
    here = [item for item in request.session.items if item.path == request.path]
    scenarios = [item.callspec.params["scenario"] for item in here]  # type: ignore[attr-defined]  # all are parametrized
    command = [sys.executable, SCRIPT, tmp_path_factory.mktemp("crashes"), *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    made: dict[str, Points] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        made.setdefault(line.pop("scenario"), []).append(line)
    return made


@pytest.mark.parametrize(
    ("scenario", "before", "after"),
    [
        ("first", None, [10, 1]),
        pytest.param("second", [10, 1], [20, 2], marks=pytest.mark.rare),  # `pruning` passes through all of it
        pytest.param("replacing", [20, 2], [20, 3], marks=pytest.mark.rare),  # as does `replacing the only one`
        ("pruning", [20, 2], [30, 3]),
        ("replacing the only one", [10, 1], [10, 2]),
    ],
)
def test_a_complete_checkpoint_is_found_wherever_the_process_ended(
    points: dict[str, Points], scenario: str, before: list[int] | None, after: list[int]
) -> None:
    crashes = points[scenario]
    found = [point["found"] for point in crashes]
    switch = found.index(after)
    assert found == [before] * switch + [after] * (len(found) - switch)  # the old one until the new one has its name, then the new one
    assert len(crashes) > 30 and sum(point["torn"] for point in crashes) == 3  # tensors, state, manifest
    assert all(point["recovers"] for point in crashes)
    assert [point["crashed"] for point in crashes] == [True] * (len(crashes) - 1) + [False]
