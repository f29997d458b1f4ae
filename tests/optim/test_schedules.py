"""Schedules of the distribution against torch's own, against the formula of the paper, and against a table."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from stackwise import BuildContext, ScheduleWindow, UserError
from stackwise_providers_optim.schedules import (
    CosineRestartsOptions,
    InverseRootOptions,
    TableOptions,
    build_cosine_restarts,
    build_inverse_root,
    build_table,
)

STEPS = 100
CONTEXT = BuildContext(seed=0)


def values(schedule: Any, steps: int = STEPS) -> list[float]:
    window = ScheduleWindow.of_steps(steps)
    return [schedule.value(step, window) for step in range(steps)]


@pytest.mark.parametrize("times", [1, 2])
def test_restarts_are_those_of_torch(times: int) -> None:
    schedule = build_cosine_restarts(CosineRestartsOptions(peak=0.3, lowest=0.01, cycle="20%", times=times), CONTEXT)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=20, T_mult=times, eta_min=0.01)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert values(schedule) == pytest.approx(expected, abs=1e-12)


def test_every_restart_is_lower_and_comes_after_the_warm_up() -> None:
    options = CosineRestartsOptions(peak=1.0, lowest=0.2, cycle="30 steps", decay=0.5, warmup="10 steps")
    series = values(build_cosine_restarts(options, CONTEXT))
    assert series[:10] == pytest.approx([step / 10 for step in range(10)])
    assert [series[10], series[40], series[70]] == pytest.approx([1.0, 0.6, 0.4])
    assert series[25] == pytest.approx(0.6)  # the middle of half a cosine from 1 to 0.2


def test_the_inverse_root_is_that_of_the_paper() -> None:
    series = values(build_inverse_root(InverseRootOptions(peak=0.5, warmup="25 steps"), CONTEXT))
    assert series == pytest.approx([0.5 * sqrt(25) * min(max(s, 1) ** -0.5, s * 25**-1.5) for s in range(STEPS)])


def test_a_cooldown_is_a_straight_line_to_the_end() -> None:
    schedule = build_inverse_root(InverseRootOptions(peak=0.5, warmup="4 steps", cooldown="36%", lowest=0.1), CONTEXT)
    top = 0.5 * sqrt(4 / 64)
    assert schedule.value(82, ScheduleWindow.of_steps(STEPS)) == pytest.approx((top + 0.1) / 2)
    assert schedule.value(100, ScheduleWindow.of_steps(STEPS)) == pytest.approx(0.1)


def test_a_table_is_read_by_shares_and_by_steps(tmp_path: Path) -> None:
    (tmp_path / "rates.csv").write_text("at,value\n# comment\n0,1\n50%, 3\n\n80 steps,0\n")
    line, steps = (build_table(TableOptions(path=str(tmp_path / "rates.csv"), between=b), CONTEXT) for b in ("linear", "hold"))
    assert [values(line)[step] for step in (0, 25, 50, 65, 80, 99)] == pytest.approx([1, 2, 3, 1.5, 0, 0])
    assert [values(steps)[step] for step in (0, 49, 50, 79, 80)] == [1, 1, 3, 3, 0]


@pytest.mark.parametrize("text", ["", "at,value\n", "0,1,2\n", "0,one\n", "0;1\n"])
def test_a_row_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.csv").write_text(text)
    with pytest.raises(UserError, match=r"rates\.csv"):
        build_table(TableOptions(path=str(tmp_path / "rates.csv")), CONTEXT)


def test_a_file_that_is_not_there_and_instants_out_of_order_are_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        TableOptions(path=str(tmp_path / "none.csv")).fingerprint()
    (tmp_path / "rates.csv").write_text("50%,1\n10%,2\n")
    with pytest.raises(UserError, match="later"):
        values(build_table(TableOptions(path=str(tmp_path / "rates.csv")), CONTEXT))
    with pytest.raises(UserError, match="less than one step"):
        values(build_cosine_restarts(CosineRestartsOptions(peak=1.0, cycle="0%"), CONTEXT))
