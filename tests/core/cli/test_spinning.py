"""How threads of OpenMP wait: what other processes use of the cores, and what is done about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import process_time, sleep

import pytest

from stackwise.cli import spinning

pytestmark = pytest.mark.skipif(spinning.load_of_others() is None, reason="the load of this machine cannot be read")

SWITCHED = """
import os, threading, time
import torch
torch.set_num_threads({threads})
from stackwise.cli import spinning
spinning._PERIOD, spinning._CALM = 0.05, 3

class Load:
    cores = 2
    busy = 0.0
    def others(self):
        return self.busy

def settled(count):
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) == count:
            return True
        time.sleep(0.02)
    return False

torch.zeros(1 << 17).neg_()  # the threads of OpenMP that the step has
load = Load()
spinning.watch_spinning(load)
before = len(os.listdir("/proc/self/task"))  # the watch's own included
print(settled(before))
load.busy = {busy}
time.sleep(0.5)
print(len(os.listdir("/proc/self/task")) - before)
load.busy = 0.0
print(settled(before))
"""
"""Whether nothing is begun on a quiet machine, how many threads more there are under load, and whether they end with it."""


def said(threads: int, busy: float) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    code = SWITCHED.format(threads=threads, busy=busy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one thread")
def test_there_are_more_threads_than_cores_as_long_as_others_need_one() -> None:
    """Two cores and two threads: one of Python's, with one more of OpenMP's, makes three for two."""
    assert said(2, 1.0) == ["True", "2", "True"]


@pytest.mark.parametrize(("threads", "busy"), [(1, 2.0), (2, 0.1)])
def test_nothing_is_begun_where_a_core_is_left_for_each_thread(threads: int, busy: float) -> None:
    """One thread waits for none, on two cores with others on both; and others that hardly do anything need no core."""
    assert said(threads, busy) == ["True", "0", "True"]


def test_what_others_use_is_counted_without_what_this_process_uses() -> None:
    load = spinning.Load(os.sched_getaffinity(0))
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        sleep(1)
        load.others()
        sleep(2)
        beside = load.others()
    finally:
        loop.kill()
        loop.wait()
    assert 0.1 < beside <= load.cores + 0.1


def test_what_this_process_uses_is_not_counted_as_that_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of one second of a core, by a file that says so, was this process's own."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(spinning, "_STAT", stat)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu0 {10 * ticks} 0 0 5 5 0 0 5\n", encoding="utf-8")
    load = spinning.Load([0])
    start = process_time()
    while process_time() - start < 1:
        pass
    own = process_time() - start
    stat.write_text(f"cpu0 {int((10 + own) * ticks)} 0 0 9 9 0 0 9\n", encoding="utf-8")
    assert load.others() < 0.05
    sleep(1)
    stat.write_text(f"cpu0 {int((11 + own) * ticks)} 0 0 9 9 0 0 9\n", encoding="utf-8")
    assert 0.5 < load.others() <= 1.05
    stat.write_text(f"cpu0 {int((1000 + own) * ticks)} 0 0 9 9 0 0 9\n", encoding="utf-8")
    assert load.others() == 0  # no core does that


def test_a_machine_that_hides_its_load_is_not_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spinning, "_STAT", tmp_path / "none")
    assert spinning.load_of_others() is None
    monkeypatch.setattr(spinning, "_STAT", tmp_path / "other")
    lines = "".join(f"cpu{core} 0 0 0 0 0 0 0 0\n" for core in os.sched_getaffinity(0))
    for content in ("cpu  1 2 3 4 5 6 7 8\n", lines, lines.replace("0 0 0", "x x x")):
        (tmp_path / "other").write_text(content, encoding="utf-8")
        assert spinning.load_of_others() is None


@pytest.mark.parametrize(("quota", "watched"), [("max 100000", True), ("200000 100000", False)])
def test_where_processor_time_is_rationed_nobody_spins_for_long(
    quota: str, watched: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n", encoding="utf-8")
    monkeypatch.setattr(spinning, "_QUOTA", tmp_path / "cpu.max")
    assert (spinning.load_of_others() is not None) == watched


LIMITED = """
import os, resource, sys, time
import torch
from stackwise.cli import spinning
spinning._PERIOD = 0.05

class Load:
    cores = 64
    def others(self):
        return 64.0

torch.set_num_threads(1)
spinning.watch_spinning(Load())
torch.set_num_threads(2)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (5, 5))
time.sleep(1)
print("goes on")
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user, whose threads are limited")
def test_where_no_more_threads_are_allowed_training_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["goes", "on"]
    assert len(done.stderr.splitlines()) == 1
    assert "can't start new thread" in done.stderr
