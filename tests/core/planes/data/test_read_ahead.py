"""Read-ahead: the same stream at any depth, faults at their own step, the state of what was delivered, and no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from stackwise.planes.data.read_ahead import ReadAhead
from stackwise.timeline.duration import Moment

DEPTHS = [0, 1, 2, 7]


def moment(step: int) -> Moment:
    return Moment(step, step / 100, "p", 0, step / 100, step)


def moments(start: int, stop: int) -> Iterator[Moment]:
    return map(moment, range(start, stop))


class Source:
    """Delivers running sums of the steps; its state is the sum."""

    def __init__(self, bad_step: int | None = None, fault: BaseException | None = None) -> None:
        self.total, self.bad_step, self.fault = 0, bad_step, fault
        self.made: list[int] = []
        self.progress = threading.Condition()
        self.threads: set[str] = set()

    def produce(self, moment: Moment) -> int:
        self.threads.add(threading.current_thread().name)
        if moment.step == self.bad_step:
            assert self.fault is not None
            raise self.fault
        self.total += moment.step
        with self.progress:
            self.made.append(moment.step)
            self.progress.notify_all()
        return self.total

    def state(self) -> int:
        return self.total

    def wait_for(self, count: int) -> bool:
        with self.progress:
            return self.progress.wait_for(lambda: len(self.made) >= count, timeout=20)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stackwise-read-ahead"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_values_and_states_are_those_of_plain_calls(depth: int) -> None:
    source = Source()
    ahead = ReadAhead(source.produce, source.state, depth)
    ahead.open(moments(3, 40))
    assert ahead.state() == 0
    expected = 0
    for step in range(3, 40):
        expected += step
        assert ahead.next(moment(step)) == expected
        assert ahead.state() == expected
    ahead.close()
    assert ahead.state() == expected
    assert not threads()
    assert ("MainThread" in source.threads) == (depth == 0)


def test_at_most_depth_steps_are_made_ahead() -> None:
    source = Source()
    ahead = ReadAhead(source.produce, source.state, 3)
    ahead.open(moments(0, 100))
    for step in range(5):
        assert source.wait_for(step + 3)
        assert len(source.made) <= step + 3
        ahead.next(moment(step))
    ahead.close()
    assert len(source.made) <= 5 + 3


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("fault", [ValueError("row 7 is broken"), SystemExit("a loader that exits")])
def test_a_fault_comes_at_its_own_step_and_stays(depth: int, fault: BaseException) -> None:
    source = Source(bad_step=4, fault=fault)
    ahead = ReadAhead(source.produce, source.state, depth)
    ahead.open(moments(0, 9))
    assert [ahead.next(moment(step)) for step in range(4)] == [0, 1, 3, 6]
    for _ in range(2):
        with pytest.raises(type(fault)) as caught:
            ahead.next(moment(4))
        assert caught.value is fault
    assert ahead.state() == 6
    ahead.close()
    assert ahead.state() == 6
    assert not threads()


def test_closing_early_keeps_the_state_of_the_last_delivered_step() -> None:
    source = Source()
    ahead = ReadAhead(source.produce, source.state, 4)
    ahead.open(moments(0, 50))
    for step in range(3):
        ahead.next(moment(step))
    assert source.wait_for(7)
    ahead.close()
    ahead.close()
    assert not threads()
    assert source.total == sum(range(7))
    assert ahead.state() == sum(range(3))
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next(moment(3))
    source.total = ahead.state()
    ahead.open(moments(3, 5))
    assert [ahead.next(moment(step)) for step in (3, 4)] == [6, 10]
    ahead.close()


def test_opening_anew_ends_the_run_before() -> None:
    source = Source()
    ahead = ReadAhead(source.produce, source.state, 2)
    ahead.open(moments(0, 50))
    assert source.wait_for(2)
    ahead.open(moments(0, 50))
    assert len(threads()) == 1
    ahead.close()
    assert not threads()


def test_a_step_out_of_order_or_past_the_end_is_refused() -> None:
    source = Source()
    ahead = ReadAhead(source.produce, source.state, 2)
    ahead.open(moments(0, 2))
    ahead.next(moment(0))
    with pytest.raises(RuntimeError, match="step 9 is asked for where step 1 comes next"):
        ahead.next(moment(9))
    ahead.open(moments(0, 1))
    ahead.next(moment(0))
    with pytest.raises(RuntimeError, match="step 1 lies after"):
        ahead.next(moment(1))
    ahead.close()


def test_a_fault_of_the_moments_reaches_the_loop() -> None:
    def broken() -> Iterator[Moment]:
        yield moment(0)
        raise OSError("no more")

    source = Source()
    ahead = ReadAhead(source.produce, source.state, 2)
    ahead.open(broken())
    ahead.next(moment(0))
    with pytest.raises(OSError, match="no more"):
        ahead.next(moment(1))
    ahead.close()


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 steps"):
        ReadAhead(Source().produce, Source().state, -1)


def test_a_program_that_forgets_to_close_still_ends() -> None:
    program = """
from itertools import count
from stackwise.planes.data.read_ahead import ReadAhead
from stackwise.timeline.duration import Moment
ahead = ReadAhead(lambda moment: moment.step, lambda: 0, 2)
ahead.open(Moment(k, 0.0, "p", 0, 0.0, 0) for k in count())
print(ahead.next(Moment(0, 0.0, "p", 0, 0.0, 0)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
